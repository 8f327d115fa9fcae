"""What GPUs can do at most, as their makers publish it: dense, no sparsity."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Published rates.

    Attributes:
        name: The product.
        multiprocessors: How many.
        clock: Boost clock, cycles per second.
        memory: Bytes per second.
        tensor: Operations per second on tensor cores, float16 or bfloat16 with sums in float32.
        source: Where it is published.
    """

    name: str
    multiprocessors: int
    clock: float
    memory: float
    tensor: float
    source: str


A100 = Gpu("A100 SXM 80 GB", 108, 1.41e9, 2.039e12, 312e12, "NVIDIA, A100 Tensor Core GPU Architecture")

GPUS = (
    Gpu("H200 SXM", 132, 1.98e9, 4.8e12, 989e12, "NVIDIA, H200 Tensor Core GPU Datasheet; clock as nvidia-smi says"),
    Gpu("H100 SXM", 132, 1.83e9, 3.35e12, 989e12, "NVIDIA, H100 Tensor Core GPU Architecture"),
    A100,
    Gpu("RTX 4090", 128, 2.52e9, 1.008e12, 165.2e12, "NVIDIA, Ada GPU Architecture"),
)

INTAKE = 64
"""Bytes that a multiprocessor takes from the level-2 cache in a cycle, on each of GPUS."""

ISSUE = 4
"""Warp instructions that a multiprocessor starts in a cycle."""

MMA = 2 * 16 * 8 * 16
"""Operations of a tensor-core instruction."""


def find(name: str) -> Gpu | None:
    """The GPU whose product name this is a part of, or the reverse."""
    words = [(gpu, gpu.name.split()[:2]) for gpu in GPUS]
    return next((gpu for gpu, parts in words if parts[0] in name or " ".join(parts) in name), None)

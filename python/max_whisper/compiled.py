"""Graphs compiled ahead of time: built once per machine and set of sizes, then loaded in milliseconds.

An entry of the cache depends on the version of MAX, the sources of kernels and graphs, the model's sizes, device and
dtype, and the level of the CPU or the architecture of the GPU. It holds a MEF with all graphs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from max_whisper import target
from max_whisper.cache import cache_dir, entry
from max_whisper.config import ModelDimensions
from max_whisper.cross import compile_elsewhere

if TYPE_CHECKING:
    from max_whisper.graphs.module import GraphModule

GRAPHS = "graphs.mef"

FOUNDATIONS = ("audio", "compiled", "config", "mel", "packed", "packing", "screen", "target")
"""Modules that graphs take sizes, layouts, constants and choices from, beside `graphs`, `ops` and the kernels."""

Say = Callable[[str], None]


def entries() -> list[Path]:
    """The cache's entries."""
    folder = cache_dir() / "compiled"
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir())


def build(
    dims: ModelDimensions,
    device: str = "cpu",
    dtype: str | None = None,
    *,
    architecture: str | None = None,
    force: bool = False,
    progress: Say | None = None,
) -> Path:
    """Returns the MEF of a model's compiled graphs; compiles them if the cache has none that are whole.

    Args:
        dims: The model's sizes.
        device: Where the graphs will run.
        dtype: Element type of the weights; None for the device's own.
        architecture: A GPU architecture to build for, present or not, instead of what this machine has.
        force: Compile even what the cache has.
        progress: Is told, in words, what is being done.

    Raises:
        DeviceError: The device or dtype is not there.
        OutputError: The cache cannot be written to.
    """
    if architecture is None:
        device, dtype = target.choose(device, dtype)
    else:
        device, dtype = target.choose_target(architecture, dtype)
    identity = _identity(dims, device, dtype, architecture)
    say = progress or (lambda _: None)

    def compile_to(path: Path) -> None:
        say(f"compiling the graphs for {identity['target']}, once for this machine and model size ...")
        if architecture is None:
            compile_graphs(dims, device, dtype, path)
        else:
            compile_elsewhere(dims, dtype, architecture, path)

    return entry("compiled", GRAPHS, identity, compile_to, force=force)


def _identity(dims: ModelDimensions, device: str, dtype: str, architecture: str | None) -> dict[str, object]:
    from max.driver import __version__

    return {
        "max": __version__,
        "sources": sources(),
        "dims": asdict(dims),
        "dtype": dtype,
        "device": device,
        "target": architecture or (target.gpu_architecture() if device == "gpu" else target.cpu_target()),
        **({"host": target.cpu_target("gpu")} if device == "gpu" else {}),
    }


@cache
def sources() -> str:
    """Digest of all that graphs are made of: kernels, graph builders and what these take from other modules."""
    here = Path(__file__).parent
    files = [*(here / "kernels").rglob("*.mojo"), *(here / "graphs").rglob("*.py"), *(here / "ops").rglob("*.py")]
    files += [here / f"{name}.py" for name in FOUNDATIONS]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def compile_graphs(dims: ModelDimensions, device: str, dtype: str, path: Path) -> None:
    """Compiles all graphs of a model for this process's device and writes them to a MEF."""
    from max_whisper import runtime
    from max_whisper.graphs.module import GraphModule

    runtime.use(device)
    module = GraphModule()
    add_graphs(module, dims, device, dtype)
    module.compile().export_mef(path)


def add_graphs(module: "GraphModule", dims: ModelDimensions, device: str, dtype: str) -> None:
    """Adds all graphs of a model to a module."""
    from max.dtype import DType
    from max.graph import DeviceRef

    from max_whisper import graphs, packed
    from max_whisper.graphs.blocks import Weights

    caches = DType[packed.Format.of(dtype, device).caches]
    reference = DeviceRef.GPU() if device == "gpu" else DeviceRef.CPU()
    attention = target.attention_factors(rounded=dtype in packed.ROUNDED) if device == "cpu" else None
    # The audio's keys and values are most of what a step of int8 reads: bytes, on x86.
    audio_caches = DType.int8 if attention and dtype == "int8" else caches
    weights = Weights(packed.recipes(dims, dtype, device), caches, audio_caches, attention, reference)
    graphs.build(module, dims, weights)

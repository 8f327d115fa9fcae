"""What CONTRIBUTING tells the author of a kernel to do when a test fails on the phantom."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from max_whisper import eager, ops
from tests.phantom import install, lines
from tests.phantom.launch import launch, load_kernel
from tests.phantom.memory import Memory
from tests.phantom.ptx import Instruction, Kernel

from . import test_layer_norm
from .harness import execute


def far_away(at: Instruction) -> Instruction:
    """Stores to global memory miss their buffer."""
    if at.opcode != "st" or not at.has("global"):
        return at
    return replace(at, operands=[at.operands[0].replace("]", "+1048576]"), *at.operands[1:]])


def plant(kernel: Kernel, grid: tuple[int, int, int]) -> tuple[Kernel, tuple[int, int, int]]:
    return replace(kernel, instructions=[far_away(at) for at in kernel.instructions]), grid


@pytest.mark.nightly
def test_a_fault_names_its_line(rng, tmp_path, monkeypatch):
    """The store of a layer norm, in the file that it is written in, and the line that called for it."""
    phantom = install.installed
    if phantom is None:
        pytest.skip("faults are planted on the phantom only")
    monkeypatch.setattr(lines, "folder", tmp_path)
    monkeypatch.setattr(phantom, "alter", plant)
    arguments = test_layer_norm.arguments(rng, "f16", (17,), 384, 1)
    with (
        patch.multiple(eager, _models={}, _prepared=set()),
        pytest.raises(
            AssertionError, match=r"out-of-bounds.*st\.global.*\(.*kernels/layer_norm/gpu\.mojo:(\d+)"
        ) as caught,
    ):
        execute(ops.layer_norm, arguments)
    place = next(part for part in str(caught.value).split() if "layer_norm/gpu.mojo" in part).strip("()")
    file, _, line = place.rpartition(":")
    assert "store_chunk(output" in Path(file).read_text().splitlines()[int(line) - 1]


PROGRAM = """
from max.gpu import thread_idx
from max.gpu.host import DeviceContext

def halves(x: MutPointer[Float32, MutAnyOrigin]):
    var value = x[unsafe_offset=thread_idx.x]
    if value > 2:
        print("value", value, "half", Float16(value / 2), "of", Int32(thread_idx.x))

def main() raises:
    with DeviceContext() as context:
        var x = context.enqueue_create_buffer[DType.float32](32)
        context.enqueue_function[halves](x.unsafe_ptr(), grid_dim=2, block_dim=32)
"""


@pytest.mark.nightly
def test_mojo_prints(tmp_path, capsys):
    """`print` in a kernel, as the compiler makes it: numbers are turned into text by the kernel itself."""
    memory = install.installed.memory if install.installed else Memory(1 << 26)
    (tmp_path / "program.mojo").write_text(PROGRAM)
    (tmp_path / "program.mo.mlir").write_text("")
    lines.build(tmp_path / "program.mojo", tmp_path)
    (kernel,) = tmp_path.glob("*.ptx")
    x = memory.allocate(4 * 32)
    memory.write(x, np.arange(32, dtype=np.float32) / 10)
    launch(load_kernel(kernel.read_text()), memory, (2, 1, 1), (32, 1, 1), [x.to_bytes(8, "little")])
    value = np.arange(32, dtype=np.float32) / 10
    half = (value / 2).astype(np.float16).astype(np.float32)
    expected = [
        f"[block {block},0,0 thread {i}] value {value[i]!s} half {half[i]!s} of {i}"
        for block in (0, 1)
        for i in range(21, 32)
    ]
    assert capsys.readouterr().out.splitlines() == expected

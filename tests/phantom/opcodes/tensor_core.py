"""Tensor cores: ldmatrix and mma, with the fragments of NVIDIA's PTX ISA.

Lane l of a warp is in group g = l / 4 at place t = l % 4. Of a 16 x K by K x 8 product with f16 (K = 16 or 8) it holds

    A  register i: row g + 8 (i % 2), columns 2t and 2t+1, + 8 (i / 2)
    B  register i: rows 2t and 2t+1, + 8 i, column g
    C  register i: row g + 8 (i / 2), column 2t + i % 2
"""

import numpy as np

from tests.phantom.errors import UnsupportedError
from tests.phantom.machine import WARP, Machine
from tests.phantom.ptx import Instruction, vector
from tests.phantom.types import from_bfloat16


def load_matrix(machine: Machine, instruction: Instruction) -> None:
    """ldmatrix: 8 x 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i."""
    targets = vector(instruction.operands[0])
    readers = np.flatnonzero(machine.active() & (machine.lane < 8 * len(targets)))
    rows = np.zeros((machine.count, 16), np.uint8)
    rows[readers] = machine.load("shared", machine.address(instruction.operands[1]), 16, readers)
    matrices = rows.view(np.uint16).reshape(-1, 4, 8, 8)  # of each warp
    for i, target in enumerate(targets):
        matrix = matrices[:, i].transpose(0, 2, 1) if instruction.has("trans") else matrices[:, i]
        machine.set(target, np.ascontiguousarray(matrix).view(np.uint32).ravel())


def multiply_accumulate(machine: Machine, instruction: Instruction) -> None:
    """mma.sync.m16n8kK with float32 accumulators; A and B are f16, bf16 or tf32.

    Products are exact in float32 and are added in float32; in which order the hardware adds is not documented.
    """
    shape = next((part for part in instruction.parts if part.startswith("m16n8k")), None)
    types = instruction.types()
    if shape is None or types[0] != "f32" or types[-1] != "f32" or types[1] not in ("f16", "bf16", "tf32"):
        raise UnsupportedError(f"not supported: {instruction.text}")
    depth, packed = int(shape[6:]), 1 if types[1] == "tf32" else 2
    d, a, b, c = (vector(operand) for operand in instruction.operands)
    warps, steps = machine.count // WARP, depth // (4 * packed)
    a_matrix = np.empty((warps, 2, 8, steps, 4, packed), np.float32)  # row 8 h + g, column 4 packed s + packed t + e
    for i, register in enumerate(a):
        a_matrix[:, i % 2, :, i // 2] = _lanes(machine, register, types[1], packed)
    b_matrix = np.empty((warps, steps, 4, packed, 8), np.float32)
    for i, register in enumerate(b):
        b_matrix[:, i] = _lanes(machine, register, types[1], packed).transpose(0, 2, 3, 1)
    product = a_matrix.reshape(warps, 16, depth) @ b_matrix.reshape(warps, depth, 8)
    sums = product.reshape(warps, 2, 8, 4, 2)  # row 8 h + g, column 2 t + e
    for i, register in enumerate(c):
        sums[:, i // 2, :, :, i % 2] += machine.each(register, "f32").reshape(warps, 8, 4)
    for i, target in enumerate(d):
        machine.set(target, sums[:, i // 2, :, :, i % 2].ravel())


def _lanes(machine: Machine, register: str, kind: str, packed: int) -> np.ndarray:
    """The numbers that lanes hold in a register: (warps, groups g, places t, one or two), float32 or exact in it."""
    words = np.ascontiguousarray(machine.each(register, "b32"))
    if kind == "tf32":
        numbers = (words & np.uint32(0xFFFFE000)).view(np.float32)
    else:
        numbers = from_bfloat16(words.view(np.uint16)) if kind == "bf16" else words.view(np.float16)
    return numbers.reshape(-1, 8, 4, packed)


EXECUTE = {"ldmatrix": load_matrix, "mma": multiply_accumulate}

"""Tensor cores: ldmatrix and mma, with the fragments of NVIDIA's PTX ISA.

Lane l of a warp is in group g = l / 4 at place t = l % 4. Of a 16 x K by K x 8 product with f16 (K = 16 or 8) it holds

    A  register i: row g + 8 (i % 2), columns 2t and 2t+1, + 8 (i / 2)
    B  register i: rows 2t and 2t+1, + 8 i, column g
    C  register i: row g + 8 (i / 2), column 2t + i % 2
"""

from functools import cache

import numpy as np

from tests.phantom.errors import UnsupportedError
from tests.phantom.machine import WARP, Machine
from tests.phantom.ptx import Instruction, vector
from tests.phantom.types import from_bfloat16


def load_matrix(machine: Machine, instruction: Instruction) -> None:
    """ldmatrix: 8 x 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i."""
    targets = vector(instruction.operands[0])
    lane, first = machine.lane, machine.warp * WARP
    readers = np.flatnonzero(machine.active() & (lane < 8 * len(targets)))
    rows = np.zeros((machine.count, 8), np.uint16)
    rows[readers] = machine.load("shared", machine.address(instruction.operands[1]), 16, readers).view(np.uint16)
    for i, target in enumerate(targets):
        if instruction.has("trans"):
            row, column = first + 8 * i + 2 * (lane % 4), lane // 4
            low, high = rows[row, column], rows[row + 1, column]
        else:
            row, column = first + 8 * i + lane // 4, 2 * (lane % 4)
            low, high = rows[row, column], rows[row, column + 1]
        machine.set(target, low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16))


@cache
def _places(depth: int, packed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where register i, element e of each lane lies in A (16 x depth), B (depth x 8) and C (16 x 8), flat indices."""
    lane = np.arange(WARP)
    g, t = lane // 4, lane % 4
    step = 4 * packed
    a = [
        [(g + 8 * (i % 2)) * depth + t * packed + e + step * (i // 2) for e in range(packed)]
        for i in range(2 * depth // step)
    ]
    b = [[(t * packed + e + step * i) * 8 + g for e in range(packed)] for i in range(depth // step)]
    c = [(g + 8 * (i // 2)) * 8 + 2 * t + i % 2 for i in range(4)]
    return np.array(a), np.array(b), np.array(c)


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
    warps = machine.count // WARP
    a_at, b_at, c_at = _places(depth, packed)
    a_matrix = _gather(machine, a, types[1], a_at, 16 * depth).reshape(warps, 16, depth)
    b_matrix = _gather(machine, b, types[1], b_at, 8 * depth).reshape(warps, depth, 8)
    sums = np.empty((warps, 16 * 8), np.float32)
    for register, at in zip(c, c_at, strict=True):
        sums[:, at] = machine.each(register, "f32").reshape(warps, WARP)
    sums += (a_matrix @ b_matrix).reshape(warps, -1)
    for register, at in zip(d, c_at, strict=True):
        machine.set(register, np.ascontiguousarray(sums[:, at]).ravel())


def _gather(machine: Machine, registers: list[str], kind: str, places: np.ndarray, size: int) -> np.ndarray:
    """The matrix whose elements lie in the registers of a warp's lanes: (warps, size) float32."""
    matrix = np.empty((machine.count // WARP, size), np.float32)
    for register, elements in zip(registers, places, strict=True):
        words = machine.each(register, "b32").reshape(-1, WARP)
        if kind == "tf32":
            matrix[:, elements[0]] = (words & np.uint32(0xFFFFE000)).view(np.float32)
            continue
        for half, at in zip(
            ((words & 0xFFFF).astype(np.uint16), (words >> 16).astype(np.uint16)), elements, strict=True
        ):
            matrix[:, at] = from_bfloat16(half) if kind == "bf16" else half.view(np.float16)
    return matrix


EXECUTE = {"ldmatrix": load_matrix, "mma": multiply_accumulate}

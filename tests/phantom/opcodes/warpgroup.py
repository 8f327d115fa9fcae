"""Hopper's tensor cores: wgmma, with the fragments and descriptors of NVIDIA's PTX ISA.

A warpgroup, four warps, multiplies 64 x 16 by 16 x N and does not wait. Thread t of it holds, of 8 columns j of the sums,

    D  register 4j + i: row 16 (t / 32) + t % 32 / 4 + 8 (i / 2), column 8j + 2 (t % 4) + i % 2
    A  register i: row likewise + 8 (i % 2), columns 2 (t % 4) and the next, + 8 (i / 2)

Here the operands are read when a product starts, and when it is awaited they must still be what they were; sums arrive at
the wait. So sums that are read too early are the old ones, and a stage that is overwritten too early is found.
"""

from dataclasses import dataclass, field

import numpy as np

from tests.phantom.errors import UnsupportedError
from tests.phantom.machine import WARP, Machine
from tests.phantom.ptx import Instruction, vector
from tests.phantom.types import from_bfloat16

GROUP, ROWS, DEPTH = 4 * WARP, 64, 16
SWIZZLE_128 = 1
"""In a descriptor's last two bits: chunks of 16 bytes of rows of 128, swizzled. The only layout that is known here."""

_T = np.arange(GROUP)
_ROW = 16 * (_T // WARP) + _T % WARP // 4
_COLUMN = 2 * (_T % 4)


@dataclass
class Product:
    """One wgmma.mma_async of some warpgroups.

    Attributes:
        groups: Numbers of the warpgroups that have not awaited it.
        sequence: Of which of its committed groups it is part, for each of them.
        registers: Where the sums are.
        part: What is added to them: (groups, 64, N).
        operands: Where what it reads lies, and what was there: it must not change.
        keeps: Whether the sums are added to, not replaced.
    """

    groups: np.ndarray
    sequence: np.ndarray
    registers: list[str]
    part: np.ndarray
    operands: list[tuple[np.ndarray, np.ndarray]]
    keeps: bool


@dataclass
class Warpgroups:
    """What the tensor cores of a machine have been told.

    Attributes:
        products: Those that nobody has awaited yet, in order.
        committed: How many groups of products each warpgroup has closed.
    """

    committed: np.ndarray
    products: list[Product] = field(default_factory=list)


def execute(machine: Machine, instruction: Instruction) -> None:
    """wgmma: fence, mma_async, commit_group and wait_group."""
    taking_part = machine.active()
    if not taking_part.any():
        return
    active = taking_part.reshape(-1, GROUP) if machine.padded % GROUP == 0 else np.zeros((0, GROUP), bool)
    whole = active.all(axis=1)
    if not len(active) or (active.any(axis=1) != whole).any():
        raise machine.fault("wgmma by fewer than the 128 threads of a warpgroup", np.flatnonzero(taking_part))
    groups = np.flatnonzero(whole)
    state = machine.warpgroups
    if state is None:
        state = machine.warpgroups = Warpgroups(np.zeros(len(active), np.int64))
    what = instruction.parts[1]
    if what == "mma_async":
        state.products.append(_start(machine, instruction, groups, state.committed[groups]))
    elif what == "commit_group":
        state.committed[groups] += 1
    elif what == "wait_group":
        _wait(machine, state, groups, int(instruction.operands[0]))
    elif what != "fence":
        raise UnsupportedError(f"not supported: {instruction.text}")


def _start(machine: Machine, instruction: Instruction, groups: np.ndarray, sequence: np.ndarray) -> Product:
    shape, types = instruction.parts[4], instruction.types()
    if (
        not shape.startswith("m64n")
        or not shape.endswith("k16")
        or types[0] != "f32"
        or types[1] not in ("f16", "bf16")
    ):
        raise UnsupportedError(f"not supported: {instruction.text}")
    columns, kind = int(shape[4:-3]), types[1]
    d, a, b, keeps, *scales = instruction.operands
    transposed = [int(x) for x in scales[2:]]  # of A, if it is in shared memory, and of B
    if any(int(scale) != 1 for scale in scales[:2]) or transposed[:-1] == [1]:
        raise UnsupportedError(f"not supported: {instruction.text}")
    operands = []
    if a.startswith("{"):
        left = _fragments(machine, vector(a), groups, kind)
    else:
        operands.append(_read(machine, a, groups, ROWS, transposed=False))
        left = _numbers(operands[-1][1], kind)
    operands.append(_read(machine, b, groups, columns, transposed=bool(transposed[-1])))
    right = _numbers(operands[-1][1], kind)
    if machine.counters:
        machine.counters.tensor_core += len(groups) * 4 * columns // 8  # as if of 16 x 8 x 16
    added = machine.predicate(keeps).reshape(-1, GROUP)[groups]
    if (added != added[0, 0]).any():
        raise UnsupportedError(f"warpgroups that differ in scale-d: {instruction.text}")
    return Product(groups, sequence, vector(d), left @ right.transpose(0, 2, 1), operands, bool(added[0, 0]))


def _read(
    machine: Machine, operand: str, groups: np.ndarray, rows: int, *, transposed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A matrix that a descriptor names, (groups, rows, 16): where its elements lie in shared memory, and their bits."""
    threads = machine.each(operand, "b64").view(np.uint64).reshape(-1, GROUP)[groups]
    if (threads != threads[:, :1]).any():
        raise machine.fault("the threads of a warpgroup name different matrices", groups * GROUP)
    descriptor = threads[:, 0].astype(object)
    start, leading, stride, swizzle = (
        np.array([int(d) >> shift & mask for d in descriptor], np.int64)
        for shift, mask in ((0, 0x3FFF), (16, 0x3FFF), (32, 0x3FFF), (62, 3))
    )
    if (swizzle != SWIZZLE_128).any() or (np.array([int(d) >> 49 & 7 for d in descriptor]) != 0).any():
        raise UnsupportedError(f"a layout other than rows of 128 bytes, swizzled: {machine.current.text}")
    row, k = np.arange(rows)[:, None], np.arange(DEPTH)
    line, inside = (k, row) if transposed else (row, k)  # lines of 128 bytes, and where in them
    at = 16 * start[:, None, None] + line // 8 * 16 * stride[:, None, None] + line % 8 * 128 + inside % 64 * 2
    at = at + inside // 64 * 16 * leading[:, None, None]
    at ^= (at >> 7 & 7) << 4
    slots = machine.block_slot[groups * GROUP]
    return at, machine.shared.read_tile(at, slots)


def _fragments(machine: Machine, registers: list[str], groups: np.ndarray, kind: str) -> np.ndarray:
    """A from registers: (groups, 64, 16)."""
    matrix = np.empty((len(groups), ROWS, DEPTH), np.float32)
    for i, register in enumerate(registers):
        words = np.ascontiguousarray(machine.each(register, "b32")).view(np.uint16).reshape(-1, GROUP, 2)[groups]
        numbers = _numbers(words, kind)
        for e in range(2):
            matrix[:, _ROW + 8 * (i % 2), _COLUMN + 8 * (i // 2) + e] = numbers[:, :, e]
    return matrix


def _numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    return from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def _wait(machine: Machine, state: Warpgroups, groups: np.ndarray, in_flight: int) -> None:
    """Products arrive, all of which but the `in_flight` latest groups were committed."""
    waiting = []
    for product in state.products:
        here = np.isin(product.groups, groups) & (product.sequence < state.committed[product.groups] - in_flight)
        if here.any():
            for at, bits in product.operands:
                slots = machine.block_slot[product.groups[here] * GROUP]
                if not machine.shared.holds(at[here], slots, bits[here]):
                    raise machine.fault(
                        "shared memory changed, or a copy to it began, while tensor cores were reading it"
                    )
            _add(machine, product, here)
            product.groups, product.sequence = product.groups[~here], product.sequence[~here]
            product.part = product.part[~here]
            product.operands = [(at[~here], bits[~here]) for at, bits in product.operands]
        if len(product.groups):
            waiting.append(product)
    state.products = waiting


def _add(machine: Machine, product: Product, here: np.ndarray) -> None:
    """Adds a product to the registers of some of its warpgroups."""
    groups, part = product.groups[here], product.part[here]
    mask = np.zeros(machine.count, bool)
    mask.reshape(-1, GROUP)[groups] = True
    whole = mask.all()
    for number, register in enumerate(product.registers):
        j, i = divmod(number, 4)
        values = np.zeros((machine.count // GROUP, GROUP), np.float32)
        values[groups] = part[:, _ROW + 8 * (i // 2), _COLUMN + 8 * j + i % 2]
        total = values.ravel()
        if product.keeps:
            total = total + machine.each(register, "f32")
        machine.registers.put(register, total.view(machine.registers.dtype(register)), None if whole else mask)


EXECUTE = {"wgmma": execute}

"""Races between blocks: two blocks of a launch touch a byte of global memory, and one of them writes it.

Nothing orders the blocks of a launch, so this is a fault even if all goes well here, where some blocks run before others.
For every byte it is remembered which block wrote it in this launch and which block, or that several, read it. Reads are
many and rarely of what the launch writes: they are remembered in the first launch of a kernel, and later on if the kernel
turned out to write a buffer that it reads. A kernel with atomics or fences of global memory orders its blocks itself and is
let be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.phantom.memory import Memory
from tests.phantom.ptx import Instruction, Kernel, vector
from tests.phantom.types import TYPES

if TYPE_CHECKING:
    from tests.phantom.machine import Machine


@dataclass
class Known:
    """What is known of a kernel: whether it was launched, and whether it wrote a buffer that it read."""

    launched: bool = False
    in_place: bool = False


class BlockRaces:
    """The blocks' accesses in one launch.

    Args:
        memory: Global memory.
        kernel: What is launched.
        grid: Blocks in x, y, z.
    """

    def __init__(self, memory: Memory, kernel: Kernel, grid: tuple[int, int, int]) -> None:
        self._memory, self._grid = memory, grid
        self._known = vars(kernel).setdefault("known", Known())
        self._every_read = self._known.in_place or not self._known.launched
        self._base, (self._writer, self._reader) = memory.history(int(np.prod(grid)) + 1)
        self._several = self._base + int(np.prod(grid)) + 1
        self._unit = min((size for size in map(_bytes, kernel.instructions) if size), default=16)
        self._read: set[int] = set()
        self._written: set[int] = set()

    def finish(self) -> None:
        """The launch has ended."""
        self._known.launched = True

    def read(self, machine: Machine, at: np.ndarray, size: int, threads: np.ndarray) -> None:
        """Threads read elements `at` of so many bytes."""
        buffers = self._buffers(at, size)
        self._read |= buffers
        self._known.in_place |= bool(buffers & self._written)
        if not (self._every_read or self._known.in_place):
            return
        units, stamp = self._units(at, size), self._stamp(machine, threads)
        self._check(machine, self._writer.take(units), stamp, "read after a write of", at * size, threads)
        before = self._reader.take(units)
        self._reader[units] = stamp
        several = (self._reader.take(units) != stamp) | ((before > self._base) & (before != stamp))
        if several.any():
            self._reader[units[several]] = self._several

    def write(self, machine: Machine, at: np.ndarray, size: int, threads: np.ndarray) -> None:
        """Threads write elements `at` of so many bytes."""
        buffers = self._buffers(at, size)
        self._written |= buffers
        self._known.in_place |= bool(buffers & self._read)
        units, stamp = self._units(at, size), self._stamp(machine, threads)
        self._check(machine, self._writer.take(units), stamp, "write after a write of", at * size, threads)
        if self._every_read or self._known.in_place:
            self._check(machine, self._reader.take(units), stamp, "write after a read of", at * size, threads)
        self._writer[units] = stamp
        self._check(machine, self._writer.take(units), stamp, "write at the same time as", at * size, threads)

    def _buffers(self, at: np.ndarray, size: int) -> set[int]:
        return {self._memory.buffer_at(int(at[0]) * size), self._memory.buffer_at(int(at[-1]) * size)}

    def _stamp(self, machine: Machine, threads: np.ndarray) -> np.ndarray:
        """Block of each thread, as it is remembered: above what earlier launches left behind."""
        return (machine.block_number[threads].astype(np.int32) + np.int32(self._base + 1))[:, None]

    def _units(self, at: np.ndarray, size: int) -> np.ndarray:
        """What is remembered together, of some elements: (threads, units of each)."""
        each = size // self._unit
        if each == 1:
            return at[:, None]
        return at[:, None] * each + np.arange(each) if each else (at * size // self._unit)[:, None]

    def _check(
        self, machine: Machine, who: np.ndarray, stamp: np.ndarray, what: str, offset: np.ndarray, threads: np.ndarray
    ) -> None:
        race = (who > self._base) & (who != stamp)
        if race.any():
            threads_at_fault = race.any(axis=1)
            first = int(np.argmax(threads_at_fault))
            other = int(who[first][race[first]][0])
            address = np.zeros(machine.count, np.int64)
            address[threads] = self._memory.address(offset + self._unit * np.argmax(race, axis=1))
            raise machine.fault(f"race between blocks: {what} {self._name(other)}", threads[threads_at_fault], address)

    def _name(self, stamp: int) -> str:
        if stamp == self._several:
            return "several blocks"
        number = stamp - self._base - 1
        x, y, _ = self._grid
        return f"block {number % x},{number // x % y},{number // x // y}"


def order_blocks(kernel: Kernel) -> bool:
    """Whether a kernel has atomics or fences of global memory, with which blocks wait for each other."""
    return any(
        (at.opcode in ("atom", "red") and not at.has("shared"))
        or (at.opcode in ("membar", "fence") and at.has("gl", "gpu", "sys"))
        for at in kernel.instructions
    )


def _bytes(instruction: Instruction) -> int:
    """The least that an instruction accesses of global memory at once, 0 if it does not."""
    if instruction.opcode == "cp" and instruction.has("async") and len(instruction.operands) > 2:
        return int(instruction.operands[2])
    if instruction.opcode not in ("ld", "st", "ldu") or instruction.has("shared", "shared::cta", "local", "param"):
        return 0
    return TYPES[instruction.types()[-1]].itemsize * max(len(vector(operand)) for operand in instruction.operands)

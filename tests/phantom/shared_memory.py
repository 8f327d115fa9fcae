"""Shared memory of the blocks that run together, with the history that shows races.

Between two barriers no byte may be written by one thread and read or written by another. For every byte it is remembered
who wrote it last and who read it: a thread, several threads of a warp, or threads of several warps. A barrier of the
block forgets; `bar.warp.sync` orders what the threads of one warp did before and after it. A copy in flight writes from its
start until it lands, whatever barriers lie between.
"""

from collections.abc import Callable

import numpy as np

from tests.phantom.memory import all_true, by_thread, elements, set_true

NOBODY, SEVERAL = -1, -2
IN_FLIGHT = -1
"""In place of a count of barriers of a warp: what a copy is going to write."""

Complain = Callable[[str, np.ndarray | None], None]


class SharedMemory:
    """Shared memory of `blocks` blocks, `size` bytes each.

    Args:
        blocks: Blocks that run together.
        size: Bytes of one block's memory, red zones included.
        allowed: Which of them belong to an array.
        warp_of: Warp of each thread.
        unit: Bytes that are remembered together; a power of two that divides every access.
        check_races: Whether to look for races.
        complain: Raises an error, with the threads at fault.
        proxy: Whether tensor cores read it by themselves: they see what was written only when it was published.
    """

    def __init__(
        self,
        blocks: int,
        size: int,
        allowed: np.ndarray,
        warp_of: np.ndarray,
        unit: int,
        check_races: bool,
        complain: Complain,
        proxy: bool = False,
    ) -> None:
        self.size, self.allowed, self._unit = size, allowed, unit
        self.bytes = np.full(blocks * size, 0xA5, np.uint8)
        self.written = np.zeros(blocks * size, bool)
        self._warp_of, self._check, self._complain = warp_of, check_races, complain
        self._epoch = np.zeros(warp_of.max() + 1, np.int32)
        self._writer = np.full(blocks * size // unit, NOBODY, np.int32)
        self._write_epoch = np.zeros(blocks * size // unit, np.int32)
        self._reader = np.full(blocks * size // unit, NOBODY, np.int32)
        self._reader_warp = np.full(blocks * size // unit, NOBODY, np.int32)
        self._read_epoch = np.zeros(blocks * size // unit, np.int32)
        self._unpublished = np.full(blocks * size // unit, NOBODY, np.int32) if proxy else None
        self._has_copies = False

    def barrier(self, block: int) -> None:
        """All threads of a block have met: what they did before is ordered before what comes."""
        span = slice(block * self.size // self._unit, (block + 1) * self.size // self._unit)
        self._writer[span] = self._reader[span] = self._reader_warp[span] = NOBODY

    def warp_barrier(self, warps: np.ndarray) -> None:
        """The threads of these warps have met."""
        self._epoch[warps] += 1

    def read(self, at: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """Reads elements `at` of so many bytes, one for each thread, and remembers it: (threads, size) bytes."""
        flags = elements(self.written, size).take(at)
        if not all_true(flags):
            self._complain("read of shared memory that nobody wrote", threads[~by_thread(flags)])
        if self._check:
            units, warps = self._units(at, size), self._warp_of[threads]
            self._check_writers(units, threads, warps, "read")
            self._remember(self._reader, units, np.broadcast_to(threads[:, None], units.shape))
            self._remember(self._reader_warp, units, np.broadcast_to(warps[:, None], units.shape))
            self._read_epoch[units] = self._epoch[warps][:, None]
        return elements(self.bytes, size).take(at).view(np.uint8).reshape(-1, size)

    def write(self, at: np.ndarray, size: int, threads: np.ndarray, values: np.ndarray) -> None:
        """Writes elements `at`, one for each thread, and remembers it."""
        if self._check:
            units = self._units(at, size)
            self._check_write(units, threads)
            self._write_epoch[units] = self._epoch[self._warp_of[threads]][:, None]
        self._put(at, size, threads, values)

    def expect(self, at: np.ndarray, size: int, threads: np.ndarray) -> None:
        """Copies to elements `at` start, which overwrite them at any time until they land: nothing is there till then."""
        if self._check:
            units = self._units(at, size)
            self._check_write(units, threads)
            self._write_epoch[units] = IN_FLIGHT
            self._has_copies = True
        elements(self.written, size)[at] = 0

    def land(self, at: np.ndarray, threads: np.ndarray, values: np.ndarray) -> None:
        """Copies land that were expected: only now does a barrier make them visible to others."""
        size = values.itemsize
        if self._check:
            units = self._units(at, size)
            self._writer[units] = threads[:, None]
            self._write_epoch[units] = self._epoch[self._warp_of[threads]][:, None]
        self._put(at, size, threads, values)

    def publish(self, active: np.ndarray) -> None:
        """What these threads wrote can be seen by tensor cores."""
        if self._unpublished is not None:
            mine = np.flatnonzero(self._unpublished != NOBODY)
            self._unpublished[mine[active[self._unpublished[mine]]]] = NOBODY

    def read_tile(self, at: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """What a tensor core reads: 16-bit numbers at offsets `at` (groups, rows, k) of the memory of blocks `slots`."""
        if at.min() < 0 or at.max() + 2 > self.size or not self.allowed[at].all():
            self._complain("tensor cores read shared memory out of bounds", None)
        at = at + (slots * self.size)[:, None, None]
        if not all_true(self.written.take(at)):
            self._complain("tensor cores read shared memory that nobody wrote", None)
        units = np.unique(at // self._unit)
        if self._unpublished is not None and (self._unpublished[units] != NOBODY).any():
            self._complain("tensor cores read what was not published to them: fence.proxy.async is missing", None)
        if self._check:
            if (self._writer[units] != NOBODY).any():
                self._complain("shared-memory race: tensor cores read after a write, no barrier between", None)
            self._reader[units] = self._reader_warp[units] = SEVERAL
        return self.bytes.view(np.uint16)[at // 2]

    def holds(self, at: np.ndarray, slots: np.ndarray, bits: np.ndarray) -> bool:
        """Whether what `read_tile` gave still is there, and no copy to it is in flight."""
        at = at + (slots * self.size)[:, None, None]
        return bool(all_true(self.written.take(at)) and (self.bytes.view(np.uint16)[at // 2] == bits).all())

    def _units(self, at: np.ndarray, size: int) -> np.ndarray:
        """What is remembered together, of some elements: (threads, units of each)."""
        each = size // self._unit
        return at[:, None] if each == 1 else at[:, None] * each + np.arange(each)

    def _put(self, at: np.ndarray, size: int, threads: np.ndarray, values: np.ndarray) -> None:
        if self._unpublished is not None:
            self._unpublished[self._units(at, size)] = threads[:, None]
        elements(self.bytes, size)[at] = values
        set_true(self.written, size, at)

    def _check_write(self, units: np.ndarray, threads: np.ndarray) -> None:
        warps = self._warp_of[threads]
        if self._has_copies and (race := self._write_epoch.take(units) == IN_FLIGHT).any():
            self._complain("shared-memory race: write to where a copy is in flight", threads[race.any(axis=1)])
        self._check_writers(units, threads, warps, "write")
        reader = self._reader.take(units)
        race = (reader != NOBODY) & (reader != threads[:, None])
        if race.any():
            ordered = (self._reader_warp[units] == warps[:, None]) & (
                self._read_epoch[units] < self._epoch[warps][:, None]
            )
            race &= ~ordered
        if race.any():
            message = "shared-memory race: write after another thread's read, no barrier between"
            self._complain(message, threads[race.any(axis=1)])
        self._writer[units] = threads[:, None]
        if (self._writer.take(units) != threads[:, None]).any():
            self._complain("shared-memory race: two threads write one byte at once", None)

    def _check_writers(self, units: np.ndarray, threads: np.ndarray, warps: np.ndarray, doing: str) -> None:
        writer = self._writer.take(units)
        race = (writer != NOBODY) & (writer != threads[:, None])
        if race.any():
            same_warp = self._warp_of[np.maximum(writer, 0)] == warps[:, None]
            race &= ~(same_warp & (self._write_epoch[units] < self._epoch[warps][:, None]))
        if race.any():
            message = f"shared-memory race: {doing} after another thread's write, no barrier between"
            self._complain(message, threads[race.any(axis=1)])

    @staticmethod
    def _remember(history: np.ndarray, at: np.ndarray, who: np.ndarray) -> None:
        """Notes `who` at each byte: alone, or as one of several."""
        before = history.take(at)
        history[at] = who
        shared = (history.take(at) != who) | ((before != NOBODY) & (before != who))
        history[at[shared]] = SEVERAL

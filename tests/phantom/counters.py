"""What a launch did, counted: the numbers that stand in for a clock."""

from dataclasses import dataclass, field

import numpy as np

SECTOR = 32
"""Bytes that global memory moves at the least."""

BANKS = 32


@dataclass
class Counters:
    """Counts of one launch.

    Attributes:
        kernel: Its name.
        grid: Blocks in x, y, z.
        block: Threads in x, y, z.
        dynamic_shared: Bytes of shared memory that the launch asked for.
        instructions: Warp instructions by opcode.
        global_read: Bytes that threads asked for, cp.async included.
        global_written: Bytes that threads wrote.
        sectors_read: Sectors of 32 bytes that the read requests of warps touched.
        sectors_written: Likewise for writes.
        requests: Warp requests to global memory.
        shared_wavefronts: Passes that shared-memory requests took.
        shared_ideal: Passes that they would take without bank conflicts.
        tensor_core: mma instructions.
        barriers: Barriers of warps.
    """

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    dynamic_shared: int = 0
    instructions: dict[str, int] = field(default_factory=dict)
    global_read: int = 0
    global_written: int = 0
    sectors_read: int = 0
    sectors_written: int = 0
    requests: int = 0
    shared_wavefronts: int = 0
    shared_ideal: int = 0
    tensor_core: int = 0
    barriers: int = 0

    @property
    def bank_conflicts(self) -> int:
        """Passes to shared memory that conflicts added."""
        return self.shared_wavefronts - self.shared_ideal

    @property
    def moved(self) -> int:
        """Bytes between global memory and the chip, in whole sectors."""
        return SECTOR * (self.sectors_read + self.sectors_written)

    def count_global(self, address: np.ndarray, threads: np.ndarray, size: int, *, write: bool) -> None:
        """Counts one instruction's accesses: address of every thread that takes part, bytes of each, aligned to them."""
        sector = address // SECTOR
        _, distinct = _distinct(sector - sector.min(), threads, 32)
        sectors = int(np.count_nonzero(distinct))
        self.requests += int(np.count_nonzero(distinct.any(axis=1)))
        if write:
            self.global_written += size * len(address)
            self.sectors_written += sectors
        else:
            self.global_read += size * len(address)
            self.sectors_read += sectors

    def count_shared(self, offset: np.ndarray, threads: np.ndarray, size: int) -> None:
        """Counts one instruction's accesses to shared memory: 128 bytes at a time, so 16 bytes take quarters of a warp."""
        width = max(4, size)
        lanes = BANKS * 4 // width
        rows, distinct = _distinct(offset // width, threads, lanes)
        banks = rows % lanes + lanes * np.arange(len(rows))[:, None]
        passes = np.bincount(banks[distinct], minlength=rows.size).reshape(rows.shape).max(axis=1)
        self.shared_wavefronts += int(passes.sum())
        self.shared_ideal += int(np.count_nonzero(passes))


def _distinct(values: np.ndarray, threads: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts values, which are not negative, among every so many lanes; says which of them are new in their row."""
    rows = np.full((int(threads.max()) // lanes + 1, lanes), -1, np.int32)
    rows.reshape(-1)[threads] = values
    rows.sort(axis=1)
    distinct = rows >= 0
    distinct[:, 1:] &= rows[:, 1:] != rows[:, :-1]
    return rows, distinct

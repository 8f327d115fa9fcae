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

    def count_global(self, address: np.ndarray, warp: np.ndarray, size: int, *, write: bool) -> None:
        """Counts one instruction's accesses: address and warp of every lane that takes part, bytes of each."""
        first, last = address // SECTOR, (address + size - 1) // SECTOR
        pairs = np.concatenate([warp * (1 << 40) + first, warp * (1 << 40) + last])
        sectors = len(np.unique(pairs))
        self.requests += len(np.unique(warp))
        if write:
            self.global_written += size * len(address)
            self.sectors_written += sectors
        else:
            self.global_read += size * len(address)
            self.sectors_read += sectors

    def count_shared(self, offset: np.ndarray, warp: np.ndarray, lane: np.ndarray, size: int) -> None:
        """Counts one instruction's accesses to shared memory: of 8 and 16 bytes, half and quarter warps at a time."""
        words = max(1, size // 4)
        group = warp * words + lane * words // 32
        word = (offset[:, None] // 4 + np.arange(words)).ravel()
        group = np.repeat(group, words)
        distinct = np.unique(group * (1 << 32) + word)
        group, bank = distinct >> 32, distinct % BANKS
        keys, counts = np.unique(group * BANKS + bank, return_counts=True)
        owners = keys // BANKS
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        self.shared_wavefronts += int(np.maximum.reduceat(counts, starts).sum())
        self.shared_ideal += len(starts)

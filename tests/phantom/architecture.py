"""Which GPU the phantom is: an A100, or with `PHANTOM_ARCHITECTURE=sm_90` an H100."""

import os
from dataclasses import dataclass

VARIABLE = "PHANTOM_ARCHITECTURE"


@dataclass(frozen=True)
class Architecture:
    """What MAX and its kernels ask a GPU for.

    Attributes:
        name: As compilers call it.
        capability: Compute capability.
        multiprocessors: How many.
        clock: In kHz.
        memory_clock: In kHz.
        bus: Bits of the memory's.
        cache: Bytes of the level-2 cache.
        shared: KiB of shared memory of a multiprocessor; a block may ask for one less.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: int
    memory_clock: int
    bus: int
    cache: int
    shared: int

    @property
    def most_shared(self) -> int:
        """Bytes of shared memory that a block may ask for."""
        return (self.shared - 1) << 10

    def attributes(self) -> dict[int, int]:
        """Device attributes by their numbers in the driver's header; the others are 0."""
        return {
            1: 1024,  # threads of a block
            2: 1024,  # ... in x
            3: 1024,
            4: 64,
            5: 2**31 - 1,  # blocks of a grid in x
            6: 65535,
            7: 65535,
            8: 48 << 10,  # shared memory of a block
            9: 64 << 10,  # constant memory
            10: 32,  # lanes of a warp
            12: 65536,  # registers of a block
            13: self.clock,
            16: self.multiprocessors,
            31: 1,  # concurrent kernels
            36: self.memory_clock,
            37: self.bus,
            38: self.cache,
            39: 2048,  # threads of a multiprocessor
            41: 1,  # unified addresses
            75: self.capability[0],
            76: self.capability[1],
            81: self.shared << 10,  # shared memory of a multiprocessor
            82: 65536,  # its registers
            90: 1,
            95: 1,
            97: self.most_shared,
            106: 32,  # blocks of a multiprocessor
        }


A100 = Architecture("sm_80", (8, 0), 108, 1_410_000, 1_215_000, 5120, 40 << 20, 164)
H100 = Architecture("sm_90", (9, 0), 132, 1_980_000, 2_619_000, 5120, 50 << 20, 228)

CURRENT = {gpu.name: gpu for gpu in (A100, H100)}[os.environ.get(VARIABLE, A100.name)]
"""What the phantom of this process is."""

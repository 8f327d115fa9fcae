"""The least time that an amount of work takes on this machine: its arithmetic and its memory, measured once per run."""

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from math import log2
from pathlib import Path

from max_whisper.target import cpu_target

PROGRAM = Path(__file__).with_suffix(".mojo")


@dataclass(frozen=True)
class Ceilings:
    """What all threads together can do.

    Attributes:
        flops: Float32 operations per second in registers.
        reading: Bytes of an array to bytes per second when it is read over and over.
    """

    flops: float
    reading: dict[int, float]

    def bandwidth(self, size: float) -> float:
        """Bytes per second of an array of about this size: a kernel that is called again finds its operands in a cache."""
        return self.reading[min(self.reading, key=lambda known: abs(log2(known) - log2(max(size, 1))))]

    def bound(self, flops: float, bytes: float) -> tuple[float, str]:
        """Seconds that an amount of work takes at least, and what bounds it: "GFLOP/s" or "GB/s"."""
        arithmetic, memory = flops / self.flops, bytes / self.bandwidth(bytes)
        return max((arithmetic, "GFLOP/s"), (memory, "GB/s"))


@cache
def ceilings() -> Ceilings:
    """Measures, for the CPU that the kernels are compiled for."""
    target = cpu_target()
    mojo = Path(sys.executable).with_name("mojo")
    command = [mojo, "run", *(["--target-cpu", target] if target != "host" else []), PROGRAM]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = [line.split() for line in output.splitlines()]
    reading = {int(size): float(rate) for kind, size, rate in (line for line in words if line[0] == "read")}
    return Ceilings(next(float(line[1]) for line in words if line[0] == "flops"), reading)

"""The least time that an amount of work takes on this machine: its arithmetic and its memory, measured once per run."""

import platform
import re
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
        flops: Operations per second in registers, by the type of the factors: float32, and what a tile unit multiplies.
        reading: Bytes of an array to bytes per second when it is read over and over.
    """

    flops: dict[str, float]
    reading: dict[int, float]

    def bandwidth(self, size: float) -> float:
        """Bytes per second of an array of about this size: a kernel that is called again finds its operands in a cache."""
        return self.reading[min(self.reading, key=lambda known: abs(log2(known) - log2(max(size, 1))))]

    def arithmetic(self, dtype: str) -> float:
        """Operations per second of products of many rows of float32 with weights of a dtype.

        A tile unit takes bfloat16 and int8 as they are, float16 and float32 in 3 products of bfloat16.
        """
        tiles = self.flops.get("bfloat16", 0)
        least = tiles / 3 if dtype in ("float16", "float32") else self.flops.get(dtype, 0)
        return max(self.flops["float32"], least)

    def describe(self) -> str:
        """The ceilings in words."""
        arithmetic = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in self.flops.items())
        reading = ", ".join(f"{size / 2**20:g} MB {rate / 1e9:.0f}" for size, rate in self.reading.items())
        return f"ceilings: {arithmetic}; GB/s from arrays of {reading}"

    def bound(self, flops: float, bytes: float, dtype: str = "float32") -> tuple[float, str]:
        """Seconds that an amount of work takes at least, and what bounds it: "GFLOP/s" or "GB/s"."""
        arithmetic, memory = flops / self.arithmetic(dtype), bytes / self.bandwidth(bytes)
        return max((arithmetic, "GFLOP/s"), (memory, "GB/s"))


@cache
def ceilings() -> Ceilings:
    """Measures, for the CPU that the kernels are compiled for."""
    target = cpu_target()
    mojo = Path(sys.executable).with_name("mojo")
    root = PROGRAM.parents[1]
    command = [mojo, "run", "-I", root, *(["--target-cpu", target] if target != "host" else []), PROGRAM]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = [line.split() for line in output.splitlines()]
    reading = {int(size): float(rate) for kind, size, rate in (line for line in words if line[0] == "read")}
    return Ceilings({line[1]: float(line[2]) for line in words if line[0] == "flops"}, reading)


def machine() -> str:
    """The processor, what it can, and how much memory."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    flags = set(info.split())
    known = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags
    ]
    count = len(re.findall(r"^processor", info, re.MULTILINE))
    return f"{model[1] if model else platform.machine()}, {count} virtual cores, {' '.join(known)}"

"""The only place that knows what this machine is: which CPU level to compile for, which devices there are.

The host's model name can lie (a virtual machine may hide AMX behind an older name, or name a CPU whose features it masks),
so the level is chosen from the features that the kernel of the operating system reports.
"""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from max_whisper.errors import DeviceError

TARGET_VARIABLE = "MAX_WHISPER_CPU_TARGET"
"""Environment variable that asks for a level of CPU_LEVELS, for testing a lesser one."""


DTYPES = ("float32", "bfloat16", "int8")
"""Element types that weights can have."""


@dataclass(frozen=True)
class CpuLevel:
    """A set of CPU features that the kernels have a body for.

    Attributes:
        name: What the compiler calls it.
        features: Flags of /proc/cpuinfo that it needs beside those of the levels below.
        body: The body that the kernels choose there.
    """

    name: str
    features: frozenset[str]
    body: str


CPU_LEVELS = (
    CpuLevel("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}), "AVX-512"),
    CpuLevel("x86-64-v3", frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}), "AVX2"),
    CpuLevel("x86-64-v2", frozenset({"sse4_2", "ssse3", "popcnt"}), "SSE"),
)
"""The x86-64 levels, best first. On another architecture there is one, the host itself."""


@cache
def cpu_features() -> frozenset[str]:
    """The CPU's features, as the operating system names them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_target() -> str:
    """Chooses what to compile for: a level of CPU_LEVELS, or "host" on other architectures.

    Raises:
        DeviceError: `$MAX_WHISPER_CPU_TARGET` names no level, or one that this CPU does not have.
    """
    wanted = os.environ.get(TARGET_VARIABLE)
    if platform.machine() != "x86_64":
        if wanted:
            raise DeviceError(f"{TARGET_VARIABLE}={wanted}: levels exist for x86-64 only, this is {platform.machine()}")
        return "host"
    if wanted:
        levels = [level for level in CPU_LEVELS if level.name == wanted]
        if not levels:
            known = ", ".join(level.name for level in CPU_LEVELS)
            raise DeviceError(f"{TARGET_VARIABLE}={wanted}: expected one of {known}")
        missing = levels[0].features - cpu_features()
        if missing:
            raise DeviceError(f"{TARGET_VARIABLE}={wanted}: this CPU lacks {', '.join(sorted(missing))}; unset it")
        return wanted
    for level in CPU_LEVELS:
        if level.features <= cpu_features():
            return level.name
    raise DeviceError(
        "this CPU has no SSE4.2, the least the kernels are compiled for; use an x86-64 CPU of 2009 or later"
    )


@cache
def use_cpu_target() -> str:
    """Makes MAX compile CPU kernels for `cpu_target()` in this process; call it before the first compilation."""
    from max import driver

    target = cpu_target()
    if target != "host":
        driver.set_virtual_cpu_target(target)
    return target


def check_device(device: str, dtype: str) -> None:
    """Refuses a device or dtype that is not there, before anything is computed.

    Raises:
        DeviceError: The device is unknown or absent, or the dtype is not supported on it.
    """
    if device not in ("cpu", "gpu", "auto"):
        raise DeviceError(f"device {device!r}: expected cpu, gpu or auto")
    if dtype not in DTYPES:
        raise DeviceError(f"dtype {dtype!r}: expected {', '.join(DTYPES)}")
    if device == "gpu":
        from max.driver import accelerator_count

        found = accelerator_count()
        if found == 0:
            raise DeviceError("device 'gpu': MAX finds no accelerator on this machine; use device 'cpu'")
        raise DeviceError(
            f"device 'gpu': {found} found, but the kernels have CPU bodies only, so far; use device 'cpu'"
        )


def describe() -> dict[str, str]:
    """What `max-whisper info` prints about this machine."""
    from max.driver import accelerator_count

    target = cpu_target()
    body = next((level.body for level in CPU_LEVELS if level.name == target), "portable SIMD")
    return {
        "cpu": f"{platform.machine()}, {os.cpu_count()} threads",
        "cpu target": f"{target} ({body} kernels)",
        "gpus": str(accelerator_count()),
    }

"""The only place that knows what this machine is: which CPU level to compile for, which devices there are.

The host's model name can lie (a virtual machine may hide AMX behind an older name, or name a CPU whose features it masks),
so the level is chosen from the features that the kernel of the operating system reports.
"""

import ctypes
import os
import platform
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from max_whisper.errors import DeviceError

TARGET_VARIABLE = "MAX_WHISPER_CPU_TARGET"
"""Environment variable that asks for a level of CPU_LEVELS, for testing a lesser one."""


DTYPES = {"cpu": ("float32", "float16", "bfloat16", "int8"), "gpu": ("float16", "bfloat16", "float32")}
"""Element types that weights can have on each device; the first is the default, but see `choose`."""

GPU_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "gfx942", "gfx1100")
"""GPU architectures that graphs are known to compile for; newer NVIDIA ones run the same kernels."""

OLDEST_NVIDIA = 80
"""The compute capability, times ten, from which on there are asynchronous copies and the tensor-core shapes we use."""


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


_SAPPHIRE_RAPIDS = """
    amx_tile amx_bf16 amx_int8 avx512_fp16 avx512vbmi avx512_vbmi2 avx512_bitalg avx512_vpopcntdq avx512ifma
    avx_vnni gfni vaes vpclmulqdq sha_ni
"""

CPU_LEVELS = (
    CpuLevel("sapphirerapids", frozenset(_SAPPHIRE_RAPIDS.split()), "AMX"),
    CpuLevel("cooperlake", frozenset({"avx512_bf16"}), "AVX-512 with BF16 and VNNI"),
    CpuLevel("cascadelake", frozenset({"avx512_vnni"}), "AVX-512 with VNNI"),
    CpuLevel("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}), "AVX-512"),
    CpuLevel("x86-64-v3", frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}), "AVX2"),
    CpuLevel("x86-64-v2", frozenset({"sse4_2", "ssse3", "popcnt"}), "SSE"),
)
"""The x86-64 levels, best first. On another architecture there is one, the host itself."""

EMULATIONS = {"emulated-amx": "amx", "emulated-avx512": "avx512"}
"""For tests, beside CPU_LEVELS: the host's level with dot product instructions it lacks computed in plain memory, and what
`kernels/cpu/operand.mojo` calls them."""


def needed_features(name: str) -> frozenset[str]:
    """All flags of /proc/cpuinfo that a level needs: its own and those of the levels below."""
    names = [level.name for level in CPU_LEVELS]
    return frozenset().union(*(level.features for level in CPU_LEVELS[names.index(name) :]))


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


@cache
def amx_refusal() -> str | None:
    """Asks the operating system, once, to let this process use the tile registers of AMX; without, they are illegal.

    Returns:
        None if it agreed, else its reason.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # <asm/unistd_64.h>, <asm/prctl.h>, Intel's XTILEDATA
    arguments = (ctypes.c_long(value) for value in (arch_prctl, request_permission, tile_data))
    if libc.syscall(*arguments) == 0:
        return None
    return os.strerror(ctypes.get_errno())


def cpu_target(device: str = "cpu") -> str:
    """Chooses what to compile CPU code for: a level of CPU_LEVELS, or "host" on other architectures.

    Args:
        device: Where the kernels run. On a GPU, CPU code only launches them: it is compiled for AVX2, so that graphs can be
            built on one machine and used on another.

    A level with AMX is chosen only if the operating system lets the process use it; if not, a warning says so.

    Raises:
        DeviceError: `$MAX_WHISPER_CPU_TARGET` names no level, or one that this machine does not have.
    """
    wanted = os.environ.get(TARGET_VARIABLE)
    if wanted in EMULATIONS:
        return wanted
    if wanted and platform.machine() != "x86_64":
        raise DeviceError(f"{TARGET_VARIABLE}={wanted}: levels exist for x86-64 only, this is {platform.machine()}")
    if wanted:
        if wanted not in {level.name for level in CPU_LEVELS}:
            known = ", ".join(level.name for level in CPU_LEVELS)
            raise DeviceError(f"{TARGET_VARIABLE}={wanted}: expected one of {known}")
        missing = needed_features(wanted) - cpu_features()
        if missing:
            raise DeviceError(f"{TARGET_VARIABLE}={wanted}: this CPU lacks {', '.join(sorted(missing))}; unset it")
        if "amx_tile" in needed_features(wanted) and (reason := amx_refusal()):
            raise DeviceError(f"{TARGET_VARIABLE}={wanted}: the operating system refuses AMX ({reason}); unset it")
        return wanted
    return host_level(device)


@dataclass(frozen=True)
class Factors:
    """What the encoder's attention makes of its factors before it multiplies them."""

    dtype: str
    """bfloat16, or int16 with a scale."""
    terms: int = 1
    """How many numbers stand for one: 1 rounds, 2 of bfloat16 keep 16 bits, for float32's results."""


def multiplies_bfloat16() -> bool:
    """Whether CPU code is compiled for instructions that multiply bfloat16: attention then rounds to it what it can."""
    return cpu_target() in ("sapphirerapids", "cooperlake", *EMULATIONS)


def has_tile_unit() -> bool:
    """Whether CPU code is compiled for AMX, where three products of bfloat16 are faster than one of float32."""
    return cpu_target() in ("sapphirerapids", "emulated-amx")


def attention_factors(*, rounded: bool) -> Factors | None:
    """What the encoder's attention makes of its factors; None where it multiplies float32.

    Args:
        rounded: Whether the model's weights are less exact than those that Whisper was published with.
    """
    if not rounded:
        return Factors("bfloat16", terms=2) if has_tile_unit() else None
    if multiplies_bfloat16():
        return Factors("bfloat16")
    return Factors("int16") if cpu_target() != "host" else None  # every x86 CPU multiplies pairs of int16


def host_level(device: str = "cpu") -> str:
    """The best level of CPU_LEVELS that this machine has, AVX2 at most for a GPU; "host" on other architectures."""
    if platform.machine() != "x86_64":
        return "host"
    levels = CPU_LEVELS if device == "cpu" else CPU_LEVELS[-2:]
    for level in levels:
        if not needed_features(level.name) <= cpu_features():
            continue
        if "amx_tile" in level.features and (reason := amx_refusal()):
            message = f"this CPU has AMX, but the operating system refuses it ({reason}): computing with AVX-512"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            continue
        return level.name
    raise DeviceError(
        "this CPU has no SSE4.2, the least the kernels are compiled for; use an x86-64 CPU of 2009 or later"
    )


@cache
def use_cpu_target(device: str = "cpu") -> str:
    """Makes MAX compile CPU code for `cpu_target(device)` in this process; call it before the first compilation."""
    from max import driver

    target = cpu_target(device)
    level = host_level(device) if target in EMULATIONS else target
    if level != "host":
        driver.set_virtual_cpu_target(level)
    return target


def choose(device: str = "cpu", dtype: str | None = None, stored: str = "float32") -> tuple[str, str]:
    """Decides where to compute and in which numbers; refuses what is not there, before anything is computed.

    Args:
        device: "cpu", "gpu", or "auto" for a GPU if there is one.
        dtype: Element type of the weights; None for the device's own: float16 on a GPU; on a CPU what rounds nothing,
            float16 for a checkpoint that is stored in it, else float32. A CPU computes in float32 with either.
        stored: Element type of the checkpoint.

    Returns:
        "cpu" or "gpu", and the dtype.

    Raises:
        DeviceError: The device is unknown, absent or too old, the dtype is not supported on it, or as `cpu_target`.
    """
    if device not in ("cpu", "gpu", "auto"):
        raise DeviceError(f"device {device!r}: expected cpu, gpu or auto")
    known = {name for names in DTYPES.values() for name in names}
    if dtype is not None and dtype not in known:
        raise DeviceError(f"dtype {dtype!r}: expected {', '.join(sorted(known))}")
    if device == "auto":
        usable = accelerator_count() > 0 and dtype in (None, *DTYPES["gpu"]) and _obstacle() is None
        device = "gpu" if usable else "cpu"
    elif device == "gpu":
        if accelerator_count() == 0:
            raise DeviceError(f"device 'gpu': {_why_no_gpu()}; use device 'cpu'")
        if obstacle := _obstacle():
            raise DeviceError(f"device 'gpu': {obstacle}; use device 'cpu'")
    dtype = dtype or ("float16" if stored == "float16" else DTYPES[device][0])
    if dtype not in DTYPES[device]:
        raise DeviceError(f"dtype {dtype!r} on device {device!r}: expected {', '.join(DTYPES[device])}")
    cpu_target(device)  # a level that was asked for and cannot be had is refused now, not after the weights are packed
    return device, dtype


def choose_target(architecture: str, dtype: str | None = None) -> tuple[str, str]:
    """As `choose`, for a GPU that need not be here: refuses what the kernels are not written for."""
    if architecture not in GPU_TARGETS:
        raise DeviceError(f"target {architecture!r}: expected one of {', '.join(GPU_TARGETS)}")
    dtype = dtype or DTYPES["gpu"][0]
    if dtype not in DTYPES["gpu"]:
        raise DeviceError(f"dtype {dtype!r} on {architecture}: expected {', '.join(DTYPES['gpu'])}")
    return "gpu", dtype


def accelerator_count() -> int:
    """GPUs that MAX can use."""
    from max import driver

    return driver.accelerator_count()


@cache
def gpu_architecture() -> str:
    """The first GPU's architecture, as compilers call it: "sm_80", "gfx942"."""
    from max.driver import accelerator_architecture_name

    return accelerator_architecture_name().split(":")[0].removesuffix("a")  # sm_90a, gfx942:sramecc+


def architecture_obstacle(architecture: str) -> str | None:
    """Says why the kernels cannot run on a GPU architecture, if they cannot."""
    number = architecture.removeprefix("sm_").rstrip("af")
    if number != architecture and number.isdigit():
        if int(number) >= OLDEST_NVIDIA:
            return None
        return f"{architecture} is older than sm_{OLDEST_NVIDIA} (NVIDIA Ampere), for which the kernels are written"
    if architecture in GPU_TARGETS:
        return None
    return f"the kernels are not written for {architecture}; they are for {', '.join(GPU_TARGETS)}"


def _obstacle() -> str | None:
    """Says why the GPU that is there cannot be used, if it cannot: MAX opens it, which a driver too old does not let it."""
    from max.driver import Accelerator

    try:
        Accelerator()
    except Exception as error:  # whatever MAX or the driver says
        reason = " ".join(str(error).split())[:200]
        return f"MAX cannot open it ({reason}); MAX {_max_version()} needs a current driver: {_driver()} is installed"
    return architecture_obstacle(gpu_architecture())


def _why_no_gpu() -> str:
    """Says what was looked for, and which part of it this machine lacks."""
    driver = _driver()
    if driver is None:
        return "looked for the drivers of NVIDIA (/proc/driver/nvidia) and AMD (/dev/kfd): there is neither"
    return (
        f"{driver} is installed, but MAX {_max_version()} finds no GPU through it: it may be too old, or the GPU hidden"
    )


def _driver() -> str | None:
    """The GPU driver that is installed, if any, with its version where it tells."""
    nvidia = Path("/proc/driver/nvidia/version")
    if nvidia.exists():
        version = re.search(r"\d+\.\d+(\.\d+)?", nvidia.read_text())
        return f"NVIDIA driver {version[0] if version else 'of unknown version'}"
    return "an AMD driver" if Path("/dev/kfd").exists() else None


def _max_version() -> str:
    from importlib.metadata import version

    return version("max")


def describe() -> dict[str, str]:
    """What `max-whisper info` prints about this machine."""
    target = cpu_target()
    body = next((level.body for level in CPU_LEVELS if level.name == target), "portable SIMD")
    return {
        "cpu": f"{platform.machine()}, {os.cpu_count()} threads",
        "cpu target": f"{target} ({body} kernels)",
        "gpus": _describe_gpus(),
    }


def _describe_gpus() -> str:
    if (count := accelerator_count()) == 0:
        return f"none: {_why_no_gpu()}"
    if obstacle := _obstacle():
        return f"{count}, not usable: {obstacle}"
    from max.driver import Accelerator

    names = [Accelerator(number).model_name for number in range(count)]
    return f"{', '.join(names)} ({gpu_architecture()})"

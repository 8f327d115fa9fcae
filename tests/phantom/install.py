"""Puts the phantom GPU into this process, before MAX is imported: then `Accelerator()` is there."""

import atexit
import ctypes
import mmap
import os
import sys
from pathlib import Path

from tests.phantom import lines
from tests.phantom.driver import library
from tests.phantom.driver.cuda import Driver
from tests.phantom.memory import Memory

_INTEGERS = [ctypes.c_int64] * library.ARGUMENTS
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, *_INTEGERS)

_MAP_FIXED_NOREPLACE = 0x100000

REAL_GPUS = (Path("/dev/nvidia0"), Path("/dev/kfd"))
"""What the drivers of NVIDIA and AMD put into the file system."""

installed: Driver | None = None
"""The phantom GPU's driver, once it is installed in this process."""

_kept: list[object] = []
"""Functions and libraries that the runtime calls for the rest of the process."""


def is_needed() -> bool:
    """Whether this machine has no real GPU."""
    return not any(path.exists() for path in REAL_GPUS)


def install(cache: Path, *, with_lines: bool = False) -> Driver:
    """Installs the phantom GPU for the rest of the process.

    Args:
        cache: Where its libraries and what MAX compiles for it are kept. It must be its own: what is compiled for the
            phantom is PTX, which no real GPU's driver would be given.
        with_lines: Let `lines.find_out` do what it says.

    Returns:
        The driver: its counters, faults and options.

    Raises:
        RuntimeError: MAX has been imported already.
    """
    if "max" in sys.modules:
        raise RuntimeError("MAX is imported already: the phantom GPU must be installed before")
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["MODULAR_CACHE_DIR"] = str(cache / "kernels")
    lines.folder = cache / "lines" if with_lines else None
    os.environ["MODULAR_NVPTX_COMPILER_PATH"] = str(Path(__file__).parent / "driver" / "keep_ptx.sh")
    os.environ["PHANTOM_PTX_FOLDER"] = str(cache / "ptx")
    (cache / "ptx").mkdir(exist_ok=True)

    files = library.build(cache)
    names = library.function_names()
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
    if libc.mmap(library.TABLE, 8 * len(names), mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != library.TABLE:
        raise RuntimeError(f"no memory can be mapped at {library.TABLE:#x}, where the driver's table is to be")
    global installed
    driver = installed = Driver(memory=Memory())
    for slot, name in enumerate(names):
        function = _FUNCTION(driver.function(name))
        ctypes.c_void_p.from_address(library.TABLE + 8 * slot).value = ctypes.cast(function, ctypes.c_void_p).value
        _kept.append(function)
    atexit.register(_retire, len(names))
    _kept.extend(ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL) for file in files.values())
    return driver


def _retire(slots: int) -> None:
    """The runtime outlives Python: what it still calls then does nothing and succeeds, as `sched_yield` does."""
    nothing = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
    for slot in range(slots):
        ctypes.c_void_p.from_address(library.TABLE + 8 * slot).value = nothing

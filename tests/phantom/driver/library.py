"""Builds the shared libraries that the runtime loads as `libcuda.so.1` and `libnvidia-ml.so.1`.

A library consists of trampolines, written in Mojo, one for each function that the runtime looks up:

    runtime -> cuMemAlloc_v2(a0 .. a10) in the library -> the address in slot i of a table -> a function in Python

The table is a page at a fixed address, filled in by `install`. All arguments of the driver's functions are integers or
pointers, at most eleven of them; a trampoline passes eleven on whatever it was called with. Both libraries are one, with
all functions, under two names: it is built once.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

TABLE = 0x6FFF_0000_0000
"""Address of the table of functions."""

ARGUMENTS = 11
LIBRARIES = ("libnvidia-ml.so.1", "libcuda.so.1")
"""What the runtime loads, the longest name first."""

_HEADER = """
comptime Function = def({integers}) thin abi("C") -> Int
comptime Table = Pointer[Function, MutUntrackedOrigin]
"""

_TRAMPOLINE = """
@export("{name}")
def {name}({parameters}) abi("C") -> Int:
    return Table(unsafe_from_address={address})[]({arguments})
"""


def function_names() -> list[str]:
    """Names of the driver's functions that MAX's runtime knows, in the order of the table."""
    specification = find_spec("modular")
    assert specification is not None
    assert specification.submodule_search_locations is not None
    runtime = Path(specification.submodule_search_locations[0]) / "lib" / "libAsyncRTMojoBindings.so"
    found = set(re.findall(rb"\b(?:cu[A-Z]|nvml[A-Z])[A-Za-z0-9_]+", runtime.read_bytes()))
    return sorted(name.decode() for name in found if len(name) < 60)


def build(cache: Path) -> dict[str, Path]:
    """Builds the libraries, or finds them in a cache folder.

    Returns:
        The file of each library.
    """
    names = function_names()
    digest = hashlib.sha256(Path(__file__).read_bytes() + "\n".join(names).encode()).hexdigest()[:16]
    folder = cache / f"driver-{digest}"
    files = {library: folder / library for library in LIBRARIES}
    if not all(file.is_file() for file in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            source, built = Path(work) / "trampolines.mojo", Path(work) / LIBRARIES[0]
            source.write_text(_source(names))
            mojo = str(Path(sys.executable).with_name("mojo"))
            options = ["--emit", "shared-lib", "-Xlinker", f"-soname={LIBRARIES[0]}", "-o", str(built)]
            subprocess.run([mojo, "build", *options, str(source)], check=True)
            image, built_as = built.read_bytes(), LIBRARIES[0].encode() + b"\0"
            for library, file in files.items():
                built.write_bytes(image.replace(built_as, library.encode().ljust(len(built_as), b"\0")))
                built.replace(file)
    return files


def _source(names: list[str]) -> str:
    parameters = ", ".join(f"a{i}: Int" for i in range(ARGUMENTS))
    arguments = ", ".join(f"a{i}" for i in range(ARGUMENTS))
    functions = [
        _TRAMPOLINE.format(name=name, parameters=parameters, arguments=arguments, address=hex(TABLE + 8 * slot))
        for slot, name in enumerate(names)
    ]
    return _HEADER.format(integers=", ".join(["Int"] * ARGUMENTS)) + "".join(functions)

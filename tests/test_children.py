"""A child process is the Python of its parent, whichever is first on PATH, also after an import of `max.nn`.

MAX's extensions write PYTHONEXECUTABLE into the environment of the process, behind the back of `os.environ`.
"""

import ctypes
import subprocess
import sys
from collections.abc import Iterator

import pytest

from max_whisper.config import ModelDimensions
from max_whisper.cross import compile_elsewhere
from max_whisper.errors import DeviceError

ELSEWHERE = b"/nowhere/bin/python3"
TINY_EN = ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)


@pytest.fixture
def misled() -> Iterator[None]:
    """What `max.nn` does."""
    libc = ctypes.CDLL(None)
    libc.setenv(b"PYTHONEXECUTABLE", ELSEWHERE, 1)
    yield
    libc.unsetenv(b"PYTHONEXECUTABLE")


@pytest.mark.usefixtures("misled")
def test_compiling_for_another_device(tmp_path):
    with pytest.raises(DeviceError, match="float17"):  # it came as far as that
        compile_elsewhere(TINY_EN, "float17", "sm_80", tmp_path / "graphs.mef")


def test_benchmarks_of_the_built_in_ops():
    """They import `max.nn`, in the process of the tests too."""
    child = """if True:
        import subprocess, sys
        import bench.gpu.builtin
        subprocess.run([sys.executable, "-c", "import sys; print(sys.prefix)"])
    """
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", child], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{sys.prefix}\n"

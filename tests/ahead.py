"""Compiles the ops that tests name in a process of its own (this file, run), which leaves them in MAX's cache.

The tests' process finds them there. It has better things to do meanwhile, and needs more than one thread (`one_thread.py`).
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module

from tests.one_thread import start_one_thread

KERNELS = "tests.kernels.test_"

_compiler: subprocess.Popen | None = None


def start(selected: Iterable[str], together: str | None) -> None:
    """Starts compiling what the modules of kernels' tests have named, if any of them is going to ask for it.

    Args:
        selected: The modules of the tests that are going to run.
        together: A model whose graphs are compiled with the ops; see `models.py`.
    """
    modules = [name for name in sorted(sys.modules) if name.startswith(KERNELS)]
    wanted = together or any(name.startswith(KERNELS) for name in selected)
    if wanted and len(modules) > 1:  # one has so few ops that compiling them takes no longer than finding them
        global _compiler
        command = [sys.executable, "-m", "tests.ahead", together or "", *modules]
        _compiler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@cache
def wait() -> None:
    """Returns when it is done.

    Raises:
        RuntimeError: It failed, and so would the tests' process.
    """
    if _compiler:
        errors = _compiler.communicate()[1]
        if _compiler.returncode:
            raise RuntimeError(f"the kernels' ops do not compile: {errors[-4000:]}")


def stop() -> None:
    """Ends it: the tests are over."""
    if _compiler:
        _compiler.kill()
        _compiler.wait()


def _compile(together: str, *modules: str) -> None:
    from max_whisper import eager
    from tests import models

    for module in modules:
        import_module(module)
    if together:
        models.compile_with_ops(together)
    eager.compile_prepared()


if __name__ == "__main__":
    start_one_thread()
    _compile(*sys.argv[1:])
    # MAX 26.7 now and then aborts a process that compiled, when it ends: what failed before has raised.
    os._exit(0)

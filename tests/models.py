"""The real models that tests share: loaded once, compiled beside the other tests or together with them.

Compiling a model takes more than a minute of one core, half a minute of it whatever is compiled. A test file names its
models,

    MODELS = ["tiny.en", "base"]

and those of the selected tests are made ready as soon as it is known which tests they are; see `conftest.py`. tiny.en is
compiled as users compile it, into the cache, in a process of its own (this file, run), while another compiles the kernels'
ops (`ahead.py`). With these, most of whose code is the same, another model is compiled. The dtype is the one that users
get: a kernel's test (`test_float16_weights_change_no_bit`) shows that float32 would compute the same.
"""

import subprocess
import sys
from functools import cache
from typing import Any
from unittest.mock import patch

from tests import ahead
from tests.one_thread import start_one_thread

ALONE = "tiny.en"
DTYPE = "float16"

_builder: subprocess.Popen | None = None
_together: str | None = None


def prepare(names: set[str]) -> str | None:
    """Starts compiling what is to be compiled alone, and names what is to be compiled with the kernels' ops.

    Returns:
        The latter.
    """
    global _builder, _together
    if ALONE in names:
        _builder = subprocess.Popen([sys.executable, "-m", "tests.models"], stderr=subprocess.DEVNULL)
    if others := sorted(names - {ALONE}):
        (_together,) = others
        compile_with_ops(_together)
    return _together


def compile_with_ops(name: str) -> None:
    """Names a model's graphs to be compiled with the kernels' ops."""
    from max_whisper import compiled, eager, packed, runtime
    from max_whisper.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(name)
    eager.prepare_graphs(
        "cpu",
        lambda module: compiled.add_graphs(module, checkpoint.dims, "cpu", DTYPE),
        lambda: runtime.put_weights(packed.load(checkpoint, DTYPE)),
    )


def stop() -> None:
    """Ends what is being compiled: the tests are over."""
    if _builder:
        _builder.kill()
        _builder.wait()


@cache
def load(name: str) -> Any:
    """A model, once its graphs are compiled."""
    from max_whisper import compiled, eager, runtime
    from max_whisper.model import load_model

    if name == _together:
        ahead.wait()
        with patch.object(compiled, "build"), patch.object(runtime, "load", lambda *_: eager.graphs("cpu")):
            return load_model(name, dtype=DTYPE)
    if _builder:
        _builder.wait()
    return load_model(name, dtype=DTYPE)  # compiles it, if the other process failed: the error is seen here


def _build() -> None:
    from max_whisper import compiled, packed
    from max_whisper.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(ALONE)
    compiled.build(checkpoint.dims, dtype=DTYPE)
    packed.load(checkpoint, DTYPE)


if __name__ == "__main__":
    start_one_thread()
    _build()

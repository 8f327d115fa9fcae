"""The real models that tests share: loaded once, and compiled beside the other tests.

Compiling a model takes about a minute of one core, and so do the ops of the kernels' tests. A test file names its models,

    MODELS = [("tiny.en", "float16")]

and those of the selected tests are compiled in a process of its own (this file, run) from the moment that it is known
which tests they are; see `conftest.py`. Whoever calls `load` waits for its model only. The dtype is the one that users
get: a kernel's test (`test_float16_weights_change_no_bit`) shows that float32 would compute the same.
"""

import json
import subprocess
import sys
from functools import cache
from typing import Any

_builder: subprocess.Popen | None = None
_built: set[tuple[str, str]] = set()


def start_builds(models: list[tuple[str, str]]) -> None:
    """Starts compiling what is not in the cache yet, one after the other."""
    global _builder
    _builder = subprocess.Popen(
        [sys.executable, "-m", "tests.models", json.dumps(models)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def stop_builds() -> None:
    """Ends what is being compiled: the tests are over."""
    if _builder:
        _builder.kill()
        _builder.wait()


@cache
def load(name: str, dtype: str = "float16") -> Any:
    """A model, once its graphs are compiled."""
    from max_whisper.model import load_model

    while _builder and _builder.stdout and (name, dtype) not in _built:
        line = _builder.stdout.readline()
        if not line:
            break  # it failed, or was not asked for this one: compiled below, where an error can be seen
        _built.add(tuple(json.loads(line)))
    return load_model(name, dtype=dtype)


def _build(models: list[list[str]]) -> None:
    from max_whisper import compiled, packed
    from max_whisper.checkpoint import load_checkpoint

    for name, dtype in models:
        checkpoint = load_checkpoint(name)
        compiled.build(checkpoint.dims, dtype=dtype)
        packed.load(checkpoint, dtype)
        print(json.dumps([name, dtype]), flush=True)


if __name__ == "__main__":
    _build(json.loads(sys.argv[1]))

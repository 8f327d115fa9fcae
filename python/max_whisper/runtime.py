"""The process's one MAX session: MAX refuses a second one with other options.

Compiled graphs are loaded through the core of `max.engine`, which that package wraps for people. Importing the wrapper
brings in the graph builder, the profiler and asyncio: 0.2 s and 34 MB that a process without a graph to build can spare.
MAX is pinned to one version, so what its core is called does not change under us.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from max._core.engine import InferenceSession as CoreSession
from max._core.engine import Model, read
from max.driver import CPU, Buffer

from max_whisper.target import use_cpu_target

if TYPE_CHECKING:
    from max.engine import InferenceSession


@cache
def session() -> "InferenceSession":
    """A CPU session that compiles for `target.cpu_target()`."""
    from max.engine import InferenceSession

    use_cpu_target()
    return InferenceSession(devices=[CPU()])


@cache
def _core_session() -> CoreSession:
    return CoreSession([CPU()], [], 0)


def load(mef: Path, weights: Mapping[str, np.ndarray]) -> dict[str, Model]:
    """Loads compiled graphs.

    Args:
        mef: The file they were exported to.
        weights: The arrays they read, C-contiguous. They are not copied: keep them as long as the graphs.

    Returns:
        The graphs by name.
    """
    for name, array in weights.items():
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous: the kernels would read it wrong")
    core = _core_session()
    return {model.name: model for model in core._load_all(core._wrap_compiled(read(str(mef))), weights)}


def execute(model: Model, *inputs: np.ndarray | Buffer) -> list[Buffer]:
    """Runs a loaded graph.

    Raises:
        ValueError: An input is not contiguous, or a kernel refuses it.
    """
    return model._execute_device_tensors([_as_buffer(value) for value in inputs])


def _as_buffer(value: np.ndarray | Buffer) -> Buffer:
    if isinstance(value, Buffer):
        return value
    if not value.flags.c_contiguous:
        raise ValueError(f"an input of shape {value.shape} is not contiguous: the kernels would read it wrong")
    return Buffer.from_dlpack(value)

"""The process's one MAX session: MAX refuses a second one with other options.

Compiled graphs are loaded through the core of `max.engine`, which that package wraps for people. Importing the wrapper
brings in the graph builder, the profiler and asyncio: 0.2 s and 34 MB that a process without a graph to build can spare.
MAX is pinned to one version, so what its core is called does not change under us.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import max._core
import numpy as np
from max._core.engine import InferenceSession as CoreSession
from max._core.engine import Model, read
from max.driver import CPU, Buffer
from max.dtype import DType

from max_whisper.resident import release_code
from max_whisper.target import use_cpu_target

if TYPE_CHECKING:
    from max.engine import InferenceSession

_PACKAGES = Path(max._core.__file__).resolve().parents[1]
MAX_LIBRARIES = (_PACKAGES / "max", _PACKAGES / "modular")
"""Folders of MAX's libraries."""


@cache
def session() -> "InferenceSession":
    """A CPU session that compiles for `target.cpu_target()`."""
    from max.engine import InferenceSession

    use_cpu_target()
    return InferenceSession(devices=[CPU()])


@cache
def _core_session() -> CoreSession:
    return CoreSession([CPU()], [], 0)


def load(mef: Path, weights: Mapping[str, np.ndarray | Buffer]) -> dict[str, Model]:
    """Loads compiled graphs.

    Args:
        mef: The file they were exported to.
        weights: The arrays they read, C-contiguous. They are not copied: keep them as long as the graphs.

    Returns:
        The graphs by name.
    """
    for name, array in weights.items():
        if not _is_contiguous(array):
            raise ValueError(f"{name} is not contiguous: the kernels would read it wrong")
    core = _core_session()
    registry = {name: _as_weight(array) for name, array in weights.items()}
    models = {model.name: model for model in core._load_all(core._wrap_compiled(read(str(mef))), registry)}
    release_code(*MAX_LIBRARIES)
    return models


def execute(model: Model, *inputs: np.ndarray | Buffer) -> list[Buffer]:
    """Runs a loaded graph.

    Raises:
        ValueError: An input is not contiguous, or a kernel refuses it.
    """
    buffers = [as_buffer(value) for value in inputs]
    return model._execute_device_tensors(buffers)


def as_buffer(value: np.ndarray | Buffer) -> Buffer:
    """Wraps an array without copying it; uint16 stands for bfloat16, which NumPy lacks.

    Raises:
        ValueError: The array is not contiguous.
    """
    if isinstance(value, Buffer):
        return value
    if not _is_contiguous(value):
        raise ValueError(f"an input of shape {value.shape} is not contiguous: the kernels would read it wrong")
    buffer = Buffer.from_dlpack(value)
    return buffer.view(DType.bfloat16) if value.dtype == np.uint16 else buffer


def _as_weight(value: np.ndarray | Buffer) -> np.ndarray | Buffer:
    """Makes what MAX reads where it lies: arrays if it knows their dtype, else buffers.

    A buffer of a read-only array would be a copy. Weights are mapped for this process alone, and no kernel writes to them.
    """
    if isinstance(value, Buffer) or value.dtype != np.uint16:
        return value
    value = value.view()
    value.flags.writeable = True
    return as_buffer(value)


def _is_contiguous(value: np.ndarray | Buffer) -> bool:
    return value.is_contiguous if isinstance(value, Buffer) else bool(value.flags.c_contiguous)

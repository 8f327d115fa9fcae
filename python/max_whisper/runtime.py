"""The process's one MAX session, on the CPU or on a GPU and the CPU: MAX refuses a second one with other options.

Compiled graphs are loaded through the core of `max.engine`, which that package wraps for people. Importing the wrapper
brings in the graph builder, the profiler and asyncio: 0.2 s and 34 MB that a process without a graph to build can spare.
MAX is pinned to one version, so what its core is called does not change under us.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import max._core
import numpy as np
from max._core.engine import InferenceSession as CoreSession
from max._core.engine import Model, read
from max.driver import CPU, Accelerator, Buffer, Device
from max.dtype import DType

from max_whisper.errors import DeviceError
from max_whisper.resident import release_code
from max_whisper.target import EMULATIONS, use_cpu_target
from max_whisper.timers import late_timers

if TYPE_CHECKING:
    from max.engine import InferenceSession

_PACKAGES = Path(max._core.__file__).resolve().parents[1]
MAX_LIBRARIES = (_PACKAGES / "max", _PACKAGES / "modular")
"""Folders of MAX's libraries."""


_used: set[str] = set()
"""The device that this process computes on, once it is known: "cpu" or "gpu"."""


def use(device: str = "cpu") -> Device:
    """Settles which device this process computes on, and returns it. A process with a GPU has its CPU as well.

    Raises:
        DeviceError: The process computes on the CPU already.
    """
    if device == "gpu" and "cpu" in _used:
        raise DeviceError("device 'gpu': this process computes on its CPU already; load the model for the GPU first")
    _used.add("gpu" if "gpu" in _used else device)
    return Accelerator() if device == "gpu" else CPU()


def _devices() -> list[Device]:
    return [Accelerator(), CPU()] if "gpu" in _used else [CPU()]


@cache
def session() -> "InferenceSession":
    """The session that compiles, for the device in use and for `target.cpu_target()`."""
    from max.engine import InferenceSession

    use()
    target = use_cpu_target("gpu" if "gpu" in _used else "cpu")
    made = InferenceSession(devices=_devices())
    if target in EMULATIONS:
        made._set_mojo_define("MAX_WHISPER_EMULATE", EMULATIONS[target])
    return made


@cache
def _core_session() -> CoreSession:
    return CoreSession(_devices(), [], 0)


def load(mef: Path, weights: Mapping[str, np.ndarray], device: str = "cpu") -> dict[str, Model]:
    """Loads compiled graphs.

    Args:
        mef: The file they were exported to.
        weights: The arrays they read, C-contiguous. A CPU reads them where they lie: keep them as long as the graphs. A GPU
            gets a copy.
        device: Where the graphs run.

    Returns:
        The graphs by name.

    Raises:
        DeviceError: The GPU's memory does not hold the weights.
    """
    core = _core_session()
    with room_for(f"the weights, {sum(array.nbytes for array in weights.values()) >> 20} MB,"):
        registry = put_weights(weights, device)
        models = {model.name: model for model in core._load_all(core._wrap_compiled(read(str(mef))), registry)}
    release_code(*MAX_LIBRARIES)
    return models


def put_weights(weights: Mapping[str, np.ndarray], device: str = "cpu") -> dict[str, np.ndarray | Buffer]:
    """Puts weights where graphs read them: what MAX calls a registry. See `load`."""
    on = use(device)
    for name, array in weights.items():
        if not _is_contiguous(array):
            raise ValueError(f"{name} is not contiguous: the kernels would read it wrong")
    return {name: as_buffer(array).to(on) if device == "gpu" else _as_weight(array) for name, array in weights.items()}


_executed: set[bool] = set()
"""Empty until the first execution, which starts MAX's logger."""


def execute(model: Model, *inputs: np.ndarray | Buffer) -> list[Buffer]:
    """Runs a loaded graph.

    Raises:
        ValueError: An input is not contiguous, or a kernel refuses it.
        DeviceError: The GPU's memory is full.
    """
    buffers = [as_buffer(value) for value in inputs]
    with room_for(f"the graph {model.name!r}"), nullcontext() if _executed else late_timers():
        _executed.add(True)
        return model._execute_device_tensors(buffers)


def capture(model: Model, key: int, *inputs: Buffer) -> list[Buffer]:
    """Makes a device graph of all that a loaded graph launches on a GPU, without running it.

    Args:
        model: The loaded graph.
        key: What to call it.
        inputs: The buffers that it will read and write whenever it is replayed, on the GPU.

    Returns:
        The buffers that every replay writes its results to.

    Raises:
        ValueError: A kernel refuses an input.
        DeviceError: The GPU's memory is full.
    """
    with room_for(f"what is captured of the graph {model.name!r}"):
        return model._capture([key], list(inputs))


def replay(model: Model, key: int, *inputs: Buffer) -> None:
    """Launches what was captured; it runs later, in its turn.

    Args:
        model: The loaded graph.
        key: What `capture` called it.
        inputs: The same buffers.
    """
    model._replay([key], list(inputs))


def release(model: Model, key: int) -> None:
    """Forgets what was captured."""
    model._release_captured_graph([key])


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Says in our words that a GPU's memory is full.

    Args:
        what: What is being put there.

    Raises:
        DeviceError: Something inside ran out of memory.
    """
    try:
        yield
    except Exception as error:  # MAX has no type of its own for it
        if re.search(r"out.?of.?memory", str(error), re.IGNORECASE) is None:
            raise
        raise DeviceError(
            f"the GPU's memory is full: {what} did not fit; use a smaller model, dtype float16, fewer windows at once, "
            "or end other programs on the GPU"
        ) from error


def put(array: np.ndarray | Buffer, device: Device) -> Buffer:
    """Puts an array on a device: on a GPU a copy, on a CPU the array itself.

    Raises:
        ValueError: The array is not contiguous.
        DeviceError: The GPU's memory is full.
    """
    buffer = as_buffer(array)
    if device.is_host:
        return buffer
    with room_for(f"an input of shape {tuple(buffer.shape)}"):
        return buffer.to(device)


def rows(buffer: Buffer, begin: int, end: int) -> Buffer:
    """Some rows of a buffer, where they are."""
    return buffer[(slice(begin, end), *[slice(None)] * (buffer.rank - 1))]


def as_buffer(value: np.ndarray | Buffer) -> Buffer:
    """Wraps an array without copying it; uint16 stands for bfloat16, which NumPy lacks.

    Raises:
        ValueError: The array is not contiguous.
    """
    if isinstance(value, Buffer):
        if not value.is_contiguous:
            raise ValueError(
                f"an input of shape {tuple(value.shape)} is not contiguous: the kernels would read it wrong"
            )
        return value
    if not _is_contiguous(value):
        raise ValueError(f"an input of shape {value.shape} is not contiguous: the kernels would read it wrong")
    buffer = Buffer.from_dlpack(value)
    return buffer.view(DType.bfloat16) if value.dtype == np.uint16 else buffer


def _as_weight(value: np.ndarray) -> np.ndarray | Buffer:
    """Makes what MAX reads where it lies: arrays if it knows their dtype, else buffers.

    A buffer of a read-only array would be a copy. Weights are mapped for this process alone, and no kernel writes to them.
    """
    if value.dtype != np.uint16:
        return value
    value = value.view()
    value.flags.writeable = True
    return as_buffer(value)


def _is_contiguous(value: np.ndarray) -> bool:
    return bool(value.flags.c_contiguous)

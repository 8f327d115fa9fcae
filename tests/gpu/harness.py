"""Runs one op on the GPU of the process, a real one or the phantom, against its float64 reference."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from max.driver import CPU, Accelerator, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import BufferType, DeviceRef, Graph, KernelLibrary, Module, TensorType

from max_whisper.ops import KERNELS
from tests.phantom import install
from tests.phantom.counters import Counters
from tests.phantom.launch import Options

DTYPES = {"f32": DType.float32, "f16": DType.float16, "bf16": DType.bfloat16}
_ALL = DTYPES | {"i32": DType.int32, "u8": DType.uint8}

TOLERANCE: dict[str, dict[str, Any]] = {
    "f32": {"rtol": 2e-5, "atol": 2e-5},  # sums of products of unit scale: sqrt(K) * 2**-24 each
    "f16": {"rtol": 2**-11, "atol": 2e-5},  # float32 sums, then one rounding to 11 bits
    "bf16": {"rtol": 2**-8, "atol": 2e-5},  # ... to 8 bits
}

_prepared: set[tuple] = set()
_models: dict[tuple, Model] = {}


def round_to(name: str, array: np.ndarray) -> np.ndarray:
    """Rounds to a dtype; bfloat16 comes as the uint16 of its bits."""
    if name == "bf16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return array.astype(DTYPES[name].to_numpy())


def widen(array: np.ndarray) -> np.ndarray:
    """Float64 of what `round_to` gave; integers stay."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def prepare(op: Callable, signature: str, **parameters: Any) -> None:
    """Names an op that is going to be run: all are compiled by the first run."""
    arguments = tuple((_ALL[name], int(rank)) for name, rank in re.findall(r"(\w+)\[(\d+)\]", signature))
    _prepared.add((op, arguments, tuple(sorted(parameters.items()))))


def execute(op: Callable, arrays: Sequence[np.ndarray], count: bool = False, **parameters: Any) -> list[np.ndarray]:
    """Runs an op; raises what it raises, and what the phantom found.

    Args:
        op: A function of `max_whisper.ops`.
        arrays: Its arguments; uint16 stands for bfloat16.
        count: Whether the phantom counts, which makes it slower.
        parameters: The op's keyword arguments.

    Returns:
        Its results, then the arguments that it updates in place.
    """
    buffers = []
    for array in arrays:
        buffer = Buffer.from_numpy(np.ascontiguousarray(array))
        if array.dtype == np.uint16:
            buffer = buffer.view(DType.bfloat16, array.shape)
        buffers.append(buffer if len(buffers) in getattr(op, "on_host", ()) else buffer.to(Accelerator()))
    call = (op, tuple((b.dtype, len(b.shape)) for b in buffers), tuple(sorted(parameters.items())))
    if call not in _models:
        _compile(_prepared | {call})
    phantom = install.installed
    if phantom:
        phantom.options = Options(count=count)
        phantom.launches.clear()
        phantom.faults.clear()
    try:
        in_place = [buffers[i] for i in sorted(getattr(op, "in_place", ()))]
        results = [result.to(CPU()) for result in [*_models[call].execute(*buffers), *in_place]]
    finally:
        if phantom and phantom.faults:
            raise AssertionError(phantom.faults[0])
    return [(r.view(DType.uint16, r.shape) if r.dtype == DType.bfloat16 else r).to_numpy() for r in results]


def check(op: Callable, name: str, arrays: Sequence[np.ndarray], reference: Callable, **parameters: Any) -> None:
    """Compares an op with its reference, which takes the same arguments in float64."""
    results = execute(op, arrays, **parameters)
    expected = reference(*map(widen, arrays), **parameters)
    for result, reference_result in zip(results, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert result.shape == reference_result.shape
        np.testing.assert_allclose(widen(result), reference_result, **TOLERANCE[name])


def counted(op: Callable, arrays: Sequence[np.ndarray], **parameters: Any) -> Counters:
    """What the one launch of an op did on the phantom GPU."""
    (launch,) = all_counted(op, arrays, **parameters)
    return launch


def all_counted(op: Callable, arrays: Sequence[np.ndarray], **parameters: Any) -> list[Counters]:
    """What the launches of an op did on the phantom GPU."""
    if install.installed is None:
        pytest.skip("a real GPU does not count")
    execute(op, arrays, count=True, **parameters)
    return install.installed.launches


def refused(op: Callable, arrays: Sequence[np.ndarray], message: str, **parameters: Any) -> None:
    """Asserts that an op refuses its arguments on the host, before anything is launched."""
    with pytest.raises(ValueError, match=re.escape(message)):
        execute(op, arrays, **parameters)
    assert not (install.installed and install.installed.launches)


def _compile(calls: set[tuple]) -> None:
    ordered = sorted(calls - _models.keys(), key=lambda call: (call[0].__qualname__, str(call[1:])))
    names = {f"op{number}": call for number, call in enumerate(ordered)}  # always the same: MAX's cache goes by them
    library = KernelLibrary()
    library.load_paths([KERNELS])
    module = Module()
    for name, (op, signature, parameters) in names.items():
        types = [
            (BufferType if i in getattr(op, "in_place", ()) else TensorType)(
                dtype,
                [f"x{i}_{axis}" for axis in range(rank)],
                device=DeviceRef.CPU() if i in getattr(op, "on_host", ()) else DeviceRef.GPU(),
            )
            for i, (dtype, rank) in enumerate(signature)
        ]
        with Graph(name, input_types=types, kernel_library=library, module=module) as graph:
            values = [v.buffer if isinstance(v.type, BufferType) else v.tensor for v in graph.inputs]
            results = op(*values, **dict(parameters))
            graph.output(*(results if isinstance(results, tuple) else (results,)))
    compiled = _session().compile(module, custom_extensions=library.library_paths())
    for name, model in _session().init_all(compiled).items():
        _models[names[name]] = model


@cache
def _session() -> InferenceSession:
    return InferenceSession(devices=[Accelerator(), CPU()])

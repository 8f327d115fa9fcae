"""Calls one kernel on NumPy arrays: for trying a kernel, for its tests and for its benchmark.

    y = eager.call(ops.linear, x, pack_linear(w), b, gelu=True)

The graph around the op has symbolic shapes, so one compilation serves every shape of the same ranks and dtypes. Whoever
calls many ops names them first, and the first call compiles them all in little more than the time for one:

    eager.prepare(ops.linear, "f32[2] f32[3] f32[1]", gelu=True)

An op runs on a GPU where `device="gpu"` says so. A process computes on the device that it names first (`runtime.use`).
Whole graphs can ride along: `prepare_graphs`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import Model
from max.graph import BufferType, DeviceRef, TensorType, TensorValue

from max_whisper.graphs.module import GraphModule
from max_whisper.runtime import as_buffer, execute, session, use

Op = Callable[..., TensorValue | tuple[TensorValue, ...]]
Signature = tuple[tuple[str, DType, int], ...]
Call = tuple[Op, str, Signature, tuple[tuple[str, Any], ...]]

_DTYPES = {
    "f32": DType.float32,
    "f16": DType.float16,
    "bf16": DType.bfloat16,
    "i32": DType.int32,
    "i16": DType.int16,
    "i8": DType.int8,
    "u8": DType.uint8,
}

_prepared: set[Call] = set()
_models: dict[Call, Model] = {}
_prepared_graphs: dict[str, tuple[Callable[[GraphModule], None], Callable[[], Mapping[str, Any]]]] = {}
_graphs: dict[str, dict[str, Model]] = {}
_weights: dict[str, Mapping[str, Any]] = {}


def prepare(op: Op, signature: str, *, device: str = "cpu", **parameters: Any) -> None:
    """Names an op that is going to be called; it is compiled with all others that were named, by the first call.

    Args:
        op: A function of `max_whisper.ops`, or any function on graph values.
        signature: Dtype and rank of each tensor argument, like "f32[2] i32[1]".
        device: Where it will run, "cpu" or "gpu".
        parameters: The op's keyword arguments.
    """
    arguments = tuple(
        ("cpu" if position in _host_arguments(op) else device, _DTYPES[name], int(rank))
        for position, (name, rank) in enumerate(re.findall(r"(\w+)\[(\d+)\]", signature))
    )
    _prepared.add((op, device, arguments, tuple(sorted(parameters.items()))))


def prepare_graphs(device: str, add: Callable[[GraphModule], None], weights: Callable[[], Mapping[str, Any]]) -> None:
    """Names the graphs of a model that is going to run; they are compiled with the ops that were named.

    Args:
        device: Where they will run, "cpu" or "gpu": one model each.
        add: Adds them to a module.
        weights: Gives their weights by name; they are kept.
    """
    _prepared_graphs[device] = add, weights


def graphs(device: str) -> dict[str, Model]:
    """The graphs that `prepare_graphs` named, by name."""
    if device not in _graphs:
        compile_prepared(device)
    return _graphs[device]


def compile_prepared(device: str = "cpu") -> None:
    """Compiles all ops and graphs that were named for a device, now."""
    use(device)
    _compile({named for named in _prepared if named[1] == device}, device)


def compile_op(op: Op, buffers: list[Buffer], parameters: dict[str, Any]) -> Model:
    """Returns the compiled graph that holds one op.

    Args:
        op: A function on graph values.
        buffers: Arguments like those it will be called with, on the devices where it takes them.
        parameters: Keyword arguments of the op.
    """
    places = ["cpu" if b.device.is_host else "gpu" for b in buffers]
    arguments = tuple((place, b.dtype, len(b.shape)) for place, b in zip(places, buffers, strict=True))
    device = "gpu" if "gpu" in places else "cpu"
    call = (op, device, arguments, tuple(sorted(parameters.items())))
    if call not in _models:
        _compile({named for named in _prepared if named[1] == device} | {call}, device)
    return _models[call]


def call(op: Op, *arrays: np.ndarray, device: str = "cpu", **parameters: Any) -> Any:
    """Runs one op.

    Args:
        op: A function of `max_whisper.ops`, or any function on graph values.
        arrays: Its tensor arguments; uint16 stands for bfloat16, which NumPy lacks, in the results too.
        device: Where it runs, "cpu" or "gpu".
        parameters: Its keyword arguments; tensors must be positional.

    Returns:
        An array, or a tuple of arrays for an op with several results.

    Raises:
        ValueError: An argument has a shape or dtype the op refuses.
    """
    buffers = to_buffers(op, arrays, device)
    results = [to_array(result) for result in execute(compile_op(op, buffers, parameters), *buffers)]
    return results[0] if len(results) == 1 else tuple(results)


def to_buffers(op: Op, arrays: Sequence[np.ndarray], device: str = "cpu") -> list[Buffer]:
    """Puts an op's arguments where it takes them.

    Raises:
        ValueError: The op would update a copy: an array that it updates in place is not contiguous.
    """
    on, host = use(device), _host_arguments(op)
    for position in getattr(op, "in_place", ()):
        if device == "cpu" and not arrays[position].flags.c_contiguous:
            raise ValueError(f"argument {position} is updated in place, and not contiguous: pass a contiguous array")
    buffers = [as_buffer(np.ascontiguousarray(array)) for array in arrays]
    return [buffer if position in host else buffer.to(on) for position, buffer in enumerate(buffers)]


def to_array(result: Buffer) -> np.ndarray:
    """Copies a result to an array; bfloat16 to the uint16 of its bits."""
    if result.dtype == DType.bfloat16:
        result = result.to(CPU()).view(DType.uint16, result.shape)
    return result.to_numpy()


def in_place(*positions: int) -> Callable[[Op], Op]:
    """Marks arguments of an op that it updates in place, as `ops.cached_attention` does its caches."""

    def mark(op: Op) -> Op:
        op.in_place = frozenset(positions)  # type: ignore[attr-defined]
        return op

    return mark


def on_host(*positions: int) -> Callable[[Op], Op]:
    """Marks arguments of an op that it takes on the host wherever it runs, as `ops.log_mel` does its padding."""

    def mark(op: Op) -> Op:
        op.on_host = frozenset(positions)  # type: ignore[attr-defined]
        return op

    return mark


def _host_arguments(op: Op) -> frozenset[int]:
    return getattr(op, "on_host", frozenset())


def _compile(calls: set[Call], device: str) -> None:
    ordered = sorted(calls - _models.keys(), key=lambda call: (call[0].__module__, call[0].__qualname__, str(call[1:])))
    names = {f"op{number}": call for number, call in enumerate(ordered)}  # always the same: MAX's cache goes by them
    module = GraphModule()
    for name, (op, _, signature, parameters) in names.items():
        with module.graph(name, [_type(op, i, *argument) for i, argument in enumerate(signature)]) as graph:
            values = [v.buffer if isinstance(v.type, BufferType) else v.tensor for v in graph.inputs]
            results = op(*values, **dict(parameters))
            graph.output(*(results if isinstance(results, tuple) else (results,)))
    if with_graphs := device in _prepared_graphs and device not in _graphs:
        add, weights = _prepared_graphs[device]
        add(module)
        _weights[device] = weights()
    models = session().init_all(module.compile(), weights_registry=_weights[device] if with_graphs else {})
    _models.update((call, models.pop(name)) for name, call in names.items())
    if with_graphs:
        _graphs[device] = models


def _type(op: Op, position: int, place: str, dtype: DType, rank: int) -> TensorType | BufferType:
    kind = BufferType if position in getattr(op, "in_place", ()) else TensorType
    device = DeviceRef.GPU() if place == "gpu" else DeviceRef.CPU()
    return kind(dtype, [f"x{position}_{axis}" for axis in range(rank)], device=device)

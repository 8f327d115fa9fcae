"""Calls one kernel on NumPy arrays: for trying a kernel, for its tests and for its benchmark.

    y = eager.call(ops.linear, x, pack_linear(w), b, gelu=True)

The graph around the op has symbolic shapes, so one compilation serves every shape of the same ranks and dtypes. Whoever
calls many ops names them first, and the first call compiles them all in little more than the time for one:

    eager.prepare(ops.linear, "f32[2] f32[3] f32[1]", gelu=True)
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.graph import BufferType, DeviceRef, TensorType, TensorValue

from max_whisper.graphs.module import GraphModule
from max_whisper.runtime import as_buffer, session

Op = Callable[..., TensorValue | tuple[TensorValue, ...]]
Signature = tuple[tuple[DType, int], ...]
Call = tuple[Op, Signature, tuple[tuple[str, Any], ...]]

_DTYPES = {
    "f32": DType.float32,
    "f16": DType.float16,
    "bf16": DType.bfloat16,
    "i32": DType.int32,
    "i8": DType.int8,
    "u8": DType.uint8,
}

_prepared: set[Call] = set()
_models: dict[Call, Model] = {}


def prepare(op: Op, signature: str, **parameters: Any) -> None:
    """Names an op that is going to be called; it is compiled with all others that were named, by the first call.

    Args:
        op: A function of `max_whisper.ops`, or any function on graph values.
        signature: Dtype and rank of each tensor argument, like "f32[2] i32[1]".
        parameters: The op's keyword arguments.
    """
    arguments = tuple((_DTYPES[name], int(rank)) for name, rank in re.findall(r"(\w+)\[(\d+)\]", signature))
    _prepared.add((op, arguments, tuple(sorted(parameters.items()))))


def compile_op(op: Op, buffers: list[Buffer], parameters: dict[str, Any]) -> Model:
    """Returns the compiled graph that holds one op.

    Args:
        op: A function on graph values.
        buffers: Arguments like those it will be called with.
        parameters: Keyword arguments of the op.
    """
    call = (op, tuple((b.dtype, len(b.shape)) for b in buffers), tuple(sorted(parameters.items())))
    if call not in _models:
        _compile(_prepared | {call})
    return _models[call]


def call(op: Op, *arrays: np.ndarray, **parameters: Any) -> Any:
    """Runs one op.

    Args:
        op: A function of `max_whisper.ops`, or any function on graph values.
        arrays: Its tensor arguments; uint16 stands for bfloat16, which NumPy lacks.
        parameters: Its keyword arguments; tensors must be positional.

    Returns:
        An array, or a tuple of arrays for an op with several results.

    Raises:
        ValueError: An argument has a shape or dtype the op refuses.
    """
    buffers = [as_buffer(np.ascontiguousarray(array)) for array in arrays]
    results = [result.to_numpy() for result in compile_op(op, buffers, parameters).execute(*buffers)]
    return results[0] if len(results) == 1 else tuple(results)


def in_place(*positions: int) -> Callable[[Op], Op]:
    """Marks arguments of an op that it updates in place, as `ops.cached_attention` does its caches."""

    def mark(op: Op) -> Op:
        op.in_place = frozenset(positions)  # type: ignore[attr-defined]
        return op

    return mark


def _compile(calls: set[Call]) -> None:
    names = {f"op{number}": call for number, call in enumerate(calls - _models.keys())}
    module = GraphModule()
    for name, (op, signature, parameters) in names.items():
        with module.graph(name, [_type(op, i, *argument) for i, argument in enumerate(signature)]) as graph:
            values = [v.buffer if isinstance(v.type, BufferType) else v.tensor for v in graph.inputs]
            results = op(*values, **dict(parameters))
            graph.output(*(results if isinstance(results, tuple) else (results,)))
    for name, model in session().init_all(module.compile()).items():
        _models[names[name]] = model


def _type(op: Op, position: int, dtype: DType, rank: int) -> TensorType | BufferType:
    kind = BufferType if position in getattr(op, "in_place", ()) else TensorType
    return kind(dtype, [f"x{position}_{axis}" for axis in range(rank)], device=DeviceRef.CPU())

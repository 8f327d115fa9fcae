"""Calls one kernel on NumPy arrays: for trying a kernel, for its tests and for its benchmark.

    y = eager.call(ops.linear, x, pack_linear(w), b, gelu=True)

The graph around the op has symbolic shapes, so one compilation serves every shape of the same rank and dtype.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType, TensorValue

from .ops import KERNELS

Op = Callable[..., TensorValue | tuple[TensorValue, ...]]


@cache
def session() -> InferenceSession:
    """The one CPU session of the process; MAX refuses a second with other options."""
    return InferenceSession(devices=[CPU()])


@cache
def compile_op(op: Op, signature: tuple[tuple[DType, int], ...], parameters: tuple[tuple[str, Any], ...]) -> Model:
    """Compiles a graph that holds one op.

    Args:
        op: A function on graph values.
        signature: Dtype and rank of each argument.
        parameters: Keyword arguments of the op that are known when it is compiled.

    Returns:
        The model; its inputs are the op's arguments.
    """
    types = [
        TensorType(dtype, [f"x{i}_{axis}" for axis in range(rank)], device=DeviceRef.CPU())
        for i, (dtype, rank) in enumerate(signature)
    ]
    with Graph(getattr(op, "__name__", "op"), input_types=types, custom_extensions=[KERNELS]) as graph:
        results = op(*(value.tensor for value in graph.inputs), **dict(parameters))
        graph.output(*(results if isinstance(results, tuple) else (results,)))
    return session().load(graph)


def call(op: Op, *arrays: np.ndarray, **parameters: Any) -> Any:
    """Runs one op.

    Args:
        op: A function of `max_whisper.ops`, or any function on graph values.
        arrays: Its tensor arguments.
        parameters: Its keyword arguments; tensors must be positional.

    Returns:
        An array, or a tuple of arrays for an op with several results.

    Raises:
        ValueError: An argument has a shape or dtype the op refuses.
    """
    buffers = [Buffer.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    model = compile_op(op, tuple((b.dtype, len(b.shape)) for b in buffers), tuple(sorted(parameters.items())))
    results = tuple(result.to_numpy() for result in model.execute(*buffers))
    return results if len(results) > 1 else results[0]

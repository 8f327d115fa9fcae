"""How the functions of this package put an op into the current graph."""

from collections.abc import Sequence

from max.dtype import DType
from max.graph import BufferValue, DimLike, TensorType, TensorValue, ops

Parameter = bool | int | float | str | DType


def call(
    name: str, values: Sequence[TensorValue], out_types: Sequence[TensorType], **parameters: Parameter
) -> list[TensorValue]:
    """Adds an op that only reads its operands, on the device of the first; returns its results."""
    results = ops.custom(name, device=values[0].device, values=values, out_types=out_types, parameters=parameters)
    return [result.tensor for result in results]


def call_in_place(
    name: str,
    values: Sequence[TensorValue | BufferValue],
    out_types: Sequence[TensorType] = (),
    **parameters: Parameter,
) -> list[TensorValue]:
    """Adds an op that writes to those of its operands that are buffers."""
    device = values[0].device
    results = ops.inplace_custom(name, device=device, values=values, out_types=out_types, parameters=parameters)
    return [result.tensor for result in results]


def like(x: TensorValue, shape: Sequence[DimLike]) -> TensorType:
    """The type of a result with the dtype and on the device of x."""
    return typed(x.dtype, x, shape)


def typed(dtype: DType, x: TensorValue, shape: Sequence[DimLike]) -> TensorType:
    """The type of a result on the device of x."""
    return TensorType(dtype, shape, device=x.device)

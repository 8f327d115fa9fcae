"""The kernels as functions on graph values: call one inside a `max.graph.Graph` whose `custom_extensions` hold KERNELS.

    with Graph("mlp", input_types=[...], custom_extensions=[ops.KERNELS]) as graph:
        x, weight, bias = (value.tensor for value in graph.inputs)
        graph.output(ops.linear(x, weight, bias, gelu=True))

Shapes are written with M for the product of all leading dimensions; weights are packed by `max_whisper.packing`.
What each op checks and computes stands in `kernels/ops.mojo`.
"""

from collections.abc import Sequence
from pathlib import Path

from max.graph import DimLike, TensorType, TensorValue, ops

KERNELS = Path(__file__).resolve().parent / "kernels"
"""The Mojo package with the kernels, as `Graph(custom_extensions=[KERNELS])` takes it."""


def linear(
    x: TensorValue, weight: TensorValue, bias: TensorValue, residual: TensorValue | None = None, *, gelu: bool = False
) -> TensorValue:
    """Linear layer with everything that follows it fused: f(x W^T + b) + r.

    Args:
        x: (..., K).
        weight: (ceil(N / 16), K, 16), see `packing.pack_linear`.
        bias: (N).
        residual: (..., N), added last.
        gelu: Whether f is GELU (erf form) instead of the identity.

    Returns:
        (..., N), the dtype of x.
    """
    out = _like(x, [*x.shape[:-1], bias.shape[0]])
    if residual is None:
        return _custom("whisper_linear", [x, weight, bias], [out], gelu=gelu)[0]
    return _custom("whisper_linear_residual", [x, weight, bias, residual], [out], gelu=gelu)[0]


def _like(x: TensorValue, shape: Sequence[DimLike]) -> TensorType:
    return TensorType(x.dtype, shape, device=x.device)


def _custom(
    name: str, values: list[TensorValue], out_types: list[TensorType], **parameters: bool | int | str
) -> list[TensorValue]:
    results = ops.custom(name, device=values[0].device, values=values, out_types=out_types, parameters=parameters)
    return [result.tensor for result in results]

"""Linear layers, `kernels/ops/linear.mojo`."""

from max.graph import TensorValue

from max_whisper.config import EPSILON
from max_whisper.ops.call import call, like


def linear(
    x: TensorValue, weight: TensorValue, bias: TensorValue, residual: TensorValue | None = None, *, gelu: bool = False
) -> TensorValue:
    """Linear layer with everything that follows it fused: f(x W^T + b) + r.

    Args:
        x: (..., K).
        weight: (N, K), packed by `packing.pack_linear`.
        bias: (N).
        residual: (..., N), added last.
        gelu: Whether f is GELU (erf form) instead of the identity.

    Returns:
        (..., N), the dtype of x.
    """
    out = like(x, [*x.shape[:-1], bias.shape[0]])
    if residual is None:
        return call("whisper_linear", [x, weight, bias], [out], gelu=gelu)[0]
    return call("whisper_linear_residual", [x, weight, bias, residual], [out], gelu=gelu)[0]


def norm_linear(
    x: TensorValue,
    weight: TensorValue,
    bias: TensorValue,
    sums: TensorValue,
    *,
    gelu: bool = False,
    epsilon: float = EPSILON,
) -> TensorValue:
    """Linear layer of the layer norm of x: f(norm(x) W^T + b), on a GPU, in one launch where there are few rows.

    Args:
        x: (..., K).
        weight: (N, K), with the norm's gamma in it: this and the next two as `packing.fold_norm` makes them.
        bias: (N), with its beta in it.
        sums: (N), float32, those of the weight's rows.
        gelu: Whether f is GELU (erf form) instead of the identity.
        epsilon: Added to the variance.

    Returns:
        (..., N), the dtype of x.
    """
    out = like(x, [*x.shape[:-1], bias.shape[0]])
    return call("whisper_norm_linear", [x, weight, bias, sums], [out], gelu=gelu, epsilon=epsilon)[0]

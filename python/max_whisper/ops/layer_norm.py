"""Layer norms, `kernels/ops/layer_norm.mojo`."""

from max.graph import TensorValue

from max_whisper.config import EPSILON
from max_whisper.ops.call import call, like


def layer_norm(x: TensorValue, gamma: TensorValue, beta: TensorValue, *, epsilon: float = EPSILON) -> TensorValue:
    """Layer normalisation of the last dimension, with float32 statistics.

    Args:
        x: (..., D).
        gamma: (D), scale.
        beta: (D), shift.
        epsilon: Added to the variance.

    Returns:
        (..., D), the dtype of x.
    """
    return call("whisper_layer_norm", [x, gamma, beta], [like(x, x.shape)], epsilon=epsilon)[0]


def add_layer_norm(
    x: TensorValue, residual: TensorValue, gamma: TensorValue, beta: TensorValue, *, epsilon: float = EPSILON
) -> tuple[TensorValue, TensorValue]:
    """Adds a residual and normalises the sum, in one pass over memory.

    Args:
        x: (..., D).
        residual: (..., D).
        gamma: (D), scale.
        beta: (D), shift.
        epsilon: Added to the variance.

    Returns:
        x + residual and its layer norm, both (..., D), the dtype of x.
    """
    out = like(x, x.shape)
    total, normalised = call("whisper_add_layer_norm", [x, residual, gamma, beta], [out, out], epsilon=epsilon)
    return total, normalised

"""A block of the encoder as one op, `kernels/ops/encoder.mojo`."""

from collections.abc import Sequence

from max.dtype import DType
from max.graph import TensorValue

from max_whisper.config import EPSILON
from max_whisper.ops.call import call, like

ENCODER_BLOCK = ("attn_ln", "attn.qkv", "attn.out", "mlp_ln", "mlp.0", "mlp.2")
"""What a block of the encoder has weights and biases for, in the order of use."""


def encoder_block(
    x: TensorValue, weights: Sequence[TensorValue], *, dtype: DType, epsilon: float = EPSILON
) -> TensorValue:
    """A block of the encoder on a CPU, whose attention rounds its factors: self-attention and MLP, each added to its input.

    Args:
        x: (B, S, d) float32, d a multiple of 64.
        weights: For each of ENCODER_BLOCK gamma and beta (d), or weight, packed by `packing.pack_linear`, and bias.
        dtype: What attention rounds to: bfloat16 or int16.
        epsilon: Added to the variances.

    Returns:
        (B, S, d).
    """
    out = like(x, x.shape)
    return call("whisper_encoder_block", [x, *weights], [out], factor_type=dtype, epsilon=epsilon)[0]

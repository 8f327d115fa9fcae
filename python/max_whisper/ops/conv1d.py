"""The encoder's convolutions, `kernels/ops/conv1d.mojo`."""

from max.graph import TensorValue

from max_whisper.ops.call import call, like


def conv1d(
    x: TensorValue, weight: TensorValue, bias: TensorValue, positions: TensorValue | None = None, *, stride: int = 1
) -> TensorValue:
    """Convolution of width 3 and padding 1 with GELU and the positional embedding fused: gelu(conv(x)) + p.

    Args:
        x: (B, T, C), time-major.
        weight: (N, 3 * C), packed by `packing.pack_conv1d`.
        bias: (N).
        positions: (T_out, N), added last.
        stride: 1 or 2.

    Returns:
        (B, T_out, N) with T_out = (T - 1) // stride + 1.
    """
    batch, length, _ = x.shape
    out = like(x, [batch, (length - 1) // stride + 1, bias.shape[0]])
    if positions is None:
        return call("whisper_conv1d", [x, weight, bias], [out], stride=stride)[0]
    return call("whisper_conv1d_positions", [x, weight, bias, positions], [out], stride=stride)[0]

"""The encoder's two convolutions with GELU."""

import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import STATES, WEIGHTS, call, random
from bench.compare import compare
from max_whisper import eager, ops
from max_whisper.packing import pack_conv1d


def builtin(x: TensorValue, weight: TensorValue, bias: TensorValue, *, stride: int) -> TensorValue:
    """A 2-D convolution of height 1: x (B, 1, T, C), weight (1, 3, C, N)."""
    weight = weight.rebind([1, 3, x.shape[3], bias.shape[0]])
    x = x.rebind([x.shape[0], 1, x.shape[2], x.shape[3]])
    return max_ops.gelu(max_ops.conv2d(x, weight, stride=(1, stride), padding=(0, 0, 1, 1)) + bias)


for stride in (1, 2):
    for weights in WEIGHTS.values():
        eager.prepare(ops.conv1d, f"f32[3] {weights}[3] f32[1]", stride=stride)
    eager.prepare(builtin, "f32[4] f32[4] f32[1]", stride=stride)


@pytest.mark.benchmark(group="conv1d")
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("model", STATES)
def test_conv1d(benchmark, model, stride, dtype):
    state, frames = STATES[model], 3000
    channels = (128 if model == "large" else 80) if stride == 1 else state
    x, weight, bias = random(1, frames, channels), random(state, channels, 3), random(state)
    packed = pack_conv1d(weight, dtype)
    compare(
        benchmark,
        call(ops.conv1d, x, packed, bias, stride=stride),
        call(builtin, x[:, None], weight.transpose(2, 1, 0)[None], bias, stride=stride),
        flops=2 * (frames // stride) * state * 3 * channels,
        bytes=packed.nbytes + 4 * (frames * channels + frames // stride * state),
        dtype=dtype,
    )

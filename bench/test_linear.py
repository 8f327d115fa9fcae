"""Linear layers of the encoder (1500 rows) and of a decoding step (1 row)."""

import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import AUDIO_CONTEXT, STATES, WEIGHTS, call, random
from bench.compare import compare
from max_whisper import eager, ops
from max_whisper.packing import pack_linear


def builtin(x: TensorValue, weight: TensorValue, bias: TensorValue, *, gelu: bool) -> TensorValue:
    y = max_ops.matmul(x, weight.rebind([x.shape[1], bias.shape[0]])) + bias
    return max_ops.gelu(y) if gelu else y


for gelu in (False, True):
    for weights in WEIGHTS.values():
        eager.prepare(ops.linear, f"f32[2] {weights}[3] f32[1]", gelu=gelu)
    eager.prepare(builtin, "f32[2] f32[2] f32[1]", gelu=gelu)


@pytest.mark.benchmark(group="linear")
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows", [AUDIO_CONTEXT, 1])
@pytest.mark.parametrize("layer", ["out", "mlp.0", "mlp.2"])
@pytest.mark.parametrize("model", STATES)
def test_linear(benchmark, model, layer, rows, dtype):
    state = STATES[model]
    depth, columns = {"out": (state, state), "mlp.0": (state, 4 * state), "mlp.2": (4 * state, state)}[layer]
    x, weight, bias = random(rows, depth), random(columns, depth), random(columns)
    packed, gelu = pack_linear(weight, dtype), layer == "mlp.0"
    compare(
        benchmark,
        call(ops.linear, x, packed, bias, gelu=gelu),
        call(builtin, x, weight.T, bias, gelu=gelu),
        flops=2 * rows * columns * depth,
        bytes=packed.nbytes + 4 * (rows * depth + columns + rows * columns),
        dtype=dtype if rows > 1 else "float32",
    )

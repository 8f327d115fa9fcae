"""Layer norm, alone and with a residual added first, of an encoder window (1500 rows) and of a decoding step (1 row)."""

import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import AUDIO_CONTEXT, STATES, call, random
from bench.compare import compare
from max_whisper import eager, ops


def builtin(x: TensorValue, gamma: TensorValue, beta: TensorValue) -> TensorValue:
    width = x.shape[-1]
    return max_ops.layer_norm(x, gamma.rebind([width]), beta.rebind([width]), 1e-5)


def builtin_add(
    x: TensorValue, residual: TensorValue, gamma: TensorValue, beta: TensorValue
) -> tuple[TensorValue, TensorValue]:
    total = x + residual.rebind(x.shape)
    return total, builtin(total, gamma, beta)


for op in (ops.layer_norm, builtin):
    eager.prepare(op, "f32[2] f32[1] f32[1]")
for op in (ops.add_layer_norm, builtin_add):
    eager.prepare(op, "f32[2] f32[2] f32[1] f32[1]")


@pytest.mark.benchmark(group="layer_norm")
@pytest.mark.parametrize("rows", [AUDIO_CONTEXT, 1])
@pytest.mark.parametrize("model", STATES)
def test_layer_norm(benchmark, model, rows):
    state = STATES[model]
    arrays = random(rows, state), random(state), random(state)
    compare(
        benchmark,
        call(ops.layer_norm, *arrays),
        call(builtin, *arrays),
        flops=8 * rows * state,
        bytes=4 * (2 * rows * state + 2 * state),
    )


@pytest.mark.benchmark(group="layer_norm")
@pytest.mark.parametrize("rows", [AUDIO_CONTEXT, 1])
@pytest.mark.parametrize("model", STATES)
def test_add_layer_norm(benchmark, model, rows):
    state = STATES[model]
    arrays = random(rows, state), random(rows, state), random(state), random(state)
    compare(
        benchmark,
        call(ops.add_layer_norm, *arrays),
        call(builtin_add, *arrays),
        flops=9 * rows * state,
        bytes=4 * (4 * rows * state + 2 * state),
    )

"""A block of the encoder over 1500 rows, as models whose weights are rounded have it on a CPU.

Ours is one op; the built-in ops are a composition in float32.
"""

import numpy as np
import pytest
from max.dtype import DType
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import AUDIO_CONTEXT, STATES, call, random
from bench.compare import compare
from max_whisper import eager, ops, target
from max_whisper.ops import HEAD
from max_whisper.packing import pack_linear

DTYPES = {"bfloat16": "bf16", "int8": "i8"}


FACTORS = target.attention_factors(rounded=True)


def encoder_block(x, *weights, factors):
    return ops.encoder_block(x, weights, dtype=DType[factors])


def builtin(x: TensorValue, *arguments: TensorValue, heads: int) -> TensorValue:
    """The composition: x (S, d), then for each half of the block gamma, beta, and weight (K, N) and bias of two layers."""
    width, weights = heads * HEAD, iter(arguments)
    x = x.rebind([AUDIO_CONTEXT, width])

    def normed(y: TensorValue) -> TensorValue:
        return max_ops.layer_norm(y, next(weights).rebind([width]), next(weights).rebind([width]), 1e-5)

    def linear(y: TensorValue, columns: int) -> TensorValue:
        weight, bias = next(weights).rebind([y.shape[1], columns]), next(weights).rebind([columns])
        return max_ops.matmul(y, weight) + bias

    rows = linear(normed(x), 3 * width).reshape([AUDIO_CONTEXT, 3, heads, HEAD])
    q, k, v = (max_ops.permute(rows[:, part], [1, 0, 2]) for part in range(3))
    weighed = max_ops.matmul(max_ops.softmax(max_ops.matmul(q, max_ops.permute(k, [0, 2, 1])) * 0.125), v)
    x = x + linear(max_ops.permute(weighed, [1, 0, 2]).reshape([AUDIO_CONTEXT, width]), width)
    return x + linear(max_ops.gelu(linear(normed(x), 4 * width)), width)


if FACTORS:
    for weight in DTYPES.values():
        block = "f32[3]" + f" f32[1] f32[1] {weight}[3] f32[1] {weight}[3] f32[1]" * 2
        eager.prepare(encoder_block, block, factors=FACTORS.dtype)


@pytest.mark.benchmark(group="encoder")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", STATES)
def test_encoder(benchmark, model, dtype):
    if not FACTORS:
        pytest.skip("this CPU runs the kernels of a block one by one")
    d = STATES[model]
    x, blocks, theirs = random(AUDIO_CONTEXT, d), [], []
    for layers in (((d, 3 * d), (d, d)), ((d, 4 * d), (4 * d, d))):
        norm = [random(d), random(d)]
        blocks += norm
        theirs += norm
        for depth, columns in layers:
            matrix, bias = random(columns, depth) / np.float32(depth**0.5), random(columns)
            blocks += [pack_linear(matrix, dtype), bias]
            theirs += [np.ascontiguousarray(matrix.T), bias]
    compare(
        benchmark,
        call(encoder_block, x[None], *blocks, factors=FACTORS.dtype),
        call(builtin, x, *theirs, heads=d // HEAD),
        flops=24 * AUDIO_CONTEXT * d * d + 4 * AUDIO_CONTEXT * AUDIO_CONTEXT * d,
        bytes=2 * x.nbytes + sum(array.nbytes for array in blocks),
        dtype=dtype,
    )

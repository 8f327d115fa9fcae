"""Attention of the encoder (1500 queries) and cross-attention of a decoding step (1 query), over 1500 keys.

That of the encoder also as models of bfloat16 and int8 have it on CPUs that multiply bfloat16: keys and values are laid
out anew, too.
"""

import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import AUDIO_CONTEXT, STATES, call, random
from bench.compare import compare
from max_whisper import eager, ops, target
from max_whisper.ops import HEAD
from max_whisper.packing import PANEL


def builtin(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """The composition: scores, softmax and sums pass through memory. Heads are laid out already."""
    batch, heads, _, head = q.shape
    k = k.rebind([batch, heads, head, v.shape[2]])
    v = v.rebind([batch, heads, v.shape[2], head])
    return max_ops.matmul(max_ops.softmax(max_ops.matmul(q, k) * 0.125), v)


eager.prepare(ops.attention, "f32[3] f32[5] f32[4]")
eager.prepare(builtin, "f32[4] f32[4] f32[4]")


@pytest.mark.benchmark(group="attention")
@pytest.mark.parametrize("queries", [AUDIO_CONTEXT, 1])
@pytest.mark.parametrize("model", STATES)
def test_attention(benchmark, model, queries):
    heads = STATES[model] // HEAD
    q, v = random(1, heads, queries, HEAD), random(1, heads, AUDIO_CONTEXT, HEAD)
    k = random(1, heads, HEAD, AUDIO_CONTEXT)
    packed = random(1, heads, -(-AUDIO_CONTEXT // PANEL), HEAD, PANEL)
    compare(
        benchmark,
        call(ops.attention, q.reshape(1, queries, -1), packed, v),
        call(builtin, q, k, v),
        flops=4 * heads * queries * AUDIO_CONTEXT * HEAD,
        bytes=4 * heads * HEAD * 2 * (queries + AUDIO_CONTEXT),
    )


@pytest.mark.benchmark(group="attention")
@pytest.mark.parametrize("rounded", [True, False], ids=["rounded", "two_terms"])
@pytest.mark.parametrize("model", STATES)
def test_self_attention_bfloat16(benchmark, model, rounded):
    if not (factors := target.attention_factors(rounded=rounded)):
        pytest.skip("this CPU multiplies float32 here")
    state, heads = STATES[model], STATES[model] // HEAD
    q, v = random(1, heads, AUDIO_CONTEXT, HEAD), random(1, heads, AUDIO_CONTEXT, HEAD)
    k = random(1, heads, HEAD, AUDIO_CONTEXT)
    compare(
        benchmark,
        call(ops.self_attention, random(1, AUDIO_CONTEXT, 3 * state), heads=heads, factors=factors),
        call(builtin, q, k, v),
        flops=4 * heads * AUDIO_CONTEXT * AUDIO_CONTEXT * HEAD,
        bytes=4 * AUDIO_CONTEXT * 4 * state,
        dtype="bfloat16" if rounded else "float32",
    )

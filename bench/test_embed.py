"""Token embedding plus position of a decoding step (1 token) and of a prompt (224).

The built-in ops gather rows of a vocabulary matrix of their own; ours gathers columns of the panels that the logits read,
so that the matrix exists once.
"""

import numpy as np
import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import STATES, WEIGHTS, call, random
from bench.compare import compare
from max_whisper import eager, ops
from max_whisper.packing import pack_linear

VOCABULARY, CONTEXT = 51865, 448


def builtin(tokens: TensorValue, at: TensorValue, embedding: TensorValue, positions: TensorValue) -> TensorValue:
    """The positions at (B, T) stand for the numbers of tokens in the caches."""
    x = max_ops.gather(embedding, tokens, axis=0)
    return x + max_ops.gather(positions, at, axis=0).rebind(x.shape)


for weights in WEIGHTS.values():
    eager.prepare(ops.embed, f"i32[2] i32[1] {weights}[3] f32[2]", n_vocab=VOCABULARY)
eager.prepare(builtin, "i32[2] i32[2] f32[2] f32[2]")


@pytest.mark.benchmark(group="embed")
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("length", [224, 1])
@pytest.mark.parametrize("model", STATES)
def test_embed(benchmark, model, length, dtype):
    state = STATES[model]
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, length), dtype=np.int32)
    embedding, positions = random(VOCABULARY, state), random(CONTEXT, state)
    packed = pack_linear(embedding, dtype)
    compare(
        benchmark,
        call(ops.embed, tokens, np.zeros(1, np.int32), packed, positions, n_vocab=VOCABULARY),
        call(builtin, tokens, np.arange(length, dtype=np.int32)[None], embedding, positions),
        flops=length * state,
        bytes=(packed.itemsize + 2 * 4) * length * state,
    )

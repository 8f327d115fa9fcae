"""Token embedding plus position of a decoding step (1 token) and of a prompt (224)."""

import numpy as np
import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import STATES, VOCABULARIES, call, random
from bench.compare import compare
from max_whisper import eager, ops

VOCABULARY, CONTEXT = 51865, 448


def builtin(tokens: TensorValue, at: TensorValue, embedding: TensorValue, positions: TensorValue) -> TensorValue:
    """The positions at (B, T) stand for the numbers of tokens in the caches."""
    x = max_ops.gather(embedding, tokens, axis=0)
    return x + max_ops.gather(positions, at, axis=0).rebind(x.shape)


for kind in VOCABULARIES.values():
    eager.prepare(ops.embed, f"i32[2] i32[1] {kind}[2] f32[2]", n_vocab=VOCABULARY)
eager.prepare(builtin, "i32[2] i32[2] f32[2] f32[2]")


@pytest.mark.benchmark(group="embed")
@pytest.mark.parametrize("dtype", VOCABULARIES)
@pytest.mark.parametrize("length", [224, 1])
@pytest.mark.parametrize("model", STATES)
def test_embed(benchmark, model, length, dtype):
    state = STATES[model]
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, length), dtype=np.int32)
    embedding, positions = random(VOCABULARY, state), random(CONTEXT, state)
    table = embedding.astype(dtype)
    compare(
        benchmark,
        call(ops.embed, tokens, np.zeros(1, np.int32), table, positions, n_vocab=VOCABULARY),
        call(builtin, tokens, np.arange(length, dtype=np.int32)[None], embedding, positions),
        flops=length * state,
        bytes=(table.itemsize + 2 * 4) * length * state,
    )

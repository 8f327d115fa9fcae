"""One pick over the whole vocabulary, for one sequence and for five.

Every state points at a token, so that its logit is 25 and the others are around 0, as a trained model's states do: how much
of the vocabulary ours reads depends on it.

The graph of built-in ops multiplies with the transposed vocabulary matrix, adds a mask, lets the timestamps outweigh the
text where they do, and takes the largest log probability.
"""

import numpy as np
import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import STATES, VOCABULARIES, call, random
from bench.compare import compare
from max_whisper import eager, ops
from max_whisper import screen as screens

VOCABULARY, TIMESTAMPS = 51865, 50364
TIMESTAMP_RULE = 128
NEVER = np.float32(-1e30)  # added to a logit


def builtin(
    hidden: TensorValue, vocabulary: TensorValue, mask: TensorValue, text: TensorValue
) -> tuple[TensorValue, TensorValue]:
    """Hidden (B, D), vocabulary (D, V), mask (V), text (V): NEVER for text, 0 for timestamps -> (B, 1), (B, 1)."""
    weight = vocabulary.rebind([hidden.shape[1], VOCABULARY])
    logits = max_ops.matmul(hidden, weight) + mask.rebind([VOCABULARY])
    log_probs = max_ops.logsoftmax(logits)
    timestamps = max_ops.sum(max_ops.exp(log_probs[:, TIMESTAMPS:]), axis=-1)
    best_text = max_ops.exp(max_ops.max(log_probs[:, :TIMESTAMPS], axis=-1))
    log_probs = max_ops.logsoftmax(max_ops.where(timestamps > best_text, logits + text.rebind([VOCABULARY]), logits))
    return max_ops.argmax(log_probs, axis=-1), max_ops.max(log_probs, axis=-1)


for kind in VOCABULARIES.values():
    eager.prepare(ops.greedy, f"f32[3] i32[1] {kind}[2] u8[1] i32[2] f16[3] i8[3]", timestamp_begin=TIMESTAMPS)
eager.prepare(builtin, "f32[2] f32[2] f32[1] f32[1]")


@pytest.mark.benchmark(group="greedy")
@pytest.mark.parametrize("dtype", VOCABULARIES)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("model", STATES)
def test_greedy(benchmark, model, batch, dtype):
    state = STATES[model]
    embedding = random(VOCABULARY, state) / np.float32(np.sqrt(state))
    pointed_at = embedding[1001 : 1001 + batch]
    hidden = 25 * pointed_at / (pointed_at**2).sum(axis=1, keepdims=True)
    mask = (np.arange(VOCABULARY) % 10 == 0).astype(np.uint8)
    text = np.where(np.arange(VOCABULARY) < TIMESTAMPS, NEVER, np.float32(0))
    rules = np.array([(TIMESTAMP_RULE | 1, 0, TIMESTAMPS, VOCABULARY)] * batch, np.int32)
    at = np.zeros(batch, np.int32)
    screened = screens.pack_rotation(embedding), screens.pack_screen(embedding)
    arrays = hidden[:, None], at, embedding.astype(dtype), mask, rules, *screened
    compare(
        benchmark,
        call(ops.greedy, *arrays, timestamp_begin=TIMESTAMPS),
        call(builtin, hidden, embedding.T, np.where(mask, NEVER, np.float32(0)), text),
        flops=2 * batch * VOCABULARY * state,
        bytes=sum(part.nbytes for part in screened),
    )

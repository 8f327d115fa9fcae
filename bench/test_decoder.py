"""Eight decoding steps through one block of the decoder: one row, 100 tokens of past, 1500 keys of the audio.

Ours are one op, the built-in ops are executed eight times. The vocabulary is one of sixteen tokens: what a real one takes
is a benchmark of its own (`test_greedy.py`).
"""

import numpy as np
import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import AUDIO_CONTEXT, STATES, call, random
from bench.compare import compare
from max_whisper import eager, ops
from max_whisper import screen as screens
from max_whisper.ops import HEAD
from max_whisper.packing import keys_shape, pack_linear

PAST = 100
STEPS = 8
TEXT_CONTEXT = 448
END, TIMESTAMPS, VOCABULARY = 8, 10, 16
DTYPES = {"float32": ("f32", "f32"), "float16": ("f16", "f16"), "bfloat16": ("bf16", "f16"), "int8": ("i8", "f16")}
"""Of the weights, and of keys, values and vocabulary."""


@eager.in_place(6, 7, 8, 9)
def decoder(*arguments):
    rows, picks, caches, audio, rest = (arguments[i:j] for i, j in ((0, 6), (6, 8), (8, 10), (10, 12), (12, None)))
    lengths = {"audio_length": AUDIO_CONTEXT, "end": END, "timestamp_begin": TIMESTAMPS}
    return ops.decoder(rows, picks, caches, audio, rest[:6], rest[6:], **lengths)


def builtin(x: TensorValue, *arguments: TensorValue) -> TensorValue:
    """The composition, less what appends to the cache: x (1, d), then keys (H, 64, S) and values (H, S, 64) of text and
    audio, then gamma, beta, and weight (K, N) and bias of the layers, gamma, beta and the vocabulary (d, V)."""
    caches, weights = arguments[:4], iter(arguments[4:])
    width, heads = x.shape[1], caches[1].shape[0]

    def normed(y: TensorValue) -> TensorValue:
        return max_ops.layer_norm(y, next(weights).rebind([width]), next(weights).rebind([width]), 1e-5)

    def linear(y: TensorValue) -> TensorValue:
        weight, bias = next(weights), next(weights)
        return max_ops.matmul(y, weight.rebind([y.shape[1], bias.shape[0]])) + bias

    def attend(query: TensorValue, keys: TensorValue, values: TensorValue) -> TensorValue:
        keys = keys.rebind([heads, HEAD, values.shape[1]])
        values = values.rebind([heads, values.shape[1], HEAD])
        attended = max_ops.matmul(max_ops.softmax(max_ops.matmul(query, keys) * 0.125), values)
        return attended.reshape([1, heads * HEAD]).rebind([1, width])

    rows = linear(normed(x)).rebind([1, 3 * heads * HEAD]).reshape([3, heads, 1, HEAD])
    x = x + linear(attend(rows[0], *caches[:2])).rebind(x.shape)
    query = linear(normed(x)).rebind([1, heads * HEAD]).reshape([heads, 1, HEAD])
    x = x + linear(attend(query, *caches[2:])).rebind(x.shape)
    x = x + linear(max_ops.gelu(linear(normed(x)))).rebind(x.shape)
    states = normed(x)
    return max_ops.argmax(max_ops.matmul(states, next(weights).rebind([width, VOCABULARY])), axis=-1)


for weight, cache in DTYPES.values():
    norm, layer = "f32[1] f32[1]", f"{weight}[4] f32[2]"
    signature = f"i32[2] i32[1] i32[1] i32[2] i32[2] u8[1] i32[2] f32[2] {cache}[6] {cache}[5] {cache}[6] {cache}[5]"
    signature += f" {cache}[2] f16[3] i8[3] f32[2] {norm}"
    eager.prepare(decoder, signature + f" f32[2] f32[2] {layer} {layer}" * 3)
eager.prepare(
    builtin, "f32[2]" + " f32[3]" * 4 + " f32[1] f32[1] f32[2] f32[1] f32[2] f32[1]" * 3 + " f32[1] f32[1] f32[2]"
)


@pytest.mark.benchmark(group="decoder")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", STATES)
def test_decoder(benchmark, model, dtype):
    d, heads = STATES[model], STATES[model] // HEAD
    cache = np.float32 if DTYPES[dtype][1] == "f32" else np.float16
    caches, theirs, blocks = [], [random(1, d)], []
    for length, seen in ((TEXT_CONTEXT, PAST + 1), (AUDIO_CONTEXT, AUDIO_CONTEXT)):
        shapes = keys_shape(1, heads, length), (1, heads, length, HEAD)
        caches += [random(1, *shape).astype(cache) for shape in shapes]
        theirs += [random(heads, HEAD, seen), random(heads, seen, HEAD)]
    for layers in (((d, 3 * d), (d, d)), ((d, d), (d, d)), ((d, 4 * d), (4 * d, d))):
        blocks += [random(1, d), random(1, d)]
        theirs += [random(d), random(d)]
        for depth, columns in layers:
            weight, bias = random(columns, depth) / np.float32(depth**0.5), random(columns)
            blocks += [pack_linear(weight, dtype)[None], bias[None]]
            theirs += [np.ascontiguousarray(weight.T), bias]
    vocabulary = random(VOCABULARY, d).astype(cache)
    screen = [screens.pack_rotation(vocabulary), screens.pack_screen(vocabulary)]
    none, rules, mask = np.zeros(1, np.int32), np.array([[1, 0, 0, 0]], np.int32), np.zeros(VOCABULARY, np.uint8)
    mask[END:] = 1  # it goes on
    rows = [none[None], none + PAST, none, rules, np.full((1, 3), -1, np.int32), mask]
    picks = [np.zeros((1, STEPS), np.int32), np.zeros((1, STEPS), np.float32)]
    embeddings = [vocabulary, *screen, random(TEXT_CONTEXT, d), random(d), random(d)]
    one = call(builtin, *theirs, random(d), random(d), np.ascontiguousarray(vocabulary.astype(np.float32).T))
    compare(
        benchmark,
        call(decoder, *rows, *picks, *caches, *embeddings, *blocks),
        lambda: [one() for _ in range(STEPS)],
        flops=2 * 14 * d * d + 4 * d * (PAST + AUDIO_CONTEXT),
        bytes=sum(array.nbytes for array in [*caches[2:], *blocks]) + 2 * cache().nbytes * d * PAST,
        repeats=STEPS,
    )

"""A block of the decoder in a decoding step: one row, 100 tokens of past, 1500 keys of the audio."""

import numpy as np
import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import AUDIO_CONTEXT, STATES, call, random
from bench.compare import compare
from max_whisper import eager, ops
from max_whisper.ops import HEAD
from max_whisper.packing import keys_shape, pack_linear

PAST = 100
TEXT_CONTEXT = 448
DTYPES = {"float32": ("f32", "f32"), "float16": ("f16", "f16"), "bfloat16": ("bf16", "f16"), "int8": ("i8", "f16")}
"""Of the weights, and of keys and values."""


@eager.in_place(2, 3)
def decoder_block(x, past, keys, values, audio_keys, audio_values, *weights):
    audio = audio_keys, audio_values
    return ops.decoder_block(x, past, (keys, values), audio, weights, audio_length=AUDIO_CONTEXT)


def builtin(x: TensorValue, *arguments: TensorValue) -> TensorValue:
    """The composition, less what appends to the cache: x (1, d), then keys (H, 64, S) and values (H, S, 64) of text and
    audio, then gamma, beta, and weight (K, N) and bias of the layers."""
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
    return x + linear(max_ops.gelu(linear(normed(x)))).rebind(x.shape)


for weight, cache in DTYPES.values():
    norm, layer, caches = "f32[1] f32[1]", f"{weight}[3] f32[1]", f"{cache}[5] {cache}[4]"
    eager.prepare(decoder_block, f"f32[3] i32[1] {caches} {caches}" + f" {norm} {layer} {layer}" * 3)
eager.prepare(builtin, "f32[2]" + " f32[3]" * 4 + " f32[1] f32[1] f32[2] f32[1] f32[2] f32[1]" * 3)


@pytest.mark.benchmark(group="decoder_block")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", STATES)
def test_decoder_block(benchmark, model, dtype):
    d, heads = STATES[model], STATES[model] // HEAD
    cache = np.float32 if DTYPES[dtype][1] == "f32" else np.float16
    ours: list[np.ndarray] = [random(1, 1, d), np.array([PAST], np.int32)]
    theirs = [random(1, d)]
    for length, seen in ((TEXT_CONTEXT, PAST + 1), (AUDIO_CONTEXT, AUDIO_CONTEXT)):
        ours += [random(*keys_shape(1, heads, length)).astype(cache), random(1, heads, length, HEAD).astype(cache)]
        theirs += [random(heads, HEAD, seen), random(heads, seen, HEAD)]
    bytes = sum(array.nbytes for array in ours[4:]) + 2 * cache().nbytes * d * PAST
    for layers in (((d, 3 * d), (d, d)), ((d, d), (d, d)), ((d, 4 * d), (4 * d, d))):
        for arrays in (ours, theirs):
            arrays += [random(d), random(d)]
        for depth, columns in layers:
            weight, bias = random(columns, depth) / np.float32(depth**0.5), random(columns)
            packed = pack_linear(weight, dtype)
            bytes += packed.nbytes
            ours += [packed, bias]
            theirs += [np.ascontiguousarray(weight.T), bias]
    compare(
        benchmark,
        call(decoder_block, *ours),
        call(builtin, *theirs),
        flops=2 * 14 * d * d + 4 * d * (PAST + AUDIO_CONTEXT),
        bytes=bytes,
    )

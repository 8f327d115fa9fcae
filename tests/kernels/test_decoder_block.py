"""A block of the decoder is the chain of its kernels, bit for bit, whichever threads come and when."""

from typing import Any

import numpy as np
import pytest

from max_whisper import eager, ops
from max_whisper.packing import pack_linear

from . import references
from .harness import run
from .test_attention import pack

HEAD, CAPACITY, AUDIO = 64, 70, 41

CHAIN_TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
"""For float32: three layers of sums of unit scale are added up, each within FLOAT32_TOLERANCE, and the norms between them
divide by deviations of about one."""


@eager.in_place(2, 3)
def decoder_block(x, past, keys, values, audio_keys, audio_values, *weights):
    audio = audio_keys, audio_values
    return ops.decoder_block(x, past, (keys, values), audio, weights, audio_length=AUDIO)


@eager.in_place(2, 3)
def cached_attention(rows, past, keys, values):
    return ops.cached_attention(rows, past, keys, values)


DTYPES = {
    "float32": ("f32", "f32[5] f32[4]", "f32[5] f32[4]"),
    "float16": ("f16", "f16[5] f16[4]", "f16[5] f16[4]"),
    "int8": ("i8", "f16[5] f16[4]", "f16[5] f16[4]"),
    "bytes": ("i8", "f16[5] f16[4]", "i8[5] i8[5]"),
}
"""Of the weights, and of keys and values of text and audio."""

for weight, text, audio in DTYPES.values():
    norm, layer = "f32[1] f32[1]", f"{weight}[3] f32[1]"
    eager.prepare(decoder_block, f"f32[3] i32[1] {text} {audio}" + f" {norm} {layer} {layer}" * 3)
    eager.prepare(cached_attention, f"f32[3] i32[1] {text}")
    eager.prepare(ops.attention, f"f32[3] {audio}", rounded=weight == "i8", key_count=AUDIO)
    for gelu in (False, True):
        eager.prepare(ops.linear, f"f32[2] {layer}", gelu=gelu)
eager.prepare(ops.layer_norm, "f32[2] f32[1] f32[1]")


class Block:
    """Random weights and caches of one block."""

    def __init__(self, rng: np.random.Generator, dtype: str, batch: int, heads: int, past: list[int]) -> None:
        d, cache = heads * HEAD, np.float32 if dtype == "float32" else np.float16
        in_bytes, dtype = dtype == "bytes", "int8" if dtype == "bytes" else dtype
        self.heads, self.past, self.rounded = heads, np.array(past, np.int32), dtype == "int8"
        self.weights: list[np.ndarray] = []
        for columns in ((3 * d, d, d), (d, d, d), (4 * d, d, 4 * d)):
            self.weights += [1 + rng.standard_normal(d, dtype=np.float32) / 8, rng.standard_normal(d, dtype=np.float32)]
            for n, k in ((columns[0], d), (columns[1], columns[2])):
                weight = rng.standard_normal((n, k), dtype=np.float32) / np.sqrt(np.float32(k))
                self.weights += [pack_linear(weight, dtype), rng.standard_normal(n, dtype=np.float32)]
        # What lies behind the past is never read: NaN shows if it is.
        self.text = rng.standard_normal((batch, CAPACITY, 2 * d), dtype=np.float32)
        self.text[np.arange(CAPACITY) >= self.past[:, None]] = np.nan
        self.caches = pack(self.text.astype(cache), heads)
        audio = rng.standard_normal((batch, AUDIO, 2 * d), dtype=np.float32)
        self.audio = references.pack_bytes(audio, heads) if in_bytes else pack(audio.astype(cache), heads)

    def run(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The op: what it returns, and the caches."""
        caches = [cache.copy() for cache in self.caches]
        return run(decoder_block, x, self.past, *caches, *self.audio, *self.weights), caches

    def chain(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The same, kernel by kernel."""
        shape, (caches, w) = x.shape, ([cache.copy() for cache in self.caches], self.weights)

        def normed_linear(y: np.ndarray, at: int, *, gelu: bool = False) -> np.ndarray:
            normed = eager.call(ops.layer_norm, y.reshape(-1, shape[2]), *w[at : at + 2])
            return eager.call(ops.linear, normed, *w[at + 2 : at + 4], gelu=gelu)

        def linear(y: np.ndarray, at: int) -> np.ndarray:
            return eager.call(ops.linear, y.reshape(x[..., 0].size, -1), *w[at : at + 2], gelu=False).reshape(shape)

        rows = normed_linear(x, 0).reshape(*shape[:2], -1)
        y = linear(eager.call(cached_attention, rows, self.past, *caches), 4) + x
        query = normed_linear(y, 6).reshape(shape)
        attended = eager.call(ops.attention, query, *self.audio, rounded=self.rounded, key_count=AUDIO)
        y = linear(attended, 10) + y
        return linear(normed_linear(y, 12, gelu=True), 16) + y, caches

    def reference(self, x: np.ndarray) -> np.ndarray:
        """The same in float64."""
        w = [weight.astype(np.float64) for weight in self.weights]
        rows = references.linear(references.layer_norm(x, *w[:2]), *w[2:4])
        results = []
        for b, past in enumerate(self.past):
            seen = np.concatenate([self.text[b, :past], rows[b, :, -self.text.shape[2] :]])[None]
            attended = references.attention(rows[b][None], *pack(seen, self.heads), first_visible=past + 1)
            results.append(attended[0])
        y = references.linear(np.stack(results), *w[4:6]) + x
        query = references.linear(references.layer_norm(y, *w[6:8]), *w[8:10])
        y += references.linear(references.attention(query, *self.audio), *w[10:12])
        hidden = references.linear(references.layer_norm(y, *w[12:14]), *w[14:16], gelu=True)
        return y + references.linear(hidden, *w[16:18])


# One row and more than a tile has; windows of different length; a prompt of many rows, of which a CPU makes pairs.
SHAPES = [
    (1, 1, 1, [0]),
    (1, 1, 6, [69]),
    (2, 1, 2, [3, 64]),
    (3, 7, 1, [0, 17, 40]),
    (1, 66, 2, [2]),
    (8, 1, 1, [5] * 8),
]


@pytest.mark.parametrize(("batch", "length", "heads", "past"), SHAPES)
def test_matches_reference(rng, batch, length, heads, past):
    block = Block(rng, "float32", batch, heads, past)
    x = rng.standard_normal((batch, length, heads * HEAD), dtype=np.float32)
    np.testing.assert_allclose(block.run(x)[0], block.reference(x.astype(np.float64)), **CHAIN_TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "heads", "past"), SHAPES)
def test_is_the_chain_of_its_kernels(rng, dtype, batch, length, heads, past):
    block = Block(rng, dtype, batch, heads, past)
    x = rng.standard_normal((batch, length, heads * HEAD), dtype=np.float32)
    (result, caches), (expected, expected_caches) = block.run(x), block.chain(x)
    np.testing.assert_array_equal(result, expected)
    for cache, expected_cache in zip(caches, expected_caches, strict=True):
        np.testing.assert_array_equal(cache, expected_cache)


def test_threads_may_come_when_they_will(rng):
    """A thread that comes late, or not at all, leaves no gap: many steps, each of which wakes threads anew."""
    block = Block(rng, "int8", 1, 6, [40])
    x = rng.standard_normal((1, 1, 6 * HEAD), dtype=np.float32)
    expected = block.chain(x)[0]
    for _ in range(300):
        result = eager.call(decoder_block, x, block.past, *block.caches, *block.audio, *block.weights)
        np.testing.assert_array_equal(result, expected)


def test_nothing_of_no_window(rng):
    block = Block(rng, "float32", 0, 2, [])
    assert block.run(np.zeros((0, 1, 2 * HEAD), np.float32))[0].shape == (0, 1, 2 * HEAD)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x[..., :-1], "d of x is 127, expected 128"),
        (1, lambda past: past + 70, "row 0 holds 70 keys and 1 more are to come, the cache takes 70"),
        (1, lambda past: past[:0], "B of past is 0, expected 1"),
        (2, lambda keys: keys[:, :1], "H of the keys is 1, expected 2"),
        (4, lambda keys: keys[:, :, :1], "the number of panels of keys is 1, expected 3"),
        (5, lambda values: values[:, :, :0], "panels of keys is 3, expected 0"),
        (6, lambda gamma: gamma[:-1], "gamma and beta is 127, expected 128"),
        (8, lambda weight: weight[:-1], "the number of packed panels is 23, expected 24"),
        (9, lambda bias: bias[:-1], "N of qkv is 383, expected 384"),
        (22, lambda weight: weight[:, :-1], "the number of rows of a packed panel is 511, expected 512"),
    ],
)
def test_refuses(rng, position, change, message):
    block = Block(rng, "float32", 1, 2, [0])
    x = rng.standard_normal((1, 1, 2 * HEAD), dtype=np.float32)
    arguments = [x, block.past, *block.caches, *block.audio, *block.weights]
    arguments[position] = change(arguments[position])
    with pytest.raises(ValueError, match=message):
        eager.call(decoder_block, *arguments)

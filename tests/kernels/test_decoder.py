"""The decoder is the chain of its kernels, bit for bit, step after step, whichever threads come and when."""

from typing import Any

import numpy as np
import pytest
from max.dtype import DType

from max_whisper import eager, ops
from max_whisper.packing import pack_linear
from max_whisper.screen import pack_rotation, pack_screen
from tests.fake_model import follow

from . import references
from .harness import run
from .test_attention import pack

HEAD, CAPACITY, AUDIO, LAYERS = 64, 70, 41, 2
END, FIRST, VOCABULARY = 40, 44, 60  # the end of text, the first timestamp, tokens
TIMESTAMP_RULE = 128

STATES_TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
"""For float32: each of two blocks adds three layers of sums of unit scale, each within FLOAT32_TOLERANCE, and the norms
between them divide by deviations of about one."""

LOG_PROBABILITY = 2e-3
"""That of the search (test_greedy.py). States that are off by 1e-4 add little to it."""


@eager.in_place(6, 7, 8, 9)
def decoder(*arguments):
    rows, picks, caches, audio, rest = (arguments[i:j] for i, j in ((0, 6), (6, 8), (8, 10), (10, 12), (12, None)))
    return ops.decoder(
        rows, picks, caches, audio, rest[:6], rest[6:], audio_length=AUDIO, end=END, timestamp_begin=FIRST
    )


@eager.in_place(2, 3)
def cached_attention(rows, past, keys, values):
    return ops.cached_attention(rows, past, keys, values)


def audio_heads(states, weight, bias, *, heads, dtype):
    return ops.audio_heads(states, weight, bias, heads=heads, dtype=DType[dtype])


def pack_heads(rows, *, heads, dtype):
    return ops.pack_heads(rows, heads=heads, dtype=DType[dtype])


DTYPES = {
    "float32": ("f32", "f32", 4, 5, "f32"),
    "float16": ("f16", "f16", 4, 5, "f16"),
    "int8": ("i8", "f16", 4, 5, "f16"),
    "bytes": ("i8", "i8", 5, 6, "f16"),
}
"""Of the weights, of keys and values of the audio, the rank of its values in one block and in all, of those of the text."""

for weight, audio, rank, ranks, text in DTYPES.values():
    norm, layer = "f32[1] f32[1]", f"{weight}[3] f32[1]"
    signature = (
        f"i32[2] i32[1] i32[1] i32[2] i32[2] u8[1] i32[2] f32[2] {text}[6] {text}[5] {audio}[6] {audio}[{ranks}]"
    )
    signature += f" {text}[2] f16[3] i8[3] f32[2] {norm}"
    eager.prepare(decoder, signature + f" f32[2] f32[2] {weight}[4] f32[2] {weight}[4] f32[2]" * 3)
    eager.prepare(cached_attention, f"f32[3] i32[1] {text}[5] {text}[4]")
    eager.prepare(ops.attention, f"f32[3] {audio}[5] {audio}[{rank}]", rounded=weight == "i8", key_count=AUDIO)
    eager.prepare(ops.embed, f"i32[2] i32[1] {text}[2] f32[2]", n_vocab=VOCABULARY)
    eager.prepare(ops.greedy, f"f32[3] i32[1] {text}[2] u8[1] i32[2] f16[3] i8[3]", timestamp_begin=FIRST)
    for gelu in (False, True):
        eager.prepare(ops.linear, f"f32[2] {layer}", gelu=gelu)
eager.prepare(ops.layer_norm, "f32[2] f32[1] f32[1]")
AUDIO_HEADS = [("f32", "float32"), ("i8", "int8"), ("f16", "float16")]
for weight, dtype in AUDIO_HEADS:
    eager.prepare(audio_heads, f"f32[3] {weight}[4] f32[2]", heads=2, dtype=dtype)
    eager.prepare(ops.linear, f"f32[3] {weight}[3] f32[1]", gelu=False)
    eager.prepare(pack_heads, "f32[3]", heads=2, dtype=dtype)


class Decoder:
    """Random weights and caches, of one batch row more than are decoded."""

    def __init__(self, rng: np.random.Generator, dtype: str, batch: int, heads: int, past: list[int]) -> None:
        d, self.cache = heads * HEAD, np.float32 if dtype == "float32" else np.float16
        in_bytes, dtype = dtype == "bytes", "int8" if dtype == "bytes" else dtype
        self.heads, self.past, self.rounded, rows = heads, np.array(past, np.int32), dtype == "int8", batch + 1
        self.blocks: list[list[np.ndarray]] = []
        for _ in range(LAYERS):
            block: list[np.ndarray] = []
            for columns in ((3 * d, d, d), (d, d, d), (4 * d, d, 4 * d)):
                block += [1 + rng.standard_normal(d, dtype=np.float32) / 8, rng.standard_normal(d, dtype=np.float32)]
                for n, k in ((columns[0], d), (columns[1], columns[2])):
                    weight = rng.standard_normal((n, k), dtype=np.float32) / np.sqrt(np.float32(k))
                    block += [pack_linear(weight, dtype), rng.standard_normal(n, dtype=np.float32)]
            self.blocks.append(block)
        # What lies behind the past is never read: NaN shows if it is.
        self.text = rng.standard_normal((LAYERS, rows, CAPACITY, 2 * d), dtype=np.float32)
        self.text[:, :batch][:, np.arange(CAPACITY) >= self.past[:, None]] = np.nan
        self.caches = self._stack([pack(layer.astype(self.cache), heads) for layer in self.text])
        audio = rng.standard_normal((LAYERS, rows, AUDIO, 2 * d), dtype=np.float32)
        lay_out = references.pack_bytes if in_bytes else lambda x, heads: pack(x.astype(self.cache), heads)
        self.audio = self._stack([lay_out(layer, heads) for layer in audio])
        vocabulary = (3 * rng.standard_normal((VOCABULARY, d)) / np.sqrt(d)).astype(self.cache)
        self.embeddings = [
            *(vocabulary, pack_rotation(vocabulary), pack_screen(vocabulary)),
            rng.standard_normal((CAPACITY, d), dtype=np.float32),
            *(1 + rng.standard_normal(d, dtype=np.float32) / 8, rng.standard_normal(d, dtype=np.float32)),
        ]
        self.mask = rng.choice(np.array([0, 0, 0, 1, 2], np.uint8), VOCABULARY)
        self.mask[[3, END, FIRST, -1]] = 0
        self.said = np.full((batch, 3), -1, np.int32)
        self.rules = np.tile(np.array([TIMESTAMP_RULE | 3, FIRST, FIRST, FIRST + 5], np.int32), (batch, 1))

    @staticmethod
    def _stack(layers: Any) -> list[np.ndarray]:
        return [np.stack(parts) for parts in zip(*layers, strict=True)]

    def arguments(self, tokens: np.ndarray, last: np.ndarray, steps: int) -> list[np.ndarray]:
        """Of the op, in place ones copied."""
        picked, log_probs = (
            np.full((len(tokens), steps), -7, np.int32),
            np.full((len(tokens), steps), np.nan, np.float32),
        )
        rows = [tokens, self.past, last, self.rules, self.said, self.mask]
        caches = [cache.copy() for cache in self.caches]
        return [*rows, picked, log_probs, *caches, *self.audio, *self.embeddings, *self._stack(self.blocks)]

    def run(self, tokens: np.ndarray, last: np.ndarray, steps: int) -> list[np.ndarray]:
        """The op: states, tokens, log probabilities, caches."""
        arguments = self.arguments(tokens, last, steps)
        return [run(decoder, *arguments), *arguments[6:10]]

    def chain(self, tokens: np.ndarray, last: np.ndarray, steps: int) -> list[np.ndarray]:
        """The same, kernel by kernel."""
        batch = len(tokens)
        caches = [[cache[layer, :batch].copy() for cache in self.caches] for layer in range(LAYERS)]
        said, rules, past = self.said, self.rules, self.past
        picked, log_probs = np.full((batch, steps), -1, np.int32), np.full((batch, steps), np.nan, np.float32)
        states, over = None, said[:, 1] == END
        for step in range(steps):
            x = eager.call(ops.embed, tokens, past, self.embeddings[0], self.embeddings[3], n_vocab=VOCABULARY)
            for layer in range(LAYERS):
                x = self._block(x, past, layer, caches[layer])
            hidden = eager.call(ops.layer_norm, x.reshape(-1, x.shape[2]), *self.embeddings[4:]).reshape(x.shape)
            states = hidden if states is None else states
            token, log_prob = eager.call(
                *(ops.greedy, hidden, last, self.embeddings[0], self.mask, rules, *self.embeddings[1:3]),
                timestamp_begin=FIRST,
            )
            token, log_prob = np.where(over, END, token).astype(np.int32), np.where(over, np.float32(0), log_prob)
            picked[:, step], log_probs[:, step] = token, log_prob
            if (token == END)[~over].any():
                break
            past, tokens, last = past + last + 1, token[:, None], np.zeros(batch, np.int32)
            latest = np.where(token >= FIRST, token, said[:, 2])
            said = np.stack([said[:, 1], token, latest], axis=1)
            rules = np.array(
                [follow(*row, GRAMMAR) for row in zip(rules.tolist(), said.tolist(), strict=True)], np.int32
            )
        assert states is not None
        return [states, picked, log_probs, *self._stack(caches)]

    def _block(self, x: np.ndarray, past: np.ndarray, layer: int, caches: list[np.ndarray]) -> np.ndarray:
        shape, w, audio = x.shape, self.blocks[layer], [part[layer, : len(x)] for part in self.audio]

        def normed_linear(y: np.ndarray, at: int, *, gelu: bool = False) -> np.ndarray:
            normed = eager.call(ops.layer_norm, y.reshape(-1, shape[2]), *w[at : at + 2])
            return eager.call(ops.linear, normed, *w[at + 2 : at + 4], gelu=gelu)

        def linear(y: np.ndarray, at: int) -> np.ndarray:
            return eager.call(ops.linear, y.reshape(x[..., 0].size, -1), *w[at : at + 2], gelu=False).reshape(shape)

        rows = normed_linear(x, 0).reshape(*shape[:2], -1)
        y = linear(eager.call(cached_attention, rows, past, *caches), 4) + x
        query = normed_linear(y, 6).reshape(shape)
        attended = eager.call(ops.attention, query, *audio, rounded=self.rounded, key_count=AUDIO)
        y = linear(attended, 10) + y
        return linear(normed_linear(y, 12, gelu=True), 16) + y

    def reference(self, tokens: np.ndarray) -> np.ndarray:
        """The states in float64."""
        positions = self.embeddings[3].astype(np.float64)
        at = self.past[:, None] + np.arange(tokens.shape[1])
        x = self.embeddings[0].astype(np.float64)[tokens] + positions[at]
        for layer in range(LAYERS):
            w = [weight.astype(np.float64) for weight in self.blocks[layer]]
            rows, results = references.linear(references.layer_norm(x, *w[:2]), *w[2:4]), []
            for b, past in enumerate(self.past):
                seen = np.concatenate([self.text[layer, b, :past], rows[b, :, -self.text.shape[3] :]])[None]
                attended = references.attention(rows[b][None], *pack(seen, self.heads), first_visible=past + 1)
                results.append(attended[0])
            y = references.linear(np.stack(results), *w[4:6]) + x
            query = references.linear(references.layer_norm(y, *w[6:8]), *w[8:10])
            audio = [part[layer, : len(x)] for part in self.audio]
            y += references.linear(references.attention(query, *audio), *w[10:12])
            hidden = references.linear(references.layer_norm(y, *w[12:14]), *w[14:16], gelu=True)
            x = y + references.linear(hidden, *w[16:18])
        return references.layer_norm(x, *(part.astype(np.float64) for part in self.embeddings[4:]))


class GRAMMAR:
    """What `follow` needs of a model's sizes."""

    end_of_text, timestamp_begin, n_vocab = END, FIRST, VOCABULARY


def tokens_for(rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, and the last one of each row."""
    tokens = rng.integers(0, VOCABULARY, (batch, length), dtype=np.int32)
    return tokens, np.full(batch, length - 1, np.int32)


# One row and more than a tile has; windows of different length; a prompt of many rows, of which a CPU makes pairs.
SHAPES = [
    (1, 1, 1, [0], 5),
    (1, 1, 6, [69], 1),
    (2, 1, 2, [3, 60], 6),
    (3, 7, 1, [0, 17, 40], 4),
    (1, 66, 2, [2], 3),
    (8, 1, 1, [5] * 8, 3),
]


@pytest.mark.parametrize(("batch", "length", "heads", "past", "steps"), SHAPES)
def test_matches_reference(rng, batch, length, heads, past, steps):
    model = Decoder(rng, "float32", batch, heads, past)
    tokens, last = tokens_for(rng, batch, length)
    states, picked, log_probs = model.run(tokens, last, 1)[:3]
    expected = model.reference(tokens)
    np.testing.assert_allclose(states, expected, **STATES_TOLERANCE)
    vocabulary = model.embeddings[0].astype(np.float64)
    best = references.greedy(expected, last, vocabulary, model.mask, model.rules, timestamp_begin=FIRST)
    allowed = references.allowed_tokens(model.mask, model.rules, timestamp_begin=FIRST)
    first, second = np.sort(np.where(allowed, expected[:, -1] @ vocabulary.T, -np.inf))[:, :-3:-1].T
    clear = first - second > 1e-3  # more than states are off
    np.testing.assert_array_equal(picked[clear, 0], best[0][clear])
    np.testing.assert_allclose(log_probs[:, 0], best[1], rtol=0, atol=LOG_PROBABILITY)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "heads", "past", "steps"), SHAPES)
def test_is_the_chain_of_its_kernels(rng, dtype, batch, length, heads, past, steps):
    model = Decoder(rng, dtype, batch, heads, past)
    tokens, last = tokens_for(rng, batch, length)
    results, expected = model.run(tokens, last, steps), model.chain(tokens, last, steps)
    made = expected[1][0] >= 0
    np.testing.assert_array_equal(results[0], expected[0])
    np.testing.assert_array_equal(results[1], expected[1])
    np.testing.assert_array_equal(results[2][:, made], expected[2][:, made])
    for cache, expected_cache, before in zip(results[3:], expected[3:], model.caches, strict=True):
        np.testing.assert_array_equal(cache[:, :batch], expected_cache)
        np.testing.assert_array_equal(cache[:, batch:], before[:, batch:])


def test_rows_of_different_lengths(rng):
    """A row goes on from its last valid token; what lies behind it is overwritten."""
    model = Decoder(rng, "float32", 3, 1, [0, 4, 9])
    tokens, _ = tokens_for(rng, 3, 5)
    last = np.array([4, 0, 2], np.int32)
    for result, expected in zip(model.run(tokens, last, 4), model.chain(tokens, last, 4), strict=True):
        np.testing.assert_array_equal(result[:, :3] if result.ndim > 4 else result, expected)


def test_timestamps_and_text(rng):
    """Forty tokens, whose rules follow from those before them: text between timestamps that do not go back."""
    model = Decoder(rng, "int8", 4, 2, [3, 5, 0, 9])
    model.mask[END:FIRST] = 1  # it would end soon
    model.embeddings[3] *= 8  # states that depend on the position: not the same token again and again
    tokens, last = tokens_for(rng, 4, 1)
    results, expected = model.run(tokens, last, 40), model.chain(tokens, last, 40)
    np.testing.assert_array_equal(results[1], expected[1])
    np.testing.assert_array_equal(results[2], expected[2])
    for said in results[1]:
        assert FIRST <= said[0] < FIRST + 5
        assert (np.diff(said[said >= FIRST]) >= 0).all()
        assert (said < END).any()


def test_a_run_ends_with_a_row(rng):
    model = Decoder(rng, "float32", 2, 1, [0, 0])
    tokens, last = tokens_for(rng, 2, 1)
    model.mask[END + 1 : FIRST] = 1
    model.rules[1] = 1, END, FIRST, FIRST  # nothing but the end
    picked = model.run(tokens, last, 4)[1]
    assert picked[1].tolist() == [END, -1, -1, -1]
    assert picked[0, 0] >= 0
    assert picked[0, 1:].tolist() == [-1, -1, -1]


def test_rows_that_have_ended_end_again(rng):
    model = Decoder(rng, "float32", 2, 1, [3, 0])
    model.mask[END] = 1
    tokens, last = tokens_for(rng, 2, 1)
    tokens[0] = END
    model.said[0] = 5, END, -1
    results = model.run(tokens, last, 4)
    assert results[1][0].tolist() == [END] * 4
    assert results[2][0].tolist() == [0] * 4
    np.testing.assert_array_equal(results[1], model.chain(tokens, last, 4)[1])
    assert (results[1][1] >= 0).all()


def test_threads_may_come_when_they_will(rng):
    """A thread that comes late, or not at all, leaves no gap: many steps, each of which wakes threads anew."""
    model = Decoder(rng, "int8", 1, 6, [4])
    tokens, last = tokens_for(rng, 1, 1)
    model.mask[END] = 1
    expected = model.chain(tokens, last, 30)
    for _ in range(20):
        arguments = model.arguments(tokens, last, 30)
        eager.call(decoder, *arguments)
        np.testing.assert_array_equal(arguments[6], expected[1])
        np.testing.assert_array_equal(arguments[7], expected[2])


def test_nothing_of_no_window(rng):
    model = Decoder(rng, "float32", 0, 2, [])
    tokens, last = tokens_for(rng, 0, 1)
    assert model.run(tokens, last, 2)[0].shape == (0, 1, 2 * HEAD)


@pytest.mark.parametrize(("weight", "dtype"), AUDIO_HEADS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_audio_heads(rng, batch, weight, dtype):
    d = 2 * HEAD
    states = rng.standard_normal((batch, AUDIO, d), dtype=np.float32)
    packed_as = {"f32": "float32", "f16": "float16", "i8": "int8"}[weight]
    weights = [pack_linear(rng.standard_normal((2 * d, d), dtype=np.float32) / 8, packed_as) for _ in range(LAYERS)]
    biases = rng.standard_normal((LAYERS, 2 * d), dtype=np.float32)
    results = run(audio_heads, states, np.stack(weights), biases, heads=2, dtype=dtype)
    for layer in range(LAYERS):
        rows = eager.call(ops.linear, states, weights[layer], biases[layer], gelu=False)
        expected = eager.call(pack_heads, rows, heads=2, dtype=dtype)
        for result, one in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result[layer], one)


ARGUMENTS = (
    *("tokens", "past", "last", "rules", "said", "mask", "picked", "log_probs"),
    *("keys", "values", "audio_keys", "audio_values"),
    *("vocabulary", "rotation", "screen", "positions", "last_gamma", "last_beta"),
    *("gamma", "beta", "qkv", "qkv_bias", "out", "out_bias"),
)
REFUSED = [
    ("tokens", lambda x: x + 60, r"tokens\[0, 0\] is \d+, expected 0 to 59"),
    ("tokens", lambda x: x[:, :0], "L, T and S must be positive"),
    ("past", lambda x: x + 70, r"past\[0\] is 70, expected 0 to 69"),
    ("past", lambda x: x[:0], "B of past is 0, expected 1"),
    ("past", lambda x: x + 67, "row 0 has room for 3 tokens to be picked, 4 are asked for"),
    ("last", lambda x: x + 1, r"last\[0\] is 1, expected 0 to 0"),
    ("rules", lambda x: x[:, :3], "the number of rules is 3, expected 4"),
    ("rules", lambda x: x + 256, r"rules\[0, 0\] is \d+, expected 0 to 255"),
    ("said", lambda x: x - 1, r"said\[0, 0\] is -2, expected -1 to 59"),
    ("said", lambda x: x[:, :2], "the tokens that were said is 2, expected 3"),
    ("mask", lambda x: x[:-1], "V of the vocabulary is 60, expected 59"),
    ("mask", lambda x: x | 1, "the rules of row 0 suppress every token"),
    ("picked", lambda x: x[:, :2], "S of the log probabilities is 4, expected 2"),
    ("picked", lambda x: x[:0], "B of the tokens picked is 0, expected 1"),
    ("keys", lambda x: x[:, :0], "B is 1, the caches have 0 rows"),
    ("keys", lambda x: x[:, :, :1], "H of the keys is 1, expected 2"),
    ("values", lambda x: x[:1], "L of the values is 1, expected 2"),
    ("values", lambda x: x[..., :9, :], "the number of panels of keys is 5, expected 1"),
    ("audio_keys", lambda x: x[:, :, :, :1], "the number of panels of keys is 1, expected 3"),
    ("audio_values", lambda x: x[..., :0, :], "the number of panels of keys is 3, expected 0"),
    ("vocabulary", lambda x: x[:, :-1], "D of the vocabulary is 127, expected 128"),
    ("positions", lambda x: x[:, :-1], "d of the positions is 127, expected 128"),
    ("last_gamma", lambda x: x[:-1], "gamma of the last norm is 127, expected 128"),
    ("gamma", lambda x: x[:, :-1], "gamma and beta is 127, expected 128"),
    ("beta", lambda x: x[:-1], "L of a beta is 1, expected 2"),
    ("qkv", lambda x: x[:, :-1], "the number of packed panels is 23, expected 24"),
    ("qkv", lambda x: x[:-1], "L of a weight is 1, expected 2"),
    ("qkv_bias", lambda x: x[:, :-1], "N of qkv is 383, expected 384"),
    ("out", lambda x: x[:, :, :-1], "the number of rows of a packed panel is 127, expected 128"),
]


def test_refuses_more_tokens_than_the_caches_hold(rng):
    """Caches may have fewer positions than there are embeddings of."""
    arguments = Decoder(rng, "float32", 1, 2, [0]).arguments(np.zeros((1, 1), np.int32), np.zeros(1, np.int32), 17)
    keys, values = ARGUMENTS.index("keys"), ARGUMENTS.index("values")
    arguments[keys] = np.ascontiguousarray(arguments[keys][:, :, :, :1])
    arguments[values] = np.ascontiguousarray(arguments[values][:, :, :, :16])
    with pytest.raises(ValueError, match="row 0 has room for 16 tokens to be picked, 17 are asked for"):
        eager.call(decoder, *arguments)


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_refuses(rng, name, change, message):
    model = Decoder(rng, "float32", 1, 2, [0])
    arguments = model.arguments(*tokens_for(rng, 1, 1), 4)
    position = ARGUMENTS.index(name)
    arguments[position] = np.ascontiguousarray(change(arguments[position]))
    with pytest.raises(ValueError, match=message):
        eager.call(decoder, *arguments)


def test_states_that_are_not_finite(rng):
    model = Decoder(rng, "float32", 2, 1, [0, 0])
    model.embeddings[3][0, 5] = np.nan
    with pytest.raises(ValueError, match="the logits of row 0 are not finite"):
        model.run(*tokens_for(rng, 2, 1), 2)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x[..., :-1], "d of the states is 127, expected 128"),
        (1, lambda x: x[:, :-1], "the number of packed panels is 15, expected 16"),
        (2, lambda x: x[:-1], "L of a bias is 1, expected 2"),
        (2, lambda x: x[:, :-1], "N of a layer is 255, expected 256"),
    ],
)
def test_audio_heads_refuses(rng, position, change, message):
    weight = np.stack([pack_linear(rng.standard_normal((256, 128), dtype=np.float32))] * LAYERS)
    arguments = [np.zeros((1, AUDIO, 128), np.float32), weight, np.zeros((LAYERS, 256), np.float32)]
    arguments[position] = np.ascontiguousarray(change(arguments[position]))
    with pytest.raises(ValueError, match=message):
        eager.call(audio_heads, *arguments, heads=2, dtype="float32")

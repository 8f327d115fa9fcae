"""The vocabulary's ops: greedy, token_probability, logits.

Hidden states and weights are small multiples of a power of two, so that every logit is exact in float32 and float64
alike: equal logits are really equal, and which token comes first is decided, not left to rounding.
"""

from itertools import product

import numpy as np
import pytest

from max_whisper import eager, ops
from max_whisper.packing import pack_linear

from . import references
from .harness import FLOAT32_TOLERANCE, check, run

TIMESTAMP_RULE = 128
FIRST = 12  # timestamp
REAL_FIRST, REAL_VOCABULARY, NO_SPEECH = 50365, 51866, 50363
EVERYTHING = (0, 0, 0, 2**31 - 1)

GREEDY = "f32[3] i32[1] f32[3] u8[1] i32[2]"
for first in (FIRST, REAL_FIRST):
    eager.prepare(ops.greedy, GREEDY, timestamp_begin=first)
for weights in ("f16", "bf16", "i8"):
    eager.prepare(ops.greedy, f"f32[3] i32[1] {weights}[3] u8[1] i32[2]", timestamp_begin=FIRST)
for size, token in ((1, 0), (17, 16), (300, 255), (REAL_VOCABULARY, NO_SPEECH)):
    eager.prepare(ops.token_probability, "f32[3] i32[1] f32[3]", n_vocab=size, token=token)
for size in (1, 16, 17, REAL_VOCABULARY):
    eager.prepare(ops.logits, "f32[3] i32[1] f32[3]", n_vocab=size)


def exact(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32) / 4


def rows(rng: np.random.Generator, batch: int, depth: int, vocabulary: int) -> list[np.ndarray]:
    """Hidden states of three positions, which one to use, and panels whose padding would win if it took part."""
    hidden = exact(rng, batch, 3, depth) * 2.0 ** -rng.integers(0, 5, (batch, 1, 1)).astype(np.float32)
    panels = pack_linear(exact(rng, vocabulary, depth))
    panels[-1, :, (vocabulary - 1) % 16 + 1 :] = np.nan
    return [hidden, rng.integers(0, 3, batch, dtype=np.int32), panels]


def random_rules(rng: np.random.Generator, batch: int, mask: np.ndarray, first: int) -> np.ndarray:
    """Rules under which every row has a token left."""
    rules = np.zeros((batch, 4), np.int32)
    todo = np.ones(batch, bool)
    while todo.any():
        rules[todo, 0] = rng.integers(0, 256, todo.sum())
        rules[todo, 1] = rng.choice([0, first // 2, first - 1, first], todo.sum())
        rules[todo, 2:] = first + np.sort(rng.integers(-1, max(2, len(mask) - first + 2), (todo.sum(), 2)))
        todo = ~references.allowed_tokens(mask, rules, timestamp_begin=first).any(-1)
    return rules


@pytest.mark.parametrize("depth", [61, 64, 384])
@pytest.mark.parametrize("vocabulary", [1, 11, 12, 13, 15, 16, 17, 31, 255, 256, 257, 268, 300])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_random_rules(rng, batch, vocabulary, depth):
    mask = rng.choice(np.arange(8, dtype=np.uint8) % 3, vocabulary)
    mask[rng.integers(vocabulary)] = 0
    rules = np.array([EVERYTHING] * batch, np.int32) if vocabulary <= FIRST else random_rules(rng, batch, mask, FIRST)
    arrays = [*rows(rng, batch, depth, vocabulary), mask, rules]
    check(ops.greedy, arrays, references.greedy, timestamp_begin=FIRST, **FLOAT32_TOLERANCE)


def test_every_kind_of_rules(rng):
    vocabulary = 40
    mask = rng.integers(0, 128, vocabulary).astype(np.uint8)
    text = (0, 5, FIRST - 1, FIRST)
    timestamps = ((FIRST, vocabulary), (FIRST + 3, FIRST + 4), (FIRST, FIRST), (0, 2**31 - 1), (vocabulary, FIRST))
    bits = [b | rule for b in (0, 1, 2, 3, 64, 127) for rule in (0, TIMESTAMP_RULE)]
    rules = np.array([(b, t, *r) for b, t, r in product(bits, text, timestamps)], np.int32)
    rules = rules[references.allowed_tokens(mask, rules, timestamp_begin=FIRST).any(-1)]
    for _ in range(3):
        arrays = [*rows(rng, len(rules), 64, vocabulary), mask, rules]
        check(ops.greedy, arrays, references.greedy, timestamp_begin=FIRST, **FLOAT32_TOLERANCE)


def test_timestamps_win_together(rng):
    """28 timestamps, each less probable than the best text token: together they are more probable, or they are not."""
    hidden, at, vocabulary = np.ones((2, 1, 1), np.float32), np.zeros(2, np.int32), np.zeros((40, 1), np.float32)
    rules = np.array([(TIMESTAMP_RULE, *EVERYTHING[1:]), EVERYTHING], np.int32)
    for text_logit, wins in ((3.3, True), (3.4, False)):  # log 28 = 3.33
        vocabulary[4], vocabulary[30] = text_logit, 0.01
        tokens, log_probs = run(
            ops.greedy, hidden, at, pack_linear(vocabulary), np.zeros(40, np.uint8), rules, timestamp_begin=FIRST
        )
        assert tokens.tolist() == [30 if wins else 4, 4]
        allowed = vocabulary[FIRST if wins else 0 :, 0]
        expected = vocabulary[tokens, 0] - [np.log(np.exp(x).sum()) for x in (allowed, vocabulary[:, 0])]
        np.testing.assert_allclose(log_probs, expected, rtol=1e-5)


def test_timestamp_rule_ignores_what_is_suppressed():
    hidden, at, vocabulary = np.ones((1, 1, 1), np.float32), np.zeros(1, np.int32), np.zeros((40, 1), np.float32)
    vocabulary[4], vocabulary[6] = 2, 5
    mask = np.zeros(40, np.uint8)
    mask[6], mask[20:] = 1, 2  # 8 of 28 timestamps are left: log 8 = 2.08
    for bits, token in ((0, 6), (1, FIRST), (3, FIRST), (2, 6)):
        rules = np.array([(bits | TIMESTAMP_RULE, *EVERYTHING[1:])], np.int32)
        picked, _ = run(ops.greedy, hidden, at, pack_linear(vocabulary), mask, rules, timestamp_begin=FIRST)
        assert picked.tolist() == [token]


def test_first_of_equals_wins(rng):
    hidden, at = np.ones((1, 1, 4), np.float32), np.zeros(1, np.int32)
    for _ in range(20):
        vocabulary = np.zeros((600, 4), np.float32)
        best = rng.choice(600, 3, replace=False)
        vocabulary[best] = 1
        arrays = hidden, at, pack_linear(vocabulary), np.zeros(600, np.uint8), np.array([EVERYTHING], np.int32)
        assert run(ops.greedy, *arrays, timestamp_begin=FIRST)[0].tolist() == [best.min()]


def test_a_row_does_not_depend_on_the_others(rng):
    hidden, at, panels = rows(rng, 7, 61, 300)
    mask = rng.integers(0, 2, 300).astype(np.uint8)
    rules = random_rules(rng, 7, mask, FIRST)
    tokens, log_probs = run(ops.greedy, hidden, at, panels, mask, rules, timestamp_begin=FIRST)
    for b in range(7):
        alone = run(
            ops.greedy, *(x[b : b + 1] for x in (hidden, at)), panels, mask, rules[b : b + 1], timestamp_begin=FIRST
        )
        np.testing.assert_array_equal([tokens[b : b + 1], log_probs[b : b + 1]], alone)


@pytest.mark.parametrize("batch", [1, 5])
def test_real_vocabulary(rng, batch):
    hidden, at, panels = rows(rng, batch, 384, REAL_VOCABULARY)
    mask = (rng.random(REAL_VOCABULARY) < 0.1).astype(np.uint8)
    rules = np.array([(TIMESTAMP_RULE | 1, 0, REAL_FIRST, REAL_VOCABULARY)] * batch, np.int32)
    rules[batch // 2] = TIMESTAMP_RULE, 50257, REAL_FIRST + 700, REAL_VOCABULARY
    arrays = [hidden, at, panels, mask, rules]
    check(ops.greedy, arrays, references.greedy, timestamp_begin=REAL_FIRST, **FLOAT32_TOLERANCE)
    for op, reference, parameters in (
        (ops.logits, references.logits, {}),
        (ops.token_probability, references.token_probability, {"token": NO_SPEECH}),
    ):
        check(op, arrays[:3], reference, n_vocab=REAL_VOCABULARY, **parameters, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_narrow_vocabulary(rng, dtype, batch):
    """The reference multiplies the same rounded numbers; sums are of float32, or exact: the bound is float32's."""
    mask = np.zeros(300, np.uint8)
    hidden = rng.standard_normal((batch, 3, 61), dtype=np.float32)
    panels = pack_linear(rng.standard_normal((300, 61), dtype=np.float32), dtype)
    arrays = [hidden, rng.integers(0, 3, batch, dtype=np.int32), panels, mask, random_rules(rng, batch, mask, FIRST)]
    check(ops.greedy, arrays, references.greedy, timestamp_begin=FIRST, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize(("vocabulary", "token"), [(1, 0), (17, 16), (300, 255)])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_token_probability(rng, batch, vocabulary, token):
    hidden, at, panels = rows(rng, batch, 61, vocabulary)
    at[rng.random(batch) < 0.4] = -1
    check(
        ops.token_probability,
        [hidden, at, panels],
        references.token_probability,
        n_vocab=vocabulary,
        token=token,
        rtol=2e-5,
        atol=1e-9,
    )


def test_token_probability_of_no_row_reads_nothing(rng):
    hidden, at, panels = rows(rng, 3, 61, 17)
    probabilities = run(ops.token_probability, hidden, at * 0 - 1, panels * np.nan, n_vocab=17, token=16)
    assert np.isnan(probabilities).all()
    assert np.isnan(probabilities).shape == (3,)


@pytest.mark.parametrize("vocabulary", [1, 16, 17])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_logits(rng, batch, vocabulary):
    check(ops.logits, rows(rng, batch, 61, vocabulary), references.logits, n_vocab=vocabulary, rtol=0, atol=0)


def test_no_rows(rng):
    hidden, at, panels = rows(rng, 0, 61, 17)
    tokens, log_probs = eager.call(
        ops.greedy, hidden, at, panels, np.zeros(17, np.uint8), np.zeros((0, 4), np.int32), timestamp_begin=FIRST
    )
    assert tokens.shape == log_probs.shape == (0,)
    assert eager.call(ops.logits, hidden, at, panels, n_vocab=17).shape == (0, 17)
    assert eager.call(ops.token_probability, hidden, at, panels, n_vocab=17, token=16).shape == (0,)


def put(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a, e, m, r: (h, put(a, (1,), 3), e, m, r), r"at\[1\] is 3, expected 0 to 2"),
        (lambda h, a, e, m, r: (h, put(a, (0,), -1), e, m, r), r"at\[0\] is -1, expected 0 to 2"),
        (lambda h, a, e, m, r: (h, a[:1], e, m, r), "B of at is 1, expected 2"),
        (lambda h, a, e, m, r: (h[..., 1:], a, e, m, r), "the number of rows of a packed panel is 24, expected 23"),
        (lambda h, a, e, m, r: (h, a, e[:2], m, r), "the number of packed panels is 2, expected 3"),
        (lambda h, a, e, m, r: (h, a, e, m[:32], r), "the number of packed panels is 3, expected 2"),
        (lambda h, a, e, m, r: (h, a, e[..., 1:], m, r), "the width of a packed panel is 15, expected 16"),
        (lambda h, a, e, m, r: (h, a, e, m, r[:1]), "B of the rules is 1, expected 2"),
        (lambda h, a, e, m, r: (h, a, e, m, r[:, 1:]), "the number of rules is 3, expected 4"),
        (lambda h, a, e, m, r: (h, a, e, m, put(r, (1, 0), 256)), r"rules\[1, 0\] is 256, expected 0 to 255"),
        (lambda h, a, e, m, r: (h, a, e, m, put(r, (1, 0), -1)), r"rules\[1, 0\] is -1, expected 0 to 255"),
        (lambda h, a, e, m, r: (h, a, e, m | 1, put(r, (1, 0), 1)), "the rules of row 1 suppress every token"),
        (lambda h, a, e, m, r: (h, a, e, m, put(put(r, (0, 1), 12), (0, 3), 0)), "the rules of row 0 suppress every"),
        (lambda h, a, e, m, r: (put(h, (1, 0, 5), np.nan), a, e, m, r), "the logits of row 1 are not finite"),
        (lambda h, a, e, m, r: (put(h, (1, 0, 5), np.inf), a, e, m, r), "the logits of row 1 are not finite"),
        (lambda h, a, e, m, r: (h[..., :0], a, e[:, :0], m, r), "D and V must be positive"),
    ],
)
def test_refuses(rng, change, message):
    hidden, _, panels = rows(rng, 2, 24, 37)
    arrays = hidden, np.zeros(2, np.int32), panels, np.zeros(37, np.uint8), np.array([EVERYTHING] * 2, np.int32)
    with pytest.raises(ValueError, match=message):
        eager.call(ops.greedy, *change(*arrays), timestamp_begin=FIRST)


def test_others_refuse(rng):
    hidden, at, panels = rows(rng, 2, 24, 17)
    spoilt = put(hidden.copy(), (1, at[1], 3), np.nan)
    with pytest.raises(ValueError, match="the logits of row 1 are not finite"):
        eager.call(ops.token_probability, spoilt, at, panels, n_vocab=17, token=16)
    with pytest.raises(ValueError, match=r"at\[1\] is -2, expected -1 to 2"):
        eager.call(ops.token_probability, hidden, put(at, (1,), -2), panels, n_vocab=17, token=16)
    with pytest.raises(ValueError, match=r"at\[1\] is -1, expected 0 to 2"):
        eager.call(ops.logits, hidden, put(at, (1,), -1), panels, n_vocab=17)

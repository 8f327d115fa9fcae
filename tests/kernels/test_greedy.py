"""The vocabulary's ops: greedy, token_probability, logits.

Hidden states and weights are small multiples of a power of two, so that every logit is exact in float32 and float64
alike: equal logits are really equal, and which token comes first is decided, not left to rounding.

Picks must be exact. Of a log probability, the sum over the tokens that were not read in full is known but for the screen's
bounds: LOG_PROBABILITY.
"""

from itertools import product

import numpy as np
import pytest

from max_whisper import eager, ops, target
from max_whisper import screen as screens

from . import references
from .harness import run

TIMESTAMP_RULE = 128
FIRST = 12  # timestamp
REAL_FIRST, REAL_VOCABULARY, NO_SPEECH = 50365, 51866, 50363
EVERYTHING = (0, 0, 0, 2**31 - 1)

LOG_PROBABILITY = 2e-3

GREEDY = "f32[3] i32[1] {}[2] u8[1] i32[2] f16[3] i8[3]"
for first in (FIRST, REAL_FIRST):
    eager.prepare(ops.greedy, GREEDY.format("f32"), timestamp_begin=first)
eager.prepare(ops.greedy, GREEDY.format("f16"), timestamp_begin=FIRST)
for size, token in ((1, 0), (17, 16), (300, 255), (REAL_VOCABULARY, NO_SPEECH)):
    eager.prepare(ops.token_probability, "f32[3] i32[1] f32[2] f16[3] i8[3]", n_vocab=size, token=token)
for size in (1, 16, 17, REAL_VOCABULARY):
    eager.prepare(ops.logits, "f32[3] i32[1] f32[2]", n_vocab=size)


def exact(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32) / 4


def screened(vocabulary: np.ndarray) -> list[np.ndarray]:
    """Rotation and screen of a vocabulary; what pads the last panel would be read, behind the end, if it took part."""
    rotation, screen = screens.pack_rotation(vocabulary), screens.pack_screen(vocabulary)
    screen[-1, :2].view(np.float32)[:, (len(vocabulary) - 1) % 16 + 1 :] = np.inf
    return [rotation, screen]


def rows(rng: np.random.Generator, batch: int, depth: int, vocabulary: int) -> list[np.ndarray]:
    """Hidden states of three positions, which one to use, and a vocabulary."""
    hidden = exact(rng, batch, 3, depth) * 2.0 ** -rng.integers(0, 5, (batch, 1, 1)).astype(np.float32)
    return [hidden, rng.integers(0, 3, batch, dtype=np.int32), exact(rng, vocabulary, depth)]


def check_picks(arrays: list[np.ndarray], first: int = FIRST, screen: list[np.ndarray] | None = None) -> None:
    """Compares the pick with the reference's: the token exactly."""
    tokens, log_probs = run(ops.greedy, *arrays, *(screen or screened(arrays[2])), timestamp_begin=first)
    wide = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in arrays]
    expected, expected_log_probs = references.greedy(*wide, timestamp_begin=first)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(log_probs, expected_log_probs, rtol=0, atol=LOG_PROBABILITY)


def check_probability(
    arrays: list[np.ndarray], vocabulary: int, token: int, screen: list[np.ndarray] | None = None
) -> None:
    """Compares a probability with the reference's."""
    result = run(ops.token_probability, *arrays, *(screen or screened(arrays[2])), n_vocab=vocabulary, token=token)
    expected = references.token_probability(
        *(x.astype(np.float64) if x.dtype.kind == "f" else x for x in arrays), n_vocab=vocabulary, token=token
    )
    np.testing.assert_allclose(result, expected, rtol=LOG_PROBABILITY, atol=1e-9)


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
    check_picks(arrays)


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
        check_picks(arrays)


def pick(hidden: np.ndarray, vocabulary: np.ndarray, mask: np.ndarray, rules: np.ndarray) -> list[np.ndarray]:
    """Tokens and log probabilities at the first position of every row."""
    at = np.zeros(len(hidden), np.int32)
    return run(ops.greedy, hidden, at, vocabulary, mask, rules, *screened(vocabulary), timestamp_begin=FIRST)


def test_timestamps_win_together(rng):
    """28 timestamps, each less probable than the best text token: together they are more probable, or they are not."""
    hidden, vocabulary = np.ones((2, 1, 1), np.float32), np.zeros((40, 1), np.float32)
    rules = np.array([(TIMESTAMP_RULE, *EVERYTHING[1:]), EVERYTHING], np.int32)
    for text_logit, wins in ((3.3, True), (3.4, False)):  # log 28 = 3.33
        vocabulary[4], vocabulary[30] = text_logit, 0.01
        tokens, log_probs = pick(hidden, vocabulary, np.zeros(40, np.uint8), rules)
        assert tokens.tolist() == [30 if wins else 4, 4]
        allowed = vocabulary[FIRST if wins else 0 :, 0]
        expected = vocabulary[tokens, 0] - [np.log(np.exp(x).sum()) for x in (allowed, vocabulary[:, 0])]
        np.testing.assert_allclose(log_probs, expected, atol=LOG_PROBABILITY)


def test_timestamps_far_below_the_text_win_together(rng):
    """500 timestamps, each 5 less than the best text token, which is out of reach of their bounds: log 500 = 6.2."""
    vocabulary = rng.standard_normal((600, 64)).astype(np.float32) / 100
    vocabulary[:, 0] = -20
    vocabulary[FIRST : FIRST + 500, 0], vocabulary[3, 0] = -5, 0
    hidden = np.zeros((1, 1, 64), np.float32)
    hidden[..., 0] = 1
    for count, wins in ((500, True), (100, False)):  # log 100 = 4.6
        rules = np.array([(TIMESTAMP_RULE, 0, FIRST, FIRST + count)], np.int32)
        tokens, _ = pick(hidden, vocabulary, np.zeros(600, np.uint8), rules)
        assert (tokens[0] >= FIRST) == wins


def test_timestamp_rule_ignores_what_is_suppressed():
    hidden, vocabulary = np.ones((1, 1, 1), np.float32), np.zeros((40, 1), np.float32)
    vocabulary[4], vocabulary[6] = 2, 5
    mask = np.zeros(40, np.uint8)
    mask[6], mask[20:] = 1, 2  # 8 of 28 timestamps are left: log 8 = 2.08
    for bits, token in ((0, 6), (1, FIRST), (3, FIRST), (2, 6)):
        rules = np.array([(bits | TIMESTAMP_RULE, *EVERYTHING[1:])], np.int32)
        assert pick(hidden, vocabulary, mask, rules)[0].tolist() == [token]


def test_first_of_equals_wins(rng):
    hidden = np.ones((1, 1, 4), np.float32)
    for _ in range(20):
        vocabulary = np.zeros((600, 4), np.float32)
        best = rng.choice(600, 3, replace=False)
        vocabulary[best] = 1
        rules = np.array([EVERYTHING], np.int32)
        assert pick(hidden, vocabulary, np.zeros(600, np.uint8), rules)[0].tolist() == [best.min()]


# --- the screen ------------------------------------------------------------------------------------------------------


def unpack_screen(screen: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What tokens are rounded to, (V, columns), the norms of the rounding errors and of the rounded numbers, (V)."""
    count = (screen.shape[1] - 2) * 2 // 17
    head = 2 + -(-count // 2)
    errors, norms = (np.ascontiguousarray(screen[:, i]).view(np.float32).reshape(-1)[:tokens] for i in range(2))
    scales = np.ascontiguousarray(screen[:, 2:head]).view(np.float16).reshape(len(screen), -1, 16)[:, :count]
    words = np.ascontiguousarray(screen[:, head:]).view(np.uint32).reshape(len(screen), count, 8, 16)
    numbers = np.zeros((*words.shape, 8))
    for k in range(8):
        pair, half = (k // 4 * 2 + k % 2, k % 4 // 2)
        nibble = (words >> np.uint32(16 * half + 4 * pair) & np.uint32(15)).astype(np.int64)
        numbers[..., k] = np.where(nibble > 7, nibble - 16, nibble)
    rounded = numbers.transpose(0, 3, 1, 2, 4).reshape(len(screen) * 16, count, 64)
    rounded *= scales.transpose(0, 2, 1).reshape(len(screen) * 16, count, 1)
    return rounded.reshape(len(screen) * 16, -1)[:tokens], errors, norms


def rounds_to_bytes() -> bool:
    """Whether the kernel rounds a state to bytes, as every x86 CPU multiplies them: else to 12 bits."""
    return target.cpu_target() != "host"


def bounds(hidden: np.ndarray, vocabulary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rough logits of states (B, D), and how far they may be from the logits, in float64."""
    tokens, depth = vocabulary.shape
    rotation, screen = screened(vocabulary)
    turned = hidden.astype(np.float64) @ references.unpack_linear(rotation, rotation.shape[0] * 16 - 15, depth).T
    x, shift = turned[:, :-1], turned[:, -1:]
    step = np.abs(x).max(-1, keepdims=True) / (127 if rounds_to_bytes() else 2047)
    kept = np.rint(x / step) * step
    rounded, errors, norms = unpack_screen(screen, tokens)
    size, lost = (np.linalg.norm(part[:, :depth], axis=-1, keepdims=True) for part in (x, x - kept))
    return kept @ rounded.T + shift, size * errors + lost * norms


def embeddings(rng: np.random.Generator, tokens: int, depth: int) -> np.ndarray:
    """Rows around a mean that is larger than they are, some columns much wider than others, as trained ones are."""
    widths = np.exp(rng.standard_normal(depth) / 2)
    return (rng.standard_normal((tokens, depth)) * widths / 50 + rng.standard_normal(depth) / 30).astype(np.float16)


@pytest.mark.parametrize(("tokens", "depth"), [(1, 64), (17, 61), (300, 64), (5000, 384), (1500, 1280)])
def test_logits_are_within_the_bounds(rng, tokens, depth):
    vocabulary = embeddings(rng, tokens, depth)
    hidden = 20 * rng.standard_normal((7, depth))
    rough, slack = bounds(hidden, vocabulary)
    assert (np.abs(rough - hidden @ vocabulary.astype(np.float64).T) <= slack * 1.001 + 1e-5).all()


@pytest.mark.parametrize("batch", [1, 3, 4, 5])
def test_reads_what_may_win_and_nothing_else(rng, batch):
    """Rows that cannot win are NaN in the vocabulary: whoever reads one knows no logit of that state any more."""
    tokens, depth = 5000, 384
    vocabulary = embeddings(rng, tokens, depth)
    hidden = 20 * rng.standard_normal((batch, 1, depth), dtype=np.float32)
    rough, slack = bounds(hidden[:, 0], vocabulary)
    logits = hidden[:, 0].astype(np.float64) @ vocabulary.astype(np.float64).T
    tops = rough >= rough.max(-1, keepdims=True) - 1e-3  # the kernel's rough logits are rounded
    floor = np.where(tops, logits, np.inf).min(-1, keepdims=True)
    reachable = rough + np.maximum(slack * 1.002, 9.01) >= floor - 1e-3
    assert not reachable.any(0).all()
    torn = np.where(reachable.any(0)[:, None], vocabulary, np.float16(np.nan))
    at, mask, rules = np.zeros(batch, np.int32), np.zeros(tokens, np.uint8), np.array([EVERYTHING] * batch, np.int32)
    picked, log_probs = run(ops.greedy, hidden, at, torn, mask, rules, *screened(vocabulary), timestamp_begin=FIRST)
    np.testing.assert_array_equal(picked, logits.argmax(-1))
    expected = references.log_softmax(logits)[np.arange(batch), picked]
    np.testing.assert_allclose(log_probs, expected, atol=LOG_PROBABILITY)


@pytest.mark.parametrize(("tokens", "depth"), [(31, 512), (1500, 1280)])
def test_states_of_other_models(rng, tokens, depth):
    hidden, at = 20 * rng.standard_normal((3, 2, depth), dtype=np.float32), np.array([0, 1, 1], np.int32)
    mask, rules = np.zeros(tokens, np.uint8), np.array([EVERYTHING] * 3, np.int32)
    check_picks([hidden, at, embeddings(rng, tokens, depth), mask, rules])


def look_alikes(rng: np.random.Generator, states: int) -> tuple[np.ndarray, np.ndarray]:
    """States (B, 64), and a vocabulary of ten tokens for each that differ by less than four bits show."""
    vocabulary = embeddings(rng, states, 64).astype(np.float32)
    directions = vocabulary - vocabulary.mean(0)
    hidden = 40 * directions / (directions**2).sum(-1, keepdims=True)
    vocabulary = np.repeat(vocabulary, 10, axis=0)
    best, column = 10 * np.arange(states) + rng.integers(1, 10, states), np.abs(hidden).argmax(-1)
    vocabulary[best, column] += np.sign(hidden[np.arange(states), column]) * np.float32(2**-13)  # more than rounding
    return hidden, vocabulary


def test_tokens_that_the_screen_cannot_tell_apart(rng):
    hidden, vocabulary = look_alikes(rng, 60)
    best = (hidden.astype(np.float64) @ vocabulary.astype(np.float64).T).argmax(-1)
    rough, _ = bounds(hidden, vocabulary)
    assert (rough.argmax(-1) != best).any()
    tokens, _ = pick(hidden[:, None], vocabulary, np.zeros(600, np.uint8), np.array([EVERYTHING] * 60, np.int32))
    np.testing.assert_array_equal(tokens, best)


# --- rows, sizes, errors ---------------------------------------------------------------------------------------------


def test_a_row_does_not_depend_on_the_others(rng):
    hidden, at, vocabulary = rows(rng, 7, 61, 300)
    mask = rng.integers(0, 2, 300).astype(np.uint8)
    rules = random_rules(rng, 7, mask, FIRST)
    screen = screened(vocabulary)
    tokens, log_probs = run(ops.greedy, hidden, at, vocabulary, mask, rules, *screen, timestamp_begin=FIRST)
    for b in range(7):
        one = slice(b, b + 1)
        alone = run(ops.greedy, hidden[one], at[one], vocabulary, mask, rules[one], *screen, timestamp_begin=FIRST)
        np.testing.assert_array_equal([tokens[one], log_probs[one]], alone)


def test_real_vocabulary(rng):
    vocabulary = exact(rng, REAL_VOCABULARY, 384)
    screen = screened(vocabulary)  # takes a second
    for batch in (1, 5):
        hidden, at, _ = rows(rng, batch, 384, 1)
        mask = (rng.random(REAL_VOCABULARY) < 0.1).astype(np.uint8)
        rules = np.array([(TIMESTAMP_RULE | 1, 0, REAL_FIRST, REAL_VOCABULARY)] * batch, np.int32)
        rules[batch // 2] = TIMESTAMP_RULE, 50257, REAL_FIRST + 700, REAL_VOCABULARY
        check_picks([hidden, at, vocabulary, mask, rules], REAL_FIRST, screen)
        check_probability([hidden, at, vocabulary], REAL_VOCABULARY, NO_SPEECH, screen)
        logits = run(ops.logits, hidden, at, vocabulary, n_vocab=REAL_VOCABULARY)
        np.testing.assert_array_equal(logits, references.logits(hidden, at, vocabulary, n_vocab=REAL_VOCABULARY))


@pytest.mark.parametrize("batch", [1, 7])
def test_narrow_vocabulary(rng, batch):
    mask = np.zeros(300, np.uint8)
    hidden = rng.standard_normal((batch, 3, 61), dtype=np.float32)
    vocabulary = rng.standard_normal((300, 61)).astype(np.float16)
    at, rules = rng.integers(0, 3, batch, dtype=np.int32), random_rules(rng, batch, mask, FIRST)
    check_picks([hidden, at, vocabulary, mask, rules])


@pytest.mark.parametrize(("vocabulary", "token"), [(1, 0), (17, 16), (300, 255)])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_token_probability(rng, batch, vocabulary, token):
    hidden, at, embedding = rows(rng, batch, 61, vocabulary)
    at[rng.random(batch) < 0.4] = -1
    check_probability([hidden, at, embedding], vocabulary, token)


def test_token_probability_of_no_row_reads_nothing(rng):
    hidden, at, vocabulary = rows(rng, 3, 61, 17)
    nothing = [vocabulary * np.nan, *(x * 0 for x in screened(vocabulary))]
    probabilities = run(ops.token_probability, hidden, at * 0 - 1, *nothing, n_vocab=17, token=16)
    assert np.isnan(probabilities).all()
    assert probabilities.shape == (3,)


@pytest.mark.parametrize("vocabulary", [1, 16, 17])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_logits(rng, batch, vocabulary):
    arrays = rows(rng, batch, 61, vocabulary)
    result = run(ops.logits, *arrays, n_vocab=vocabulary)
    np.testing.assert_array_equal(result, references.logits(*arrays, n_vocab=vocabulary))


def test_no_rows(rng):
    hidden, at, vocabulary = rows(rng, 0, 61, 17)
    screen = screened(vocabulary)
    mask, rules = np.zeros(17, np.uint8), np.zeros((0, 4), np.int32)
    tokens, log_probs = eager.call(ops.greedy, hidden, at, vocabulary, mask, rules, *screen, timestamp_begin=FIRST)
    assert tokens.shape == log_probs.shape == (0,)
    assert eager.call(ops.logits, hidden, at, vocabulary, n_vocab=17).shape == (0, 17)
    assert eager.call(ops.token_probability, hidden, at, vocabulary, *screen, n_vocab=17, token=16).shape == (0,)


def put(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array[index] = value
    return array


REFUSED = [
    (lambda h, a, e, m, r, o, s: (h, put(a, (1,), 3), e, m, r, o, s), r"at\[1\] is 3, expected 0 to 2"),
    (lambda h, a, e, m, r, o, s: (h, put(a, (0,), -1), e, m, r, o, s), r"at\[0\] is -1, expected 0 to 2"),
    (lambda h, a, e, m, r, o, s: (h, a[:1], e, m, r, o, s), "B of at is 1, expected 2"),
    (lambda h, a, e, m, r, o, s: (h[..., 1:], a, e, m, r, o, s), "D of the vocabulary is 24, expected 23"),
    (lambda h, a, e, m, r, o, s: (h, a, e[1:], m, r, o, s), "V of the vocabulary is 36, expected 37"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m[:32], r, o, s), "V of the vocabulary is 37, expected 32"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m, r[:1], o, s), "B of the rules is 1, expected 2"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m, r[:, 1:], o, s), "the number of rules is 3, expected 4"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m, put(r, (1, 0), 256), o, s), r"rules\[1, 0\] is 256, expected 0 to 255"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m, put(r, (1, 0), -1), o, s), r"rules\[1, 0\] is -1, expected 0 to 255"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m | 1, put(r, (1, 0), 1), o, s), "the rules of row 1 suppress every token"),
    (
        lambda h, a, e, m, r, o, s: (h, a, e, m, put(put(r, (0, 1), 12), (0, 3), 0), o, s),
        "the rules of row 0 suppress every",
    ),
    (lambda h, a, e, m, r, o, s: (put(h, (1, 0, 5), np.nan), a, e, m, r, o, s), "the logits of row 1 are not finite"),
    (lambda h, a, e, m, r, o, s: (put(h, (1, 0, 5), np.inf), a, e, m, r, o, s), "the logits of row 1 are not finite"),
    (lambda h, a, e, m, r, o, s: (h, a, 10 * e, m, r, o, s), "not finite, or the screen is not of this vocabulary"),
    (lambda h, a, e, m, r, o, s: (h[..., :0], a, e[:, :0], m, r, o, s), "D and V must be positive"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m, r, o[:2], s), "the rotation has 0 groups of 64, D is 24"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m, r, o[:, 1:], s), "the number of rows of a packed panel is 23"),
    (
        lambda h, a, e, m, r, o, s: (h, a, e, m, r, np.concatenate([o, o[:1]]), s),
        "the number of packed panels is 6, expected 5",
    ),
    (lambda h, a, e, m, r, o, s: (h, a, e, m, r, o, s[1:]), "the number of panels of the screen is 2, expected 3"),
    (lambda h, a, e, m, r, o, s: (h, a, e, m, r, o, s[:, 1:]), "of a panel of the screen is 10, expected 11"),
    (
        lambda h, a, e, m, r, o, s: (h, a, e, m, r, o, s[..., 1:]),
        "the width of a panel of the screen is 63, expected 64",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refuses(rng, change, message):
    hidden, _, vocabulary = rows(rng, 2, 24, 37)
    arrays = hidden, np.zeros(2, np.int32), vocabulary, np.zeros(37, np.uint8), np.array([EVERYTHING] * 2, np.int32)
    with pytest.raises(ValueError, match=message):
        eager.call(ops.greedy, *change(*arrays, *screened(vocabulary)), timestamp_begin=FIRST)


def test_a_cpu_needs_a_screen(rng):
    hidden, at, vocabulary = rows(rng, 2, 24, 17)
    with pytest.raises(ValueError, match="it takes the vocabulary's rotation and screen"):
        eager.call(ops.token_probability, hidden, at, vocabulary, n_vocab=17, token=16)


def test_others_refuse(rng):
    hidden, at, vocabulary = rows(rng, 2, 24, 17)
    screen = screened(vocabulary)
    spoilt = put(hidden.copy(), (1, at[1], 3), np.nan)
    with pytest.raises(ValueError, match="the logits of row 1 are not finite"):
        eager.call(ops.token_probability, spoilt, at, vocabulary, *screen, n_vocab=17, token=16)
    with pytest.raises(ValueError, match=r"at\[1\] is -2, expected -1 to 2"):
        eager.call(ops.token_probability, hidden, put(at, (1,), -2), vocabulary, *screen, n_vocab=17, token=16)
    with pytest.raises(ValueError, match=r"at\[1\] is -1, expected 0 to 2"):
        eager.call(ops.logits, hidden, put(at, (1,), -1), vocabulary, n_vocab=17)

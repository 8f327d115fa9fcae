"""The vocabulary's ops on a GPU: greedy, greedy_step, token_probability, logits.

Hidden states and weights are small multiples of a power of two, as on a CPU: every logit is exact in every dtype, so equal
logits are equal and which token comes first is decided, not left to rounding.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from max_whisper import eager, ops
from tests.fake_model import follow
from tests.kernels import references
from tests.kernels.test_greedy import EVERYTHING, TIMESTAMP_RULE, random_rules

from .harness import DTYPES, all_counted, execute, prepare, refused, round_to, widen

pytestmark = pytest.mark.gpu

FIRST = 12  # timestamp
END = 9  # the end of text
V = 1300  # six blocks, the last of 20
S = 5  # columns for what is picked
DIMS = SimpleNamespace(n_vocab=V, end_of_text=END, timestamp_begin=FIRST)
STEP: dict[str, Any] = {"end": END, "timestamp_begin": FIRST}
TOLERANCE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}  # the exponential's and logarithm's: the sums are exact


@eager.in_place(*range(4, 10))
def greedy_step(hidden, at, vocabulary, mask, *updated, **parameters):
    ops.greedy_step(hidden, at, vocabulary, mask, updated[:4], updated[4:], **parameters)
    return ()


for name in DTYPES:
    prepare(greedy_step, f"{name}[3] i32[1] {name}[2] u8[1] i32[1] i32[1] i32[2] i32[2] i32[2] f32[2]", **STEP)
    prepare(ops.greedy, f"{name}[3] i32[1] {name}[2] u8[1] i32[2]", timestamp_begin=FIRST)
    prepare(ops.token_probability, f"{name}[3] i32[1] {name}[2]", n_vocab=V, token=V - 1)
    prepare(ops.logits, f"{name}[3] i32[1] {name}[2]", n_vocab=V)


def logits(hidden, at, vocabulary):
    return hidden[np.arange(len(at)), at] @ vocabulary.T


def rows(rng, name, batch, depth, vocabulary=V):
    hidden = rng.integers(-4, 5, (batch, 3, depth)) / 4 * 2.0 ** -rng.integers(0, 3, (batch, 1, 1))
    table = rng.integers(-4, 5, (vocabulary, depth)) / 16
    return round_to(name, hidden), rng.integers(0, 3, batch, dtype=np.int32), round_to(name, table)


def expected_picks(hidden, at, table, mask, rules):
    x = logits(widen(hidden), at, widen(table))
    allowed = references.allowed_tokens(mask, rules, timestamp_begin=FIRST)
    masked = np.where(allowed, x, -np.inf)
    for row, bits in zip(masked, rules[:, 0], strict=True):
        text, timestamps = row[:FIRST], row[FIRST:]
        if bits & TIMESTAMP_RULE and np.logaddexp.reduce(timestamps, initial=-np.inf) > text.max():
            text[:] = -np.inf
    tokens = masked.argmax(-1)
    return tokens, references.log_softmax(masked)[np.arange(len(tokens)), tokens]


def check_greedy(name, hidden, at, table, mask, rules):
    tokens, log_probs = execute(ops.greedy, [hidden, at, table, mask, rules], timestamp_begin=FIRST)
    expected, log_probabilities = expected_picks(hidden, at, table, mask, rules)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(log_probs, log_probabilities, **TOLERANCE)


def told(rng, batch, mask):
    """What a step is told of its rows, of which some have ended, and columns full of what no step may leave there."""
    said = np.stack([rng.choice([-1, 3, END, FIRST, V - 2], batch) for _ in range(3)], axis=1).astype(np.int32)
    tokens, past = said[:, 1].copy(), rng.integers(0, 400, batch, dtype=np.int32)
    picks = np.full((batch, S), -7, np.int32), np.full((batch, S), 7, np.float32)
    return [tokens, past, random_rules(rng, batch, mask, FIRST), said, *picks]


def check_step(hidden, at, table, mask, tokens, past, rules, said, picked, log_probs):
    arrays = [hidden, at, table, mask, tokens, past, rules, said, picked, log_probs]
    newest, places, following, says, picked_after, log_probs_after = execute(greedy_step, arrays, **STEP)
    best, log_probabilities = expected_picks(hidden, at, table, mask, rules)
    ended = said[:, 1] == END
    expected = np.where(ended, END, best)
    np.testing.assert_array_equal(newest, expected)
    np.testing.assert_array_equal(places, past + at + 1)
    latest = np.where(expected >= FIRST, expected, said[:, 2])
    np.testing.assert_array_equal(says, np.stack([said[:, 1], expected, latest], axis=1))
    rule = [follow(*row, DIMS) for row in zip(rules.tolist(), says.tolist(), strict=True)]
    np.testing.assert_array_equal(following, rule)
    every, column = np.arange(len(at)), (past + at) % S
    picked[every, column], log_probs[every, column] = expected, np.where(ended, 0, log_probabilities)
    np.testing.assert_array_equal(picked_after, picked)
    np.testing.assert_allclose(log_probs_after, log_probs, **TOLERANCE)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("batch", "depth"), [(1, 384), (2, 8), (7, 64), (16, 72), (17, 64), (9, 520), (1, 1280)])
def test_random_rules(rng, batch, depth, name):
    mask = rng.choice(np.arange(8, dtype=np.uint8) % 3, V)
    mask[rng.integers(V)] = 0
    check_greedy(name, *rows(rng, name, batch, depth), mask, random_rules(rng, batch, mask, FIRST))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("batch", "depth"), [(1, 384), (7, 64), (17, 72), (40, 8)])
def test_step(rng, batch, depth, name):
    mask = rng.choice(np.arange(8, dtype=np.uint8) % 3, V)
    mask[rng.integers(V)] = 0
    check_step(*rows(rng, name, batch, depth), mask, *told(rng, batch, mask))


def test_step_without_a_token(rng):
    """NaN tells it, but not of a row that has ended."""
    mask = np.ones(V, np.uint8)
    tokens, past, rules, said, *picks = told(rng, 3, 0 * mask)
    rules[:], said[:, 1] = EVERYTHING, [3, 3, END]
    rules[1:, 0] = 1
    arrays = [*rows(rng, "f16", 3, 64), mask, tokens, past * 0, rules, said, *picks]
    log_probs = execute(greedy_step, arrays, **STEP)[-1]
    column = arrays[1], np.arange(3)
    np.testing.assert_array_equal(np.isnan(log_probs[column[::-1]]), [False, True, False])
    assert np.isnan(log_probs).sum() == 1


@pytest.mark.parametrize("vocabulary", [1, 11, 13, 255, 256, 257])
def test_sizes_of_the_vocabulary(rng, vocabulary):
    mask = np.zeros(vocabulary, np.uint8)
    rules = np.array([EVERYTHING] * 3, np.int32)
    check_greedy("f16", *rows(rng, "f16", 3, 64, vocabulary), mask, rules)


def test_first_of_equals_wins(rng):
    hidden, at = np.ones((1, 1, 8), np.float16), np.zeros(1, np.int32)
    for _ in range(5):
        table = np.zeros((V, 8), np.float16)
        best = rng.choice(V, 3, replace=False)
        table[best] = 1
        arrays = [hidden, at, table, np.zeros(V, np.uint8), np.array([EVERYTHING], np.int32)]
        assert execute(ops.greedy, arrays, timestamp_begin=FIRST)[0].tolist() == [best.min()]


def test_no_token_is_left_and_logits_that_are_none(rng):
    """Where a CPU's kernel raises, a GPU's says NaN."""
    hidden, at, table = rows(rng, "f32", 4, 64)
    hidden[1, at[1], 5], hidden[2, at[2], 7] = np.nan, np.inf
    rules = np.array([(1, *EVERYTHING[1:]), EVERYTHING, EVERYTHING, EVERYTHING], np.int32)
    mask = np.ones(V, np.uint8)
    _, log_probs = execute(ops.greedy, [hidden, at, table, mask, rules], timestamp_begin=FIRST)
    np.testing.assert_array_equal(np.isnan(log_probs), [True, True, True, False])


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_token_probability(rng, batch, name):
    hidden, at, table = rows(rng, name, batch, 64)
    at[::3] = -1
    (result,) = execute(ops.token_probability, [hidden, at, table], n_vocab=V, token=V - 1)
    expected = np.exp(references.log_softmax(logits(widen(hidden), at, widen(table))))[:, V - 1]
    np.testing.assert_allclose(result, np.where(at < 0, np.nan, expected), **TOLERANCE)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("batch", "depth"), [(1, 384), (5, 64), (16, 72), (9, 520)])
def test_logits(rng, batch, depth, name):
    arrays = rows(rng, name, batch, depth)
    (result,) = execute(ops.logits, arrays, n_vocab=V)
    hidden, at, table = arrays
    np.testing.assert_array_equal(result, logits(widen(hidden), at, widen(table)))


def test_at_outside_of_the_states_reads_inside(rng):
    hidden, _, table = rows(rng, "f16", 2, 64)
    (result,) = execute(ops.logits, [hidden, np.array([-9, 77], np.int32), table], n_vocab=V)
    np.testing.assert_array_equal(result, logits(widen(hidden), [0, 2], widen(table)))


@pytest.mark.parametrize("name", ["f16", "f32"])
@pytest.mark.parametrize("batch", [1, 16])
def test_moves_little_more_than_it_must(rng, batch, name):
    """Of whole blocks, as all but the last of a real vocabulary's 200 are."""
    hidden, at, table = rows(rng, name, batch, 384, 6 * 256)
    mask, rules = np.zeros(6 * 256, np.uint8), np.array([(1, *EVERYTHING[1:])] * batch, np.int32)
    hidden = hidden[:, :1]
    launches = all_counted(ops.greedy, [hidden, at * 0, table, mask, rules], timestamp_begin=FIRST)
    least = table.nbytes + hidden.nbytes + mask.nbytes + rules.nbytes + 12 * batch
    assert sum(launch.moved for launch in launches) <= 1.1 * least
    assert launches[0].bank_conflicts == 0


def test_a_probability_nobody_asks_for_reads_nothing(rng):
    hidden, at, table = rows(rng, "f16", 2, 64)
    arrays = [hidden, at * 0 - 1, table]
    assert np.isnan(execute(ops.token_probability, arrays, n_vocab=V, token=V - 1)).all()
    launches = all_counted(ops.token_probability, arrays, n_vocab=V, token=V - 1)
    assert sum(launch.moved for launch in launches) < table.nbytes / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a, e, m, r: (h, a[:1], e, m, r), "B of at is 1, expected 2"),
        (lambda h, a, e, m, r: (h, a, e[:-1], m, r), f"N of the weight is {V - 1}, expected {V}"),
        (lambda h, a, e, m, r: (h[..., :8], a, e, m, r), "K of the weight is 16, expected 8"),
        (lambda h, a, e, m, r: (h[..., :12], a, e[:, :12], m, r), "D is 12, on a GPU a multiple of 8 is expected"),
        (lambda h, a, e, m, r: (h, a, e, m, r[:1]), "B of the rules is 1, expected 2"),
        (lambda h, a, e, m, r: (h, a, e, m, r[:, 1:]), "the number of rules is 3, expected 4"),
        (lambda h, a, e, m, r: (np.tile(h, 81), a, np.tile(e, 81), m, r), "D is 1296, on a GPU at most 1280"),
    ],
)
def test_refuses(rng, change, message):
    arrays = [*rows(rng, "f16", 2, 16), np.zeros(V, np.uint8), np.array([EVERYTHING] * 2, np.int32)]
    refused(ops.greedy, change(*arrays), message, timestamp_begin=FIRST)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (4, lambda x: x[:1], "B of the tokens is 1, expected 2"),
        (5, lambda x: x[:1], "B of past is 1, expected 2"),
        (6, lambda x: x[:1], "B of the rules is 1, expected 2"),
        (6, lambda x: x[:, 1:], "the number of rules is 3, expected 4"),
        (7, lambda x: x[:1], "B of said is 1, expected 2"),
        (7, lambda x: x[:, 1:], "the width of said is 2, expected 3"),
        (8, lambda x: x[:1], "B of what is picked is 1, expected 2"),
        (8, lambda x: x[:, :0], "S must be positive"),
        (9, lambda x: x[:1], "B of the log probabilities is 1, expected 2"),
        (9, lambda x: x[:, 1:], "S of the log probabilities is 4, expected 5"),
        (1, lambda x: x[:1], "B of at is 1, expected 2"),
    ],
)
def test_step_refuses(rng, which, change, message):
    mask = np.zeros(V, np.uint8)
    arrays = [*rows(rng, "f16", 2, 16), mask, *told(rng, 2, mask)]
    arrays[which] = change(arrays[which])
    if message == "S must be positive":
        arrays[9] = arrays[9][:, :0]
    refused(greedy_step, arrays, message, **STEP)

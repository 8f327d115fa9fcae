import numpy as np
import pytest
from max.dtype import DType

from max_whisper import eager, ops, target
from max_whisper.packing import to_bfloat16
from max_whisper.target import Factors

from . import references
from .harness import FLOAT32_TOLERANCE, check, run

HEAD = ops.HEAD

WEIGHT_ERROR = 0.0074
"""Of a weight in bfloat16, relative to a factor that all weights of a query share: the 0.73 % of kernels/cpu/exp2.mojo."""

eager.prepare(ops.attention, "f32[3] f32[5] f32[4]")
eager.prepare(ops.pack_heads, "f32[3]", heads=1)
eager.prepare(ops.pack_heads, "f32[3]", heads=3)


@eager.in_place(2, 3)
def cached_attention(rows, past, keys, values):
    return ops.cached_attention(rows, past, keys, values)


@eager.in_place(2, 3)
def cached_attention_float16(rows, past, keys, values):
    return ops.cached_attention(rows, past, keys, values)


def attention_of_rounded(queries, keys, values):
    return ops.attention(queries, keys, values, rounded=True)


def pack_heads_float16(rows):
    return ops.pack_heads(rows, heads=3, dtype=DType.float16)


def self_attention_in_bfloat16(rows, *, heads):
    return ops.self_attention(rows, heads=heads, factors=Factors("bfloat16"))


def self_attention_in_two_terms(rows, *, heads):
    return ops.self_attention(rows, heads=heads, factors=Factors("bfloat16", terms=2))


def self_attention_in_int16(rows, *, heads):
    return ops.self_attention(rows, heads=heads, factors=Factors("int16"))


def pack_heads_bytes(rows, *, heads):
    return ops.pack_heads(rows, heads=heads, dtype=DType.int8)


def pack_heads_int16(rows, *, heads):
    return ops.pack_heads(rows, heads=heads, dtype=DType.int16)


def pack_heads_bfloat16(rows, *, heads, terms):
    return ops.pack_heads(rows, heads=heads, dtype=DType.bfloat16, terms=terms)


eager.prepare(cached_attention, "f32[3] i32[1] f32[5] f32[4]")
eager.prepare(ops.attention, "f32[3] f16[5] f16[4]")
eager.prepare(attention_of_rounded, "f32[3] f16[5] f16[4]")
eager.prepare(pack_heads_float16, "f32[3]")
eager.prepare(cached_attention_float16, "f32[3] i32[1] f16[5] f16[4]")
eager.prepare(self_attention_in_bfloat16, "f32[3]", heads=2)
eager.prepare(self_attention_in_two_terms, "f32[3]", heads=2)
eager.prepare(self_attention_in_int16, "f32[3]", heads=2)
eager.prepare(pack_heads_bytes, "f32[3]", heads=2)
eager.prepare(pack_heads_int16, "f32[3]", heads=2)
for length in (1, 15, 17, 63, 65, 300, 1500):
    eager.prepare(ops.attention, "f32[3] i8[5] i8[5]", key_count=length)
eager.prepare(pack_heads_bfloat16, "f32[3]", heads=2, terms=1)
eager.prepare(pack_heads_bfloat16, "f32[3]", heads=2, terms=2)


def pack(rows: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """`ops.pack_heads` in NumPy."""
    batch, length, _ = rows.shape
    keys, values = rows[..., -2 * heads * HEAD :].reshape(batch, length, 2, heads, HEAD).transpose(2, 0, 3, 1, 4)
    panels = -(-length // 16)
    padded = np.zeros((batch, heads, panels * 16, HEAD), rows.dtype)
    padded[:, :, :length] = keys
    return padded.reshape(batch, heads, panels, 16, HEAD).swapaxes(3, 4).copy(), values.copy()


# Around the blocks of 48 queries and 256 keys, tiles of 3, 6 and 12 queries and 16 keys, primes, and Whisper's own.
SHAPES = [
    *[(1, queries, 17, 1) for queries in (1, 2, 3, 5, 6, 7, 11, 12, 13, 47, 48, 49, 97)],
    *[(1, 3, keys, 1) for keys in (1, 2, 15, 16, 31, 64, 255, 256, 257, 511, 513)],
    (2, 7, 37, 3),
    (3, 1, 1500, 3),
    (1, 1500, 1500, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_matches_reference(rng, shape):
    batch, queries, keys, heads = shape
    q = rng.standard_normal((batch, queries, heads * HEAD), dtype=np.float32)
    rows = rng.standard_normal((batch, keys, 2 * heads * HEAD), dtype=np.float32)
    check(ops.attention, [q, *pack(rows, heads)], references.attention, **FLOAT32_TOLERANCE)


def test_reads_the_first_columns_of_wider_rows(rng):
    """The encoder hands over queries, keys and values in the rows that one linear layer wrote."""
    rows = rng.standard_normal((2, 19, 3 * 3 * HEAD), dtype=np.float32)
    check(ops.attention, [rows, *pack(rows, 3)], references.attention, **FLOAT32_TOLERANCE)


def test_large_scores(rng):
    """Scores of a few hundred overflow a softmax that does not subtract the maximum; the largest arrives last."""
    q = np.full((1, 1, HEAD), 10, np.float32)
    rows = rng.standard_normal((1, 600, 2 * HEAD), dtype=np.float32)
    rows[0, :, :HEAD] = np.linspace(-20, 20, 600, dtype=np.float32)[:, None]
    check(ops.attention, [q, *pack(rows, 1)], references.attention, rtol=1e-4, atol=1e-4)


def test_unused_columns_of_the_last_panel_do_not_count(rng):
    q = rng.standard_normal((1, 5, HEAD), dtype=np.float32)
    keys, values = pack(rng.standard_normal((1, 21, 2 * HEAD), dtype=np.float32), 1)
    expected = run(ops.attention, q, keys, values)
    keys[0, 0, 1, :, 5:] = np.nan
    np.testing.assert_array_equal(run(ops.attention, q, keys, values), expected)


@pytest.mark.parametrize(("heads", "length"), [(1, 1), (1, 16), (3, 17), (3, 1500)])
def test_pack_heads(rng, heads, length):
    rows = rng.standard_normal((2, length, 3 * heads * HEAD), dtype=np.float32)
    for result, expected in zip(run(ops.pack_heads, rows, heads=heads), pack(rows, heads), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_pack_heads_in_float16(rng):
    rows = rng.standard_normal((2, 37, 3 * 3 * HEAD), dtype=np.float32)
    for result, expected in zip(run(pack_heads_float16, rows), pack(rows.astype(np.float16), 3), strict=True):
        assert result.dtype == np.float16
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1500, 3), (1, 7, 257, 2), (1, 49, 37, 1)])
def test_keys_and_values_in_float16(rng, shape):
    """They are widened without rounding: the tolerance is that of float32."""
    batch, queries, keys, heads = shape
    q = rng.standard_normal((batch, queries, heads * HEAD), dtype=np.float32)
    rows = rng.standard_normal((batch, keys, 2 * heads * HEAD), dtype=np.float32).astype(np.float16)
    check(ops.attention, [q, *pack(rows, heads)], references.attention, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("queries", [64, 97, 224])
def test_many_queries_over_float16(rng, queries):
    """They are widened without rounding; where they may be rounded, a CPU that multiplies bfloat16 does."""
    q = rng.standard_normal((2, queries, 2 * HEAD), dtype=np.float32)
    rows = rng.standard_normal((2, 300, 2 * 2 * HEAD), dtype=np.float32).astype(np.float16)
    keys, values = pack(rows, 2)
    check(ops.attention, [q, keys, values], references.attention, **FLOAT32_TOLERANCE)
    if not target.multiplies_bfloat16():
        check(attention_of_rounded, [q, keys, values], references.attention, **FLOAT32_TOLERANCE)
        return
    result = run(attention_of_rounded, q, keys, values)
    rounded = [references.as_bfloat16(x) for x in (q, keys, values)]
    expected = references.attention(*rounded)
    largest = np.abs(rounded[2] - rounded[2].mean()).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=WEIGHT_ERROR * largest)


def test_cached_attention_in_float16(rng):
    heads, batch, capacity = 2, 2, 40
    keys = np.full((batch, heads, 3, HEAD, 16), np.nan, np.float16)
    values = np.full((batch, heads, capacity, HEAD), np.nan, np.float16)
    rows = rng.standard_normal((batch, 23, 3 * heads * HEAD), dtype=np.float32)
    for begin, end in ((0, 5), (5, 6), (6, 23)):
        result = eager.call(cached_attention_float16, rows[:, begin:end], np.full(batch, begin, np.int32), keys, values)
        cached = pack(rows[:, :end].astype(np.float16).astype(np.float64), heads)
        expected = references.attention(rows[:, begin:end].astype(np.float64), *cached, first_visible=begin + 1)
        np.testing.assert_allclose(result, expected, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("steps", [[1] * 20, [5, 1, 1], [17, 3, 12], [48, 1], [32]])
def test_cached_attention(rng, steps):
    """Token by token or many at once, rows of different lengths in one batch: each attends to its own past."""
    heads, batch, capacity = 2, 3, 50
    keys = np.full((batch, heads, 4, HEAD, 16), np.nan, np.float32)
    values = np.full((batch, heads, capacity, HEAD), np.nan, np.float32)
    past = np.zeros(batch, np.int32)
    seen = [np.zeros((0, 3 * heads * HEAD), np.float32) for _ in range(batch)]
    for step, length in enumerate(steps):
        rows = rng.standard_normal((batch, length, 3 * heads * HEAD), dtype=np.float32)
        result = eager.call(cached_attention, rows, past, keys, values)
        for b in range(batch):
            seen[b] = np.concatenate([seen[b][: past[b]], rows[b]])
            q = seen[b][None, past[b] :].astype(np.float64)
            expected = references.attention(
                q, *pack(seen[b][None].astype(np.float64), heads), first_visible=past[b] + 1
            )
            np.testing.assert_allclose(result[b], expected[0], **FLOAT32_TOLERANCE)
        past = past + length
        if step == 0:
            past[1] -= 1  # the row's last token was padding: the next call overwrites it


@pytest.mark.parametrize(
    ("past", "message"),
    [(49, "row 1 holds 49 keys and 2 more are to come, the cache takes 50"), (-1, "row 1 holds -1")],
)
def test_cache_bounds(rng, past, message):
    rows = rng.standard_normal((2, 2, 3 * 2 * HEAD), dtype=np.float32)
    keys, values = np.zeros((2, 2, 4, HEAD, 16), np.float32), np.zeros((2, 2, 50, HEAD), np.float32)
    with pytest.raises(ValueError, match=message):
        eager.call(cached_attention, rows, np.array([0, past], np.int32), keys, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q, k[:, :, :1], v), "the number of panels of keys is 1, expected 2"),
        (lambda q, k, v: (q, k, v[..., :63]), "the size of a head is 63, expected 64"),
        (lambda q, k, v: (q[..., :63], k, v), "queries have 63 columns, expected at least 64"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "there must be at least one key"),
        (lambda q, k, v: (q, np.concatenate([k, k]), v), "B of the keys is 2, expected 1"),
    ],
)
def test_refuses(rng, change, message):
    q = rng.standard_normal((1, 4, HEAD), dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        eager.call(ops.attention, *change(q, *pack(rng.standard_normal((1, 20, 2 * HEAD), dtype=np.float32), 1)))


def test_no_queries(rng):
    keys, values = pack(rng.standard_normal((1, 20, 2 * HEAD), dtype=np.float32), 1)
    assert eager.call(ops.attention, np.zeros((1, 0, HEAD), np.float32), keys, values).shape == (1, 0, HEAD)


def rows_of_large_scores(rng: np.random.Generator, slope: float) -> np.ndarray:
    """Queries, keys and values of two heads, whose scores grow by `slope` from key to key."""
    rows = rng.standard_normal((1, 600, 3 * 2 * HEAD), dtype=np.float32)
    rows[..., 0 : 2 * HEAD : HEAD] = 4
    rows[..., 2 * HEAD : 4 * HEAD : HEAD] = 2 * slope * np.arange(600, dtype=np.float32)[:, None]
    return rows


def check_in_bfloat16(rows: np.ndarray) -> None:
    """Queries, keys and values are rounded in the reference, too. What is left is the error of the weights: it moves their
    mean by no more than the mean of it times the distances from the mean; and float32's rounding."""
    result = run(self_attention_in_bfloat16, rows, heads=2)
    expected, spread = references.self_attention_in_bfloat16(rows)
    assert result.shape == expected.shape
    excess = np.abs(result - expected) - WEIGHT_ERROR * spread
    assert np.max(excess, initial=0) <= 2e-5


# Around strips of 3, 6, 12, 16 and 32 queries, panels of 16 keys, groups of 32, blocks of 64.
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 95, 127, 128, 129, 161, 257, 300])
def test_self_attention_in_bfloat16(rng, length):
    check_in_bfloat16(rng.standard_normal((2, length, 3 * 2 * HEAD), dtype=np.float32))


def test_self_attention_in_bfloat16_of_a_window(rng):
    check_in_bfloat16(rng.standard_normal((1, 1500, 3 * 2 * HEAD), dtype=np.float32))


@pytest.mark.parametrize("slope", [-0.5, 0.03, 0.5])
def test_large_scores_in_bfloat16(rng, slope):
    """Scores from 0 to hundreds: the largest first, or last, so that every block of keys raises the maximum, or few do."""
    check_in_bfloat16(rows_of_large_scores(rng, slope))


@pytest.mark.parametrize("signs", [[1], [-1], [-1, 1]])
@pytest.mark.parametrize("power", [90, 150])
def test_scores_around_the_bound_in_bfloat16(rng, power, signs):
    """Weights of 2^-90 to 2^90 need no maximum; 2^150 is no float32. Both are as exact where all are tiny, or huge."""
    rows = rng.standard_normal((1, 300, 3 * 2 * HEAD), dtype=np.float32)
    rows[..., : 4 * HEAD] *= 0.05
    rows[..., 0 : 2 * HEAD : HEAD] = 16
    rows[..., 2 * HEAD : 4 * HEAD : HEAD] = rng.choice(signs, (300, 2)) * (power * 8 * np.log(2) / 16)
    check_in_bfloat16(rows)


def test_every_weight_in_bfloat16():
    """Values that are unit vectors show the weights: each is within its bound of 2^x / l, from 2^-40 to 1."""
    score = np.linspace(-27.7, 0, HEAD, dtype=np.float32)
    rows = np.zeros((1, HEAD, 3 * 2 * HEAD), np.float32)
    rows[..., 0] = rows[..., HEAD] = 8
    rows[..., 2 * HEAD] = rows[..., 3 * HEAD] = score
    rows[0, :, 4 * HEAD : 5 * HEAD] = rows[0, :, 5 * HEAD :] = np.eye(HEAD)
    result = run(self_attention_in_bfloat16, rows, heads=2).reshape(HEAD, 2, HEAD)
    weights = np.exp(references.as_bfloat16(score))
    np.testing.assert_allclose(result, np.broadcast_to(weights / weights.sum(), result.shape), rtol=2 * WEIGHT_ERROR)


def test_what_is_no_number_stays_none_in_bfloat16(rng):
    rows = rng.standard_normal((1, 40, 3 * 2 * HEAD), dtype=np.float32)
    rows[0, 35] = np.nan
    assert np.isnan(run(self_attention_in_bfloat16, rows, heads=2)).all()


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("length", [1, 16, 17, 33, 1500])
def test_pack_heads_in_bfloat16(rng, length, terms):
    """Keys: pairs of elements. Values: pairs of keys, 16 apart, zeros behind the last. Terms take turns, 16 rows each."""
    rows = rng.standard_normal((2, length, 3 * 2 * HEAD), dtype=np.float32)
    keys, values = run(pack_heads_bfloat16, rows, heads=2, terms=terms)
    plain_keys, plain_values = pack(rows, 2)
    panels, groups = plain_keys.shape[2], -(-length // 32)
    padded = np.zeros((2, 2, 32 * groups, HEAD), np.float32)
    padded[:, :, :length] = plain_values
    key_pairs = plain_keys.reshape(2, 2, panels, 2, 16, 2, 16).swapaxes(5, 6)
    value_pairs = padded.reshape(2, 2, groups, 2, 16, 4, 16).transpose(0, 1, 5, 2, 4, 6, 3)
    for found, pairs in ((keys, key_pairs), (values, value_pairs)):
        rounded = [to_bfloat16(pairs), to_bfloat16(pairs - references.as_bfloat16(pairs).astype(np.float32))]
        np.testing.assert_array_equal(found, np.stack(rounded[:terms], axis=4).reshape(found.shape))


def check_in_two_terms(rows: np.ndarray) -> None:
    """The bound is float32's: what two terms leave out is within it."""
    check(self_attention_in_two_terms, [rows], references.self_attention, heads=2, **FLOAT32_TOLERANCE)


# Around strips of 16 and 32 queries, panels of 16 keys, groups of 32, blocks of 128.
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 47, 95, 127, 128, 129, 161, 257, 300])
def test_self_attention_in_two_terms(rng, length):
    check_in_two_terms(rng.standard_normal((2, length, 3 * 2 * HEAD), dtype=np.float32))


def test_self_attention_in_two_terms_of_a_window(rng):
    check_in_two_terms(rng.standard_normal((1, 1500, 3 * 2 * HEAD), dtype=np.float32))


@pytest.mark.parametrize("slope", [-0.5, 0.03, 0.5])
def test_large_scores_in_two_terms(rng, slope):
    """Scores from 0 to 300: the largest first, or last, so that every block of keys raises the bound, or few do.

    A score's sum is rounded 96 times, by up to 2^-24 * 300 each: by 1e-4 in the mean square, and so are the weights."""
    rows = rows_of_large_scores(rng, slope)
    check(self_attention_in_two_terms, [rows], references.self_attention, heads=2, rtol=0, atol=5e-4)


def test_what_is_no_number_stays_none_in_two_terms(rng):
    rows = rng.standard_normal((1, 40, 3 * 2 * HEAD), dtype=np.float32)
    rows[0, 35] = np.nan
    assert np.isnan(run(self_attention_in_two_terms, rows, heads=2)).all()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 1500])
def test_pack_heads_in_int16(rng, length):
    """A scale for each key, and for each column of 64 values; pairs of numbers 16 apart, zeros behind the last."""
    rows = rng.standard_normal((2, length, 3 * 2 * HEAD), dtype=np.float32)
    rows[0, -1, 3 * HEAD : 4 * HEAD] = 0
    for found, expected in zip(run(pack_heads_int16, rows, heads=2), references.pack_integers(rows, 2), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def check_in_int16(rows: np.ndarray) -> None:
    """Queries, keys and values are rounded in the reference, too. What is left is the error of the weights, of half a step
    of 14 bits and 7.5e-5 of each, and float32's rounding."""
    result = run(self_attention_in_int16, rows, heads=2)
    expected, error = references.self_attention_in_int16(rows)
    assert result.shape == expected.shape
    assert np.max(np.abs(result - expected) - error, initial=0) <= 2e-5


# Around strips of 3, 6 and 12 queries, blocks of 48, panels of 16 keys, groups of 64 values, blocks of 256.
@pytest.mark.parametrize(
    "length", [1, 5, 6, 7, 11, 12, 13, 16, 17, 47, 48, 49, 63, 64, 65, 127, 129, 255, 256, 257, 300]
)
def test_self_attention_in_int16(rng, length):
    check_in_int16(rng.standard_normal((2, length, 3 * 2 * HEAD), dtype=np.float32))


def test_self_attention_in_int16_of_a_window(rng):
    check_in_int16(rng.standard_normal((1, 1500, 3 * 2 * HEAD), dtype=np.float32))


@pytest.mark.parametrize("slope", [-0.5, 0.03, 0.5])
def test_large_scores_in_int16(rng, slope):
    """Scores from 0 to hundreds: the largest first, or last, so that every block of keys raises the maximum, or few do."""
    check_in_int16(rows_of_large_scores(rng, slope))


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e4])
def test_sums_as_large_as_they_get_in_int16(size):
    """Every number is the largest there is: sums of products are just below 2^31, and weights all but as large."""
    rows = np.full((1, 600, 3 * 2 * HEAD), size, np.float32)
    rows[:, ::2, 4 * HEAD :] *= np.float32(0.999)
    rows[:, :, 5 * HEAD :] *= -1
    expected = references.self_attention(rows.astype(np.float64), heads=2)
    np.testing.assert_allclose(run(self_attention_in_int16, rows, heads=2), expected, rtol=1e-3)


def test_numbers_that_are_all_zero_in_int16(rng):
    rows = rng.standard_normal((1, 70, 3 * 2 * HEAD), dtype=np.float32)
    rows[:, 5, : 4 * HEAD] = rows[:, :, 5 * HEAD :] = 0
    check_in_int16(rows)


@pytest.mark.parametrize(
    "attention", [self_attention_in_bfloat16, self_attention_in_two_terms, self_attention_in_int16]
)
@pytest.mark.parametrize("where", [0, 2 * HEAD, 4 * HEAD])
@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_what_is_no_number_stays_none(rng, attention, where, what):
    """A query spoils itself, a key all queries of its head, a value its column; infinity stays that, unless it is split."""
    rows = rng.standard_normal((1, 300, 3 * 2 * HEAD), dtype=np.float32)
    rows[0, 270, where] = what
    result = run(attention, rows, heads=2)
    stays = attention is self_attention_in_bfloat16 and where == 4 * HEAD and what == np.inf
    found = (np.isposinf if stays else np.isnan)(result).reshape(300, 2, HEAD)
    expected = np.zeros_like(found)
    expected[{0: (270, 0), 2 * HEAD: (slice(None), 0), 4 * HEAD: (slice(None), 0, 0)}[where]] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [1e20, 1e-20])
def test_keys_whose_squares_are_no_numbers_in_bfloat16(rng, size):
    """They overflow, or vanish; scores do neither, as queries are as small as keys are large."""
    rows = rng.standard_normal((1, 70, 3 * 2 * HEAD), dtype=np.float32)
    rows[..., : 2 * HEAD] /= np.float32(size)
    rows[..., 2 * HEAD : 4 * HEAD] *= np.float32(size)
    check_in_bfloat16(rows)


@pytest.mark.parametrize(
    "attention", [self_attention_in_bfloat16, self_attention_in_two_terms, self_attention_in_int16]
)
def test_no_rows_of_narrow_factors(attention):
    rows = np.zeros((1, 0, 3 * 2 * HEAD), np.float32)
    assert eager.call(attention, rows, heads=2).shape == (1, 0, 2 * HEAD)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 1500])
def test_pack_heads_in_bytes(rng, length):
    """A mean summed in another order, or a product that is not rounded before it becomes an integer, moves few by one."""
    rows = rng.standard_normal((2, length, 3 * 2 * HEAD), dtype=np.float32)
    rows[:, :, 2 * HEAD : 4 * HEAD : 7] += 20  # what all keys have in common takes no part of their 8 bits
    packed = zip(run(pack_heads_bytes, rows, heads=2), references.pack_bytes(rows, 2), strict=True)
    for (found, expected), head_rows in zip(packed, (1, 4), strict=True):
        assert found.dtype == expected.dtype
        scales, expected_scales = (
            np.ascontiguousarray(x[:, :, :, :head_rows]).view(np.float32) for x in (found, expected)
        )
        np.testing.assert_allclose(scales, expected_scales, rtol=1e-5, atol=1e-5 if length == 1 else 2e-6)
        if length == 1 and head_rows == 1:  # one key is its own mean, but for rounding
            continue
        wide, expected_wide = (x[:, :, :, head_rows:].view(np.uint8).astype(int) for x in (found, expected))
        difference = abs((wide - expected_wide + 128) % 256 - 128)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


# Around panels of 16 keys, groups of 64 values, blocks of 256 keys, batches of 4 panels; 64 queries and more make pairs.
@pytest.mark.parametrize("queries", [1, 3, 63, 64, 97])
@pytest.mark.parametrize("length", [1, 15, 17, 63, 65, 300, 1500])
def test_keys_and_values_in_bytes(rng, length, queries):
    """Few queries: 16 bits of a query and of a weight count, products are exact. Many: rounded to bfloat16."""
    q = rng.standard_normal((2, queries, 2 * HEAD), dtype=np.float32)
    rows = rng.standard_normal((2, length, 2 * 2 * HEAD), dtype=np.float32)
    keys, values = references.pack_bytes(rows, 2)
    k, v = references.unpack_bytes(keys, values, length)
    result = run(ops.attention, q, keys, values, key_count=length)
    if queries < 64 or not target.multiplies_bfloat16():
        np.testing.assert_allclose(result, references.attention_of_heads(q.astype(np.float64), k, v), rtol=0, atol=1e-4)
    else:
        q, k, v = (references.as_bfloat16(x) for x in (q, k, v))
        expected = references.attention_of_heads(q, k, v)
        np.testing.assert_allclose(result, expected, rtol=0, atol=WEIGHT_ERROR * abs(v - v.mean()).max())


@pytest.mark.parametrize("slope", [-0.5, 0.03, 0.5])
def test_large_scores_in_bytes(rng, slope):
    """Scores from 0 to 300, the largest first, or last; 16 bits of a query leave 300 * 2^-16 of a score."""
    rows = rng.standard_normal((1, 600, 2 * HEAD), dtype=np.float32)
    rows[..., 0] = 2 * slope * np.arange(600, dtype=np.float32)
    q = np.zeros((1, 1, HEAD), np.float32)
    q[..., 0] = 4
    keys, values = references.pack_bytes(rows, 1)
    k, v = references.unpack_bytes(keys, values, 600)
    result = run(ops.attention, q, keys, values, key_count=600)
    np.testing.assert_allclose(result, references.attention_of_heads(q.astype(np.float64), k, v), rtol=0, atol=1e-3)


@pytest.mark.parametrize("where", [2 * HEAD, 4 * HEAD])
@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_what_is_no_number_stays_none_in_bytes(rng, where, what):
    """A key, or a value with its scale, spoils all queries of its head."""
    rows = rng.standard_normal((1, 300, 3 * 2 * HEAD), dtype=np.float32)
    rows[0, 270, where + HEAD + 7] = what
    packed = run(pack_heads_bytes, rows, heads=2)
    result = run(ops.attention, rows[:, :3], *packed, key_count=300)
    assert np.isnan(result[..., HEAD:]).all()
    assert np.isfinite(result[..., :HEAD]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, v: (k[:, :, :-1], v), "the number of panels of keys is 4, expected 5"),
        (lambda k, v: (k, v[:, :, :1]), "the groups of values is 1, expected 2"),
        (lambda k, v: (k[:, :, :, :16], v), "the rows of a panel of keys is 16, expected 17"),
        (lambda k, v: (k, v[..., :63]), "the width of a group of values is 63, expected 64"),
    ],
)
def test_refuses_bytes(rng, change, message):
    packed = references.pack_bytes(rng.standard_normal((1, 65, 2 * HEAD), dtype=np.float32), 1)
    with pytest.raises(ValueError, match=message):
        eager.call(ops.attention, np.zeros((1, 1, HEAD), np.float32), *change(*packed), key_count=65)

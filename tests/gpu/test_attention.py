"""Attention on a GPU: every kernel against float64, and what it moves on the phantom against what it must."""

from typing import Any

import numpy as np
import pytest

from max_whisper import eager, ops
from tests.kernels import references
from tests.phantom.architecture import A100, CURRENT

from .harness import DTYPES, all_counted, counted, execute, prepare, refused, round_to, widen

pytestmark = pytest.mark.gpu

HEAD = ops.HEAD

TOLERANCE: dict[str, dict[str, Any]] = {
    "f32": {"rtol": 2e-5, "atol": 2e-5},  # sums of a few thousand products of unit scale
    # The weights of the values are rounded, then the output: half a unit in the last place each, of values up to about 4.
    "f16": {"rtol": 2**-10, "atol": 2**-9},
    "bf16": {"rtol": 2**-7, "atol": 2**-6},
}

LARGE_SCORES: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
"""In float32: scores of 200 have an error of 2**-24 * 200, their exponentials a relative one of as much."""


@eager.in_place(2, 3)
def cached_attention(rows, past, keys, values):
    return ops.cached_attention(rows, past, keys, values)


for name in DTYPES:
    prepare(ops.attention, f"{name}[3] {name}[4] {name}[4]")
    prepare(ops.pack_heads, f"{name}[3]", heads=3)
    prepare(ops.self_attention, f"{name}[3]", heads=2)
    prepare(cached_attention, f"{name}[3] i32[1] {name}[4] {name}[4]")


def normal(rng: np.random.Generator, name: str, *shape: int) -> np.ndarray:
    return round_to(name, rng.standard_normal(shape))


def keys_and_values(rows: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values (B, H, S, 64) in the last 2 * heads * 64 columns of rows (B, S, N)."""
    batch, length, _ = rows.shape
    keys, values = rows[..., -2 * heads * HEAD :].reshape(batch, length, 2, heads, HEAD).transpose(2, 0, 3, 1, 4)
    return keys.copy(), values.copy()


def reference(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, first_visible: int | None = None):
    """The CPU's reference takes keys in panels: here, one panel of all keys."""
    panel = widen(keys).swapaxes(2, 3)[:, :, None]
    return references.attention(widen(queries), panel, widen(values), first_visible=first_visible)


# Queries around blocks of 64 or 96 and warps of 16, one query apart (its kernel splits the keys); keys around blocks of 64
# and of 32 (float32), rounds of 128 and 64, one block's 512 and a split's 256.
SHAPES = [
    *[(1, queries, 17, 1) for queries in (2, 15, 16, 17, 63, 64, 65, 95, 96, 97, 129)],
    *[(1, 3, keys, 1) for keys in (1, 15, 16, 31, 33, 63, 64, 65, 127, 128, 129)],
    *[(1, 1, keys, 1) for keys in (1, 15, 16, 17, 63, 64, 65, 127, 129, 511, 512, 513, 767, 769, 1500)],
    *[(1, 1, keys, 1) for keys in (1536, 1537)],  # six parts are weighed at once
    (2, 7, 37, 3),
    (3, 1, 1500, 3),
    (1, 5, 1500, 1),
    (37, 2, 130, 3),  # more blocks than the phantom has multiprocessors: a block has one group of warps
]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_attention(rng, shape, name):
    batch, queries, keys, heads = shape
    q = normal(rng, name, batch, queries, heads * HEAD + 8)
    q[..., heads * HEAD :] = round_to(name, np.array(np.nan))  # columns that nobody may read
    k, v = normal(rng, name, 2, batch, heads, keys, HEAD)
    (result,) = execute(ops.attention, [q, k, v])
    np.testing.assert_allclose(widen(result), reference(q, k, v), **TOLERANCE[name])


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("length", [1, 16, 17, 63, 64, 65, 129])
def test_self_attention(rng, length, name):
    rows = normal(rng, name, 2, length, 3 * 2 * HEAD)
    (result,) = execute(ops.self_attention, [rows], heads=2)
    np.testing.assert_allclose(widen(result), reference(rows, *keys_and_values(rows, 2)), **TOLERANCE[name])


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("queries", [1, 3])
def test_large_scores(rng, queries, name):
    """Scores of a few hundred overflow a softmax that does not subtract the maximum; the largest arrives last."""
    q = round_to(name, np.full((1, queries, HEAD), 10.0))
    k = round_to(name, np.tile(np.linspace(-20, 20, 600)[:, None], HEAD)[None, None])
    v = normal(rng, name, 1, 1, 600, HEAD)
    (result,) = execute(ops.attention, [q, k, v])
    tolerance = LARGE_SCORES if name == "f32" else TOLERANCE[name]
    np.testing.assert_allclose(widen(result), reference(q, k, v), **tolerance)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("steps", [[1, 1, 1], [5, 1, 2], [17, 3, 12, 1], [66, 1, 65], [150]])
def test_cached_attention(rng, steps, name):
    """Token by token or many at once, rows of different lengths in one batch: each sees its own past, and never the NaN
    behind it. New keys and values are in the cache afterwards, and nothing else has changed."""
    heads, batch, capacity = 2, 2, 150
    keys, values = round_to(name, np.full((2, batch, heads, capacity, HEAD), np.nan))
    past = np.zeros(batch, np.int32)
    for step, length in enumerate(steps):
        rows = normal(rng, name, batch, length, 3 * heads * HEAD)
        result, new_keys, new_values = execute(cached_attention, [rows, past, keys, values])
        k, v = keys_and_values(rows, heads)
        for b in range(batch):
            visible = past[b] + length
            keys[b, :, past[b] : visible], values[b, :, past[b] : visible] = k[b], v[b]
            expected = reference(
                rows[b, None], keys[b, None, :, :visible], values[b, None, :, :visible], first_visible=past[b] + 1
            )
            np.testing.assert_allclose(widen(result[b]), expected[0], **TOLERANCE[name])
        np.testing.assert_array_equal(new_keys, keys)
        np.testing.assert_array_equal(new_values, values)
        past = past + length
        if step == 0 and length > 1:
            past[1] -= 1  # the row's last token was padding: the next call overwrites it


@pytest.mark.parametrize("past", [-7, 49, 1 << 30])
@pytest.mark.parametrize("length", [1, 4])
def test_senseless_past_stays_inside_the_cache(rng, past, length):
    """The host cannot see past. A kernel that believed it would write outside the cache."""
    rows = normal(rng, "f16", 1, length, 3 * HEAD)
    keys, values = normal(rng, "f16", 2, 1, 1, 50, HEAD)
    _, new_keys, new_values = execute(cached_attention, [rows, np.array([past], np.int32), keys, values])
    first = 0 if past < 0 else 50 - max(length, 50 - past)
    k, v = keys_and_values(rows, 1)
    keys[:, :, first : first + length], values[:, :, first : first + length] = k, v
    np.testing.assert_array_equal(new_keys, keys)
    np.testing.assert_array_equal(new_values, values)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("length", [1, 17, 150])
def test_pack_heads(rng, length, name):
    rows = normal(rng, name, 2, length, 3 * 3 * HEAD)
    for result, expected in zip(execute(ops.pack_heads, [rows], heads=3), keys_and_values(rows, 3), strict=True):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q, k[:, :, :19], v), "the number of keys is 19, expected 20"),
        (lambda q, k, v: (q, k, v[..., :56]), "the size of a head is 56, expected 64"),
        (lambda q, k, v: (q[..., :56], k, v), "queries have 56 columns, expected at least 64"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "there must be at least one key"),
        (lambda q, k, v: (q, np.concatenate([k, k]), v), "B of the keys is 2, expected 1"),
        (lambda q, k, v: (np.pad(q, ((0, 0), (0, 0), (0, 3))), k, v), "have 67 columns, on a GPU a multiple of 8"),
    ],
)
def test_refuses(rng, change, message):
    arrays = normal(rng, "f16", 1, 4, HEAD), *normal(rng, "f16", 2, 1, 1, 20, HEAD)
    refused(ops.attention, change(*arrays), message)


def test_more_than_the_cache_takes():
    rows, cache = np.zeros((1, 9, 3 * HEAD), np.float16), np.zeros((1, 1, 8, HEAD), np.float16)
    arrays = [rows, np.zeros(1, np.int32), cache, cache]
    refused(cached_attention, arrays, "9 keys are to come, the cache takes 8")


def test_no_queries(rng):
    arrays = [np.zeros((1, 0, HEAD), np.float16), *normal(rng, "f16", 2, 1, 1, 20, HEAD)]
    (result,) = execute(ops.attention, arrays)
    assert result.shape == (1, 0, HEAD)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("keys", "kernels"), [(448, 1), (1500, 2)])
def test_one_query_moves_little_more_than_its_keys(rng, keys, kernels, name):
    """Over the audio, and over 448 keys of text: at most a tenth more than query, keys, values and output."""
    q = normal(rng, name, 1, 1, 2 * HEAD)
    k, v = normal(rng, name, 2, 1, 2, keys, HEAD)
    launches = all_counted(ops.attention, [q, k, v])
    assert len(launches) == kernels
    assert sum(launch.moved for launch in launches) <= 1.1 * (2 * q.nbytes + k.nbytes + v.nbytes)
    assert not any(launch.bank_conflicts for launch in launches)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("past", [1, 10, 100])
def test_a_step_over_the_cache_moves_little_more_than_it_must(rng, past, name):
    """That is, the cached keys and values, the new row, the output, and the new key and value once more, into the cache."""
    rows, (keys, values) = normal(rng, name, 1, 1, 3 * HEAD), normal(rng, name, 2, 1, 1, 448, HEAD)
    launch = counted(cached_attention, [rows, np.array([past], np.int32), keys, values])
    assert launch.moved <= 1.1 * (2 * past + 3 + 1 + 2) * HEAD * rows.itemsize
    assert launch.bank_conflicts == 0


@pytest.mark.parametrize("name", DTYPES)
def test_many_queries_do_what_their_tiles_imply(rng, name):
    """Every block of 96 queries (64 without tensor cores, or with Hopper's) reads its queries and all keys and values once,
    in whole sectors, and multiplies whole tiles: 64 tensor-core instructions per 16 queries and 64 keys."""
    rows = normal(rng, name, 1, 200, 3 * 2 * HEAD)
    launch = counted(ops.self_attention, [rows], heads=2)
    queries = 96 if name != "f32" and CURRENT is A100 else 64
    blocks = -(-200 // queries)
    assert launch.moved == launch.global_read + launch.global_written
    assert launch.moved == (2 + 2 * blocks) * rows.nbytes // 3
    assert launch.bank_conflicts == 0
    assert launch.tensor_core == (0 if name == "f32" else 2 * (queries // 16 * blocks) * 4 * 64)

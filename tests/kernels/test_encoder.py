"""A block of the encoder is the chain of its kernels, bit for bit, window by window, whichever threads take which rows."""

import numpy as np
import pytest
from max.dtype import DType

from max_whisper import eager, ops
from max_whisper.ops import HEAD
from max_whisper.packing import pack_linear
from max_whisper.target import Factors

from . import references
from .harness import run


def encoder_block(x, *weights, factors):
    return ops.encoder_block(x, weights, dtype=DType[factors])


def self_attention(rows, *, heads, factors):
    return ops.self_attention(rows, heads=heads, factors=Factors(factors))


FACTORS = ("bfloat16", "int16")
"""What attention rounds to: every CPU has both bodies, and a model takes the one that is faster there."""

DTYPES = {"bfloat16": "bf16", "int8": "i8"}

TOLERANCES = {"bfloat16": (0.03, 0.005), "int8": (0.1, 0.02)}
"""The largest error and that in the mean square, for outputs of a few times unit scale. Weights of attention are off by
0.7 % at most, which a mean over keys and a layer of d columns leave some 0.003 of. That moves activations across the edges
of their roundings: in int8 each by 1/127 of its row's largest, 0.03 to 0.05, times a weight of 1/sqrt(d)."""

for dtype in DTYPES.values():
    layer = f"f32[1] f32[1] {dtype}[3] f32[1] {dtype}[3] f32[1]"
    for factors in FACTORS:
        eager.prepare(encoder_block, f"f32[3] {layer} {layer}", factors=factors)
    for gelu in (False, True):
        eager.prepare(ops.linear, f"f32[3] {dtype}[3] f32[1]", gelu=gelu)
for factors in FACTORS:
    for heads in (1, 2, 6):
        eager.prepare(self_attention, "f32[3]", heads=heads, factors=factors)
eager.prepare(ops.layer_norm, "f32[3] f32[1] f32[1]")


def block(rng: np.random.Generator, heads: int, dtype: str) -> list[np.ndarray]:
    """Random weights, in the order of `ops.ENCODER_BLOCK`."""
    d, arrays = heads * HEAD, []
    for layers in (((3 * d, d), (d, d)), ((4 * d, d), (d, 4 * d))):
        arrays += [1 + rng.standard_normal(d, dtype=np.float32) / 8, rng.standard_normal(d, dtype=np.float32)]
        for columns, depth in layers:
            weight = rng.standard_normal((columns, depth), dtype=np.float32) / np.sqrt(np.float32(depth))
            arrays += [pack_linear(weight, dtype), rng.standard_normal(columns, dtype=np.float32)]
    return arrays


def chain(x: np.ndarray, w: list[np.ndarray], heads: int, factors: str) -> np.ndarray:
    """The block, kernel by kernel."""

    def normed_linear(y: np.ndarray, at: int, *, gelu: bool = False) -> np.ndarray:
        normed = eager.call(ops.layer_norm, y, *w[at : at + 2])
        return eager.call(ops.linear, normed, *w[at + 2 : at + 4], gelu=gelu)

    attended = eager.call(self_attention, normed_linear(x, 0), heads=heads, factors=factors)
    y = eager.call(ops.linear, attended, *w[4:6], gelu=False) + x
    return eager.call(ops.linear, normed_linear(y, 6, gelu=True), *w[10:12], gelu=False) + y


def reference(x: np.ndarray, w: list[np.ndarray], heads: int, factors: str) -> np.ndarray:
    """The block in float64, rounded where the kernels round."""
    x = x.astype(np.float64)
    rows = references.linear(references.layer_norm(x, *w[:2]), *w[2:4])
    attention = {"bfloat16": references.self_attention_in_bfloat16, "int16": references.self_attention_in_int16}
    attended, _ = attention[factors](rows)
    y = references.linear(attended, *w[4:6]) + x
    hidden = references.linear(references.layer_norm(y, *w[6:8]), *w[8:10], gelu=True)
    return references.linear(hidden, *w[10:12]) + y


# Less than a tile, around groups of 32 keys and pieces of 64 rows, last groups of 12 rows, which join the one before,
# and of 13, an odd number of groups, a whole window.
LENGTHS = [1, 5, 13, 31, 32, 33, 44, 45, 63, 64, 65, 97, 129, 161, 172, 173, 1500]


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_is_the_chain_of_its_kernels(rng, length, dtype, factors):
    heads = 6 if length == 1500 else 2
    x, w = rng.standard_normal((1, length, heads * HEAD), dtype=np.float32), block(rng, heads, dtype)
    np.testing.assert_array_equal(run(encoder_block, x, *w, factors=factors), chain(x, w, heads, factors))


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "heads"), [(1, 40, 1), (2, 100, 2), (1, 333, 6)])
def test_matches_reference(rng, batch, length, heads, dtype, factors):
    x, w = rng.standard_normal((batch, length, heads * HEAD), dtype=np.float32), block(rng, heads, dtype)
    errors = run(encoder_block, x, *w, factors=factors) - reference(x, w, heads, factors)
    most, mean_square = TOLERANCES[dtype]
    assert np.abs(errors).max() < most
    assert np.sqrt((errors**2).mean()) < mean_square


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_know_nothing_of_each_other(rng, dtype, factors):
    x, w = rng.standard_normal((3, 150, 2 * HEAD), dtype=np.float32), block(rng, 2, dtype)
    alone = np.concatenate([run(encoder_block, x[b : b + 1], *w, factors=factors) for b in range(3)])
    np.testing.assert_array_equal(run(encoder_block, x, *w, factors=factors), alone)
    x[1, 77, 5] = np.nan
    result = run(encoder_block, x, *w, factors=factors)
    assert np.isnan(result[1]).all()
    np.testing.assert_array_equal(result[[0, 2]], alone[[0, 2]])


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("shape", [(0, 10, 2 * HEAD), (2, 0, 2 * HEAD)])
def test_nothing_at_all(rng, shape, factors):
    arguments = np.zeros(shape, np.float32), *block(rng, 2, "int8")
    assert run(encoder_block, *arguments, factors=factors).shape == shape


MISSHAPEN = [
    (0, lambda x: x[..., :96], "d of x is 96, a positive multiple of 64 is expected"),
    (1, lambda gamma: gamma[:-1], "gamma and beta is 127, expected 128"),
    (3, lambda weight: weight[:-1], "the number of packed panels is 23, expected 24"),
    (4, lambda bias: bias[:-1], "N of qkv is 383, expected 384"),
    (6, lambda bias: bias[1:], "N of out is 127, expected 128"),
    (8, lambda beta: beta[1:], "gamma and beta of the MLP is 127, expected 128"),
    (9, lambda weight: weight[:, :-1], "the number of rows of a packed panel"),
    (12, lambda bias: bias[1:], "N of mlp.2 is 127, expected 128"),
]


@pytest.mark.parametrize(("which", "spoil", "message"), MISSHAPEN, ids=[message for _, _, message in MISSHAPEN])
def test_refuses_shapes_that_do_not_fit(rng, which, spoil, message):
    arguments = [rng.standard_normal((1, 40, 2 * HEAD), dtype=np.float32), *block(rng, 2, "int8")]
    arguments[which] = np.ascontiguousarray(spoil(arguments[which]))
    with pytest.raises(ValueError, match=message):
        eager.call(encoder_block, *arguments, factors="bfloat16")

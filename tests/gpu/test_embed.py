"""The token embedding on a GPU against its float64 reference, and what it moves against what it must."""

import numpy as np
import pytest

from max_whisper import ops

from .harness import DTYPES, check, counted, execute, prepare, refused, round_to, widen

pytestmark = pytest.mark.gpu

V, N_CTX = 300, 20

for name in DTYPES:
    prepare(ops.embed, f"i32[2] i32[1] {name}[2] {name}[2]", n_vocab=V)


def reference(tokens, past, vocabulary, positions, *, n_vocab):
    assert len(vocabulary) == n_vocab
    return vocabulary[tokens] + positions[past[:, None] + np.arange(tokens.shape[1])]


def arguments(rng, name, batch, length, depth):
    tokens = rng.integers(0, V, (batch, length), dtype=np.int32)
    past = rng.integers(0, N_CTX - length + 1, batch, dtype=np.int32)
    if tokens.size:
        tokens.flat[0], tokens.flat[-1], past[-1] = 0, V - 1, N_CTX - length
    tables = rng.standard_normal((V, depth)), rng.standard_normal((N_CTX, depth))
    return [tokens, past, *(round_to(name, table) for table in tables)]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    ("batch", "length", "depth"),
    [(1, 1, 8), (1, 1, 384), (3, 7, 64), (16, 1, 512), (2, 20, 1280), (5, 4, 24), (0, 3, 64), (2, 0, 64)],
)
def test_embed(rng, batch, length, depth, name):
    check(ops.embed, name, arguments(rng, name, batch, length, depth), reference, n_vocab=V)


def test_what_is_out_of_range_stays_inside_the_tables(rng):
    """The host cannot see tokens and past; a kernel that believed them would read elsewhere, which the phantom reports."""
    tokens, past, vocabulary, positions = arguments(rng, "f16", 3, 2, 64)
    tokens[0], tokens[1], past[:] = -1, 2**31 - 1, (-5, N_CTX, 2**31 - 1)
    (result,) = execute(ops.embed, [tokens, past, vocabulary, positions], n_vocab=V)
    e, p = widen(vocabulary), widen(positions)
    expected = e[[0, V - 1]] + p[[0, N_CTX - 1]]
    np.testing.assert_allclose(widen(result)[:2, 0], expected, rtol=2**-10)


@pytest.mark.parametrize("name", DTYPES)
def test_moves_little_more_than_it_must(rng, name):
    arrays = arguments(rng, name, 16, 4, 384)
    launch = counted(ops.embed, arrays, n_vocab=V)
    assert launch.moved <= 1.1 * (3 * 64 * 384 * arrays[2].itemsize + 64 * 4 + 16 * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, p, e, q: (t, p[:1], e, q), "B of past is 1, expected 2"),
        (lambda t, p, e, q: (t, p, e[:-1], q), f"N of the weight is {V - 1}, expected {V}"),
        (lambda t, p, e, q: (t, p, e, q[:, :8]), "K of the weight is 16, expected 8"),
        (lambda t, p, e, q: (t, p, e[:, :12], q[:, :12]), "D is 12, on a GPU a multiple of 8 is expected"),
        (lambda t, p, e, q: (np.tile(t, 9), p, e, q), f"T is 27, there are {N_CTX} positions"),
    ],
)
def test_refuses(rng, change, message):
    refused(ops.embed, change(*arguments(rng, "f16", 2, 3, 16)), message, n_vocab=V)

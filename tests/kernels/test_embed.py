import numpy as np
import pytest

from max_whisper import eager, ops

from . import references
from .harness import check, run

CONTEXT = 50
VOCABULARY = 37
REAL_VOCABULARY = 51866

for weights in ("f32", "f16"):
    eager.prepare(ops.embed, f"i32[2] i32[1] {weights}[2] f32[2]", n_vocab=VOCABULARY)
eager.prepare(ops.embed, "i32[2] i32[1] f32[2] f32[2]", n_vocab=REAL_VOCABULARY)


def arguments(
    rng: np.random.Generator,
    batch: int,
    length: int,
    depth: int,
    vocabulary: int = VOCABULARY,
    dtype: str = "float32",
) -> list[np.ndarray]:
    tokens = rng.integers(0, vocabulary, (batch, length), dtype=np.int32)
    past = rng.integers(0, CONTEXT - length + 1, batch, dtype=np.int32)
    embedding = rng.standard_normal((vocabulary, depth), dtype=np.float32)
    return [tokens, past, embedding.astype(dtype), rng.standard_normal((CONTEXT, depth), dtype=np.float32)]


@pytest.mark.parametrize("depth", [1, 61, 64, 384])
@pytest.mark.parametrize("length", [1, 4, CONTEXT])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_matches_reference(rng, batch, length, depth):
    check(ops.embed, arguments(rng, batch, length, depth), references.embed, n_vocab=VOCABULARY, rtol=1e-6, atol=1e-6)


def test_every_token_and_position(rng):
    _, _, vocabulary, positions = arguments(rng, 1, 1, 5)
    tokens = np.arange(VOCABULARY, dtype=np.int32)[:, None]
    past = np.arange(VOCABULARY, dtype=np.int32) + CONTEXT - VOCABULARY
    x = run(ops.embed, tokens, past, vocabulary, positions, n_vocab=VOCABULARY)
    np.testing.assert_array_equal(x[:, 0], vocabulary + positions[past])


def test_real_vocabulary(rng):
    arrays = arguments(rng, 3, 4, 384, REAL_VOCABULARY)
    arrays[0][0, :2] = 0, REAL_VOCABULARY - 1
    check(ops.embed, arrays, references.embed, n_vocab=REAL_VOCABULARY, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 61, 64])
def test_narrow_vocabulary(rng, depth):
    """Widening is exact and the sum is float32's, so the bound is too."""
    arrays = arguments(rng, 3, 4, depth, dtype="float16")
    check(ops.embed, arrays, references.embed, n_vocab=VOCABULARY, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (3, 0)])
def test_no_tokens(rng, batch, length):
    x = eager.call(ops.embed, *arguments(rng, batch, length, 24), n_vocab=VOCABULARY)
    assert x.shape == (batch, length, 24)


def put(array: np.ndarray, index: tuple[int, ...], value: int) -> np.ndarray:
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n, e, p: (put(t, (2, 1), VOCABULARY), n, e, p), r"tokens\[2, 1\] is 37, expected 0 to 36"),
        (lambda t, n, e, p: (put(t, (0, 3), -1), n, e, p), r"tokens\[0, 3\] is -1, expected 0 to 36"),
        (lambda t, n, e, p: (t, put(n, (1,), CONTEXT - 3), e, p), r"past\[1\] is 47, expected 0 to 46"),
        (lambda t, n, e, p: (t, put(n, (0,), -1), e, p), r"past\[0\] is -1, expected 0 to 46"),
        (lambda t, n, e, p: (t, n[1:], e, p), "B of past is 2, expected 3"),
        (lambda t, n, e, p: (t, n, e[1:], p), "V of the vocabulary is 36, expected 37"),
        (lambda t, n, e, p: (t, n, e, p[:, 1:]), "D of the vocabulary is 24, expected 23"),
        (lambda t, n, e, p: (t, n, e[..., 1:], p), "D of the vocabulary is 23, expected 24"),
        (lambda t, n, e, p: (t, n, e[:, :0], p[:, :0]), "D and V must be positive"),
    ],
)
def test_refuses(rng, change, message):
    with pytest.raises(ValueError, match=message):
        eager.call(ops.embed, *change(*arguments(rng, 3, 4, 24)), n_vocab=VOCABULARY)

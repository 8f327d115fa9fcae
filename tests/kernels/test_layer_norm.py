import numpy as np
import pytest

from max_whisper import eager, ops

from . import references
from .harness import FLOAT32_TOLERANCE, check, run

# Around the 16, 32 and 64 floats that are taken at once; fewer rows than threads; Whisper's widths.
SHAPES = [
    *[(3, columns) for columns in (1, 2, 15, 16, 17, 31, 32, 33, 61, 64, 65, 127, 129)],
    *[(rows, 384) for rows in (1, 2, 3, 7, 1500)],
    (448, 1280),
    (333, 385),
]

for signature in ("f32[2]", "f32[3]", "f16[2]"):
    vector = f"{signature[:3]}[1]"
    eager.prepare(ops.layer_norm, f"{signature} {vector} {vector}")
    eager.prepare(ops.add_layer_norm, f"{signature} {signature} {vector} {vector}")
eager.prepare(ops.layer_norm, "f32[2] f32[1] f32[1]", epsilon=0.5)


def arguments(rng: np.random.Generator, *shape: int) -> list[np.ndarray]:
    scale_and_shift = rng.standard_normal((2, shape[-1]), dtype=np.float32)
    return [rng.standard_normal(shape, dtype=np.float32), *scale_and_shift]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_matches_reference(rng, shape):
    check(ops.layer_norm, arguments(rng, *shape), references.layer_norm, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_residual(rng, shape):
    residual = rng.standard_normal(shape, dtype=np.float32)
    check(ops.add_layer_norm, [residual, *arguments(rng, *shape)], references.add_layer_norm, **FLOAT32_TOLERANCE)


def test_sum_is_exact_and_normalised_like_any_other_row(rng):
    x, gamma, beta = arguments(rng, 7, 61)
    residual = rng.standard_normal(x.shape, dtype=np.float32)
    total, normalised = run(ops.add_layer_norm, x, residual, gamma, beta)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(normalised, run(ops.layer_norm, total, gamma, beta))


def test_rows_far_from_zero_keep_their_variance(rng):
    x, gamma, beta = arguments(rng, 5, 384)
    x = x + np.float32(1000)  # E[x^2] - E[x]^2 would be off by 0.1
    check(ops.layer_norm, [x, gamma, beta], references.layer_norm, rtol=1e-3, atol=1e-3)


def test_constant_rows_give_beta(rng):
    x, gamma, beta = arguments(rng, 4, 48)
    x[:] = rng.integers(-9, 9, (4, 1))
    np.testing.assert_array_equal(run(ops.layer_norm, x, gamma, beta), np.broadcast_to(beta, x.shape))


def test_epsilon(rng):
    check(ops.layer_norm, arguments(rng, 3, 40), references.layer_norm, epsilon=0.5, **FLOAT32_TOLERANCE)


def test_leading_dimensions(rng):
    x, gamma, beta = arguments(rng, 2, 3, 37)
    check(ops.layer_norm, [x, gamma, beta], references.layer_norm, **FLOAT32_TOLERANCE)
    check(ops.add_layer_norm, [x, x, gamma, beta], references.add_layer_norm, **FLOAT32_TOLERANCE)


def test_half_precision_has_float32_statistics(rng):
    x, gamma, beta = (array.astype(np.float16) for array in arguments(rng, 9, 770))
    x += np.float16(30)  # the squares of a row add up to more than float16 holds
    check(ops.layer_norm, [x, gamma, beta], references.layer_norm, rtol=1e-3, atol=1e-3)
    total, normalised = run(ops.add_layer_norm, x, x, gamma, beta)
    np.testing.assert_array_equal(total, x + x)
    np.testing.assert_array_equal(normalised, run(ops.layer_norm, total, gamma, beta))


def test_no_rows(rng):
    assert eager.call(ops.layer_norm, *arguments(rng, 0, 24)).shape == (0, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, g, b: (x, g[1:], b), "D of gamma is 23, expected 24"),
        (lambda x, g, b: (x, g, b[:1]), "D of beta is 1, expected 24"),
        (lambda x, g, b: (x[:, :0], g[:0], b[:0]), "D must be positive"),
    ],
)
def test_refuses(rng, change, message):
    with pytest.raises(ValueError, match=message):
        eager.call(ops.layer_norm, *change(*arguments(rng, 4, 24)))


def test_refuses_another_shape_of_the_residual(rng):
    x, gamma, beta = arguments(rng, 4, 24)
    with pytest.raises(ValueError, match="a dimension of the residual is 3, expected 4"):
        eager.call(ops.add_layer_norm, x, x[:3], gamma, beta)

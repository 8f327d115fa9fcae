import numpy as np
import pytest

from max_whisper import eager, ops
from max_whisper.packing import pack_linear, packed_shape

from . import references
from .harness import FLOAT32_TOLERANCE, check, product_tolerance, run

for gelu in (False, True):
    eager.prepare(ops.linear, "f32[2] f32[3] f32[1]", gelu=gelu)
for weights in ("f16", "bf16", "i8"):
    eager.prepare(ops.linear, f"f32[2] {weights}[3] f32[1]", gelu=False)
eager.prepare(ops.linear, "f32[3] f32[3] f32[1]", gelu=True)
eager.prepare(ops.linear, "f32[2] f32[3] f32[1] f32[2]", gelu=False)

# One less and one more than a tile's rows (3, 6, 12) and a panel's columns (16), primes, Whisper's own.
SHAPES = [
    *[(rows, 32, 16) for rows in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 97)],
    *[(3, depth, 16) for depth in (1, 2, 15, 17, 61)],
    *[(5, 24, columns) for columns in (1, 15, 16, 17, 31, 33, 63, 64, 65, 127)],
    (211, 67, 71),
    (1500, 384, 384),
    (1, 1536, 384),
    (448, 384, 1152),
    *[(rows, depth, 33) for rows in (6, 7, 401) for depth in (1537, 3073)],  # sums in one pass and in several
]


def arguments(
    rng: np.random.Generator, rows: int, depth: int, columns: int, dtype: str = "float32"
) -> list[np.ndarray]:
    x = rng.standard_normal((rows, depth), dtype=np.float32)
    weight = rng.standard_normal((columns, depth), dtype=np.float32) / np.sqrt(np.float32(depth))
    return [x, pack_linear(weight, dtype), rng.standard_normal(columns, dtype=np.float32)]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_matches_reference(rng, shape, gelu):
    check(ops.linear, arguments(rng, *shape), references.linear, gelu=gelu, **product_tolerance(shape[0]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [*SHAPES, (6, 3, 17), (7, 5, 33), (8, 62, 17)], ids=lambda s: "x".join(map(str, s)))
def test_narrow_weights(rng, shape, dtype):
    """The reference multiplies the same rounded numbers; sums are of float32, or exact: the bound is float32's."""
    tolerance = product_tolerance(shape[0], dtype)
    check(ops.linear, arguments(rng, *shape, dtype=dtype), references.linear, gelu=False, **tolerance)


@pytest.mark.parametrize("rows", [1, 6, 7, 1500])
def test_float16_weights_change_no_bit(rng, rows):
    """What float16 holds exactly gives float32's sums, in the same order: the reason why it is the default."""
    x = rng.standard_normal((rows, 67), dtype=np.float32)
    weight = rng.standard_normal((71, 67)).astype(np.float16)
    weight[:, :5] = np.float16(6e-8) * np.arange(-2, 3)  # subnormal ones too
    bias = rng.standard_normal(71, dtype=np.float32)
    half, single = (
        run(ops.linear, x, pack_linear(weight, dtype), bias, gelu=False) for dtype in ("float16", "float32")
    )
    np.testing.assert_array_equal(half, single)


@pytest.mark.parametrize("shape", [(1, 32, 17), (7, 61, 64), (1500, 64, 80)], ids=lambda s: "x".join(map(str, s)))
def test_residual(rng, shape):
    residual = rng.standard_normal((shape[0], shape[2]), dtype=np.float32)
    tolerance = product_tolerance(shape[0])
    check(ops.linear, [*arguments(rng, *shape), residual], references.linear, gelu=False, **tolerance)


def test_gelu_alone(rng):
    """1 times x plus 0 leaves nothing but GELU: within the rounding of x (1 + erf) / 2, also where it is flat."""
    x = np.concatenate([np.linspace(-8, 8, 4001), [0, -1e-30, 1e-30, -1e4, 1e4]]).astype(np.float32)[:, None]
    check(
        ops.linear,
        [np.ones((1, 1), np.float32), pack_linear(x), np.zeros(len(x), np.float32)],
        references.linear,
        gelu=True,
        rtol=2e-7,
        atol=8e-7,
    )


def test_leading_dimensions(rng):
    x, weight, bias = arguments(rng, 2 * 3, 24, 20)
    check(ops.linear, [x.reshape(2, 3, 24), weight, bias], references.linear, gelu=True, **FLOAT32_TOLERANCE)


def test_no_rows(rng):
    x, weight, bias = arguments(rng, 0, 24, 20)
    assert eager.call(ops.linear, x, weight, bias, gelu=False).shape == (0, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x[:, 1:], w, b), "the number of rows of a packed panel is 24, expected 23"),
        (lambda x, w, b: (x, w[:1], b), "the number of packed panels is 1, expected 2"),
        (lambda x, w, b: (x, w[:, :, :8], b), "the width of a packed panel is 8, expected 16"),
        (lambda x, w, b: (x, w, b[:16]), "the number of packed panels is 2, expected 1"),
        (lambda x, w, b: (x[:, :0], w[:, :0], b), "K and N must be positive"),
    ],
)
def test_refuses(rng, change, message):
    with pytest.raises(ValueError, match=message):
        eager.call(ops.linear, *change(*arguments(rng, 4, 24, 20)), gelu=False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_packing_keeps_every_weight(rng, dtype):
    weight = rng.standard_normal((37, 5), dtype=np.float32)
    weight[3], weight[4, 1:], weight[4, 0] = 0, 0, -1e-30
    packed = pack_linear(weight, dtype)
    assert packed.shape == packed_shape(37, 5, dtype)
    # bfloat16 has 8 significant bits; int8 has 127 steps up to the largest of each column
    bound = {
        "float32": 0,
        "float16": 2.0**-11 * np.abs(weight) + 2.0**-25,
        "bfloat16": 2.0**-8 * np.abs(weight),
        "int8": np.abs(weight).max(1, keepdims=True) / 253,
    }
    assert (np.abs(references.unpack_linear(packed, 37, 5) - weight) <= bound[dtype]).all()
    assert not references.unpack_linear(packed, 48, 5)[37:].any()
    assert not references.unpack_linear(packed, 37, 8)[:, 5:].any() or dtype == "float32"

import numpy as np
import pytest

from max_whisper import eager, ops
from max_whisper.packing import pack_conv1d

from . import references
from .harness import check, product_tolerance

for stride in (1, 2):
    eager.prepare(ops.conv1d, "f32[3] f32[3] f32[1]", stride=stride)
eager.prepare(ops.conv1d, "f32[3] f32[3] f32[1] f32[2]", stride=2)

for weights in ("f16", "bf16", "i8"):
    eager.prepare(ops.conv1d, f"f32[3] {weights}[3] f32[1]", stride=2)

# Lengths at which an end falls on every row of a tile; channels and columns around a panel; Whisper's own.
SHAPES = [
    *[(1, length, 5, 16) for length in (1, 2, 3, 4, 5, 6, 7, 8, 13, 24, 25)],
    *[(2, 9, channels, columns) for channels, columns in ((1, 1), (7, 15), (16, 17), (33, 33))],
    (1, 3000, 80, 64),
    (1, 3000, 128, 48),
]


def arguments(rng, batch: int, length: int, channels: int, columns: int, dtype: str = "float32") -> list[np.ndarray]:
    weight = rng.standard_normal((columns, channels, 3), dtype=np.float32) / np.sqrt(np.float32(3 * channels))
    x = rng.standard_normal((batch, length, channels), dtype=np.float32)
    return [x, pack_conv1d(weight, dtype), rng.standard_normal(columns, dtype=np.float32)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_matches_reference(rng, shape, stride):
    tolerance = product_tolerance(shape[1])
    check(ops.conv1d, arguments(rng, *shape), references.conv1d, stride=stride, **tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_narrow_weights(rng, shape, dtype):
    """The reference multiplies the same rounded numbers; sums are of float32, or exact: the bound is float32's."""
    tolerance = product_tolerance(shape[1], dtype)
    check(ops.conv1d, arguments(rng, *shape, dtype=dtype), references.conv1d, stride=2, **tolerance)


@pytest.mark.parametrize("length", [1, 2, 13, 3000])
def test_positions(rng, length):
    positions = rng.standard_normal(((length - 1) // 2 + 1, 17), dtype=np.float32)
    arrays = [*arguments(rng, 2, length, 6, 17), positions]
    check(ops.conv1d, arrays, references.conv1d, stride=2, **product_tolerance(length))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x[..., :4], w, b), "the number of rows of a packed panel is 15, expected 12"),
        (lambda x, w, b: (x, w[:1], b), "the number of packed panels is 1, expected 2"),
        (lambda x, w, b: (x[:, :0], w, b), "T, C and N must be positive"),
    ],
)
def test_refuses(rng, change, message):
    with pytest.raises(ValueError, match=message):
        eager.call(ops.conv1d, *change(*arguments(rng, 1, 8, 5, 17)), stride=1)

"""The convolution on a GPU against float64, and what it moves on the phantom."""

import numpy as np
import pytest

from max_whisper import ops
from tests.phantom.architecture import A100, CURRENT

from . import references
from .harness import DTYPES, check, counted, prepare, refused, round_to

pytestmark = pytest.mark.gpu

for name in DTYPES:
    prepare(ops.conv1d, f"{name}[3] {name}[2] {name}[1]", stride=1)
    prepare(ops.conv1d, f"{name}[3] {name}[2] {name}[1] {name}[2]", stride=2)

# (B, T, C, N): one frame, the ends of a tile of 128 frames, N with a tail, the 80 bands of log-mel.
SHAPES = [
    (1, 1, 8, 16),
    (2, 2, 16, 65),
    (2, 3, 8, 8),
    (1, 127, 8, 24),
    (2, 129, 16, 64),
    (1, 258, 8, 17),
    (3, 40, 80, 64),
]


def arguments(rng: np.random.Generator, name: str, batch: int, length: int, channels: int, columns: int):
    arrays = [
        rng.standard_normal((batch, length, channels)),
        rng.standard_normal((columns, 3 * channels)) / np.sqrt(3 * channels),
        rng.standard_normal(columns),
    ]
    return [round_to(name, array) for array in arrays]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_stride_1(rng, name, shape):
    check(ops.conv1d, name, arguments(rng, name, *shape), references.conv1d, stride=1)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_stride_2_and_positions(rng, name, shape):
    positions = round_to(name, rng.standard_normal(((shape[1] - 1) // 2 + 1, shape[3])))
    check(ops.conv1d, name, [*arguments(rng, name, *shape), positions], references.conv1d, stride=2)


def test_no_batch(rng):
    check(ops.conv1d, "f16", arguments(rng, "f16", 0, 5, 8, 16), references.conv1d, stride=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x[:, :, :7], w[:, :21], b), "C of x is 7, on a GPU a multiple of 8 is expected"),
        (lambda x, w, b: (x, w[:, :16], b), "K of the weight is 16, expected 24"),
        (lambda x, w, b: (x[:, :0], w, b), "T, C and N must be positive"),
        (lambda x, w, b: (np.repeat(x[:, :1], 65536, axis=0), w, b), "B is 65536, on a GPU at most 65535"),
    ],
)
def test_refuses(rng, change, message):
    refused(ops.conv1d, change(*arguments(rng, "f16", 1, 5, 8, 16)), message, stride=1)


def test_moves_what_the_tiling_implies(rng):
    """As the linear layer: a row of A is three frames of x, though only the first of each is new."""
    batch, length, channels, columns = 1, 256, 80, 64
    launch = counted(ops.conv1d, arguments(rng, "f16", batch, length, channels, columns), stride=1)
    assert launch.moved <= 1.25 * 2 * (3 * channels * (length + 3 * columns) + length * columns)
    assert launch.bank_conflicts == 0
    assert 32 * launch.sectors_read <= 1.01 * launch.global_read
    assert launch.tensor_core == (3 * 6 if CURRENT is A100 else 2 * 8) * 8 * 4 * 4

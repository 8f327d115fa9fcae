"""The linear layer on a GPU against float64, and what it moves on the phantom."""

import numpy as np
import pytest

from max_whisper import ops

from . import references
from .harness import DTYPES, check, counted, prepare, refused, round_to

pytestmark = pytest.mark.gpu

for name in DTYPES:
    prepare(ops.linear, f"{name}[2] {name}[2] {name}[1]", gelu=False)
    prepare(ops.linear, f"{name}[2] {name}[2] {name}[1] {name}[2]", gelu=True)

# M around the border of the two bodies (16), one less and one more than a warp's and a block's tile (64, 128); K and N
# whole and with tails: N odd, N not a multiple of 8, K shorter and longer than a step (64, 32).
ROWS = [1, 2, 5, 8, 9, 16, 17, 63, 64, 65, 129]
SHAPES = [
    *[(rows, 72, 136) for rows in ROWS],
    *[(rows, columns, depth) for rows in (3, 19) for columns, depth in [(1, 8), (65, 64), (17, 24), (128, 200)]],
    (1500, 64, 64),
]


def arguments(rng: np.random.Generator, name: str, rows: int, columns: int, depth: int) -> list[np.ndarray]:
    arrays = [
        rng.standard_normal((rows, depth)),
        rng.standard_normal((columns, depth)) / np.sqrt(depth),
        rng.standard_normal(columns),
    ]
    return [round_to(name, array) for array in arrays]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_matches_reference(rng, name, shape):
    check(ops.linear, name, arguments(rng, name, *shape), references.linear, gelu=False)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 65, 24), (7, 64, 64), (130, 65, 72), (130, 64, 72)], ids=lambda s: "x".join(map(str, s))
)
def test_gelu_and_residual(rng, name, shape):
    residual = round_to(name, rng.standard_normal(shape[:2]))
    check(ops.linear, name, [*arguments(rng, name, *shape), residual], references.linear, gelu=True)


@pytest.mark.parametrize("name", DTYPES)
def test_no_rows(rng, name):
    check(ops.linear, name, arguments(rng, name, 0, 24, 24), references.linear, gelu=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x[:, :23], w[:, :23], b), "K of x is 23, on a GPU a multiple of 8 is expected"),
        (lambda x, w, b: (x, w[:, :16], b), "K of the weight is 16, expected 24"),
        (lambda x, w, b: (x, w[:19], b), "N of the weight is 19, expected 20"),
        (lambda x, w, b: (x[:, :0], w[:, :0], b), "K and N must be positive"),
    ],
)
def test_refuses(rng, change, message):
    refused(ops.linear, change(*arguments(rng, "f16", 4, 20, 24)), message, gelu=False)


@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(256, 128, 384), (150, 96, 128)])
def test_moves_what_the_tiling_implies(rng, name, rows, columns, depth):
    """A is read once for each 64 columns, W once for each 128 rows; tensor cores do no more than padding asks for."""
    launch = counted(ops.linear, arguments(rng, name, rows, columns, depth), gelu=False)
    across, down = -(-columns // 64), -(-rows // 128)
    assert launch.moved <= 1.25 * 2 * (rows * depth * across + columns * depth * down + rows * columns)
    assert launch.bank_conflicts == 0
    assert 32 * launch.sectors_read <= 1.01 * launch.global_read
    assert 32 * launch.sectors_written == launch.global_written
    assert launch.tensor_core == across * 8 * down * 8 * -(-depth // 64) * 4


# Rows, columns, depth; with 32, 48, 80, 128 and 160 columns a block.
DECODING = [(1, 384, 384), (2, 384, 384), (5, 384, 384), (8, 384, 384), (16, 384, 384), (16, 1536, 384), (2, 64, 1536)]
DECODING += [(5, 384, 1536)]


@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize("shape", DECODING, ids=lambda s: "x".join(map(str, s)))
def test_decoding_reads_little_more_than_it_must(rng, name, shape):
    """The weight once; x once a block, of which there are few enough."""
    rows, columns, depth = shape
    launch = counted(ops.linear, arguments(rng, name, *shape), gelu=False)
    assert launch.moved <= 1.10 * 2 * (columns * depth + rows * depth + columns + rows * columns)
    assert launch.bank_conflicts == 0
    assert launch.tensor_core == columns // 16 * depth // 16 * (2 if rows > 8 else 1)


@pytest.mark.parametrize(("shape", "blocks"), [((8, 384, 1536), 12), ((16, 64, 1536), 2)])
def test_decoding_does_not_wait_for_few_multiprocessors(rng, shape, blocks):
    """Where wider blocks would have more than 160 KB to read, x is read more often."""
    launch = counted(ops.linear, arguments(rng, "f16", *shape), gelu=False)
    assert launch.grid == (blocks, 1, 1)
    rows, columns, depth = shape
    assert launch.moved <= 1.01 * 2 * (columns * depth + blocks * rows * depth + columns + rows * columns)


@pytest.mark.parametrize(("rows", "most"), [(1, 1.10), (5, 1.15)])
def test_decoding_in_float32(rng, rows, most):
    """Registers allow blocks of 32 columns."""
    launch = counted(ops.linear, arguments(rng, "f32", rows, 384, 384), gelu=False)
    assert launch.moved <= most * 4 * (384 * 384 + 384 * rows + 384 + 384 * rows)
    assert launch.bank_conflicts == 0

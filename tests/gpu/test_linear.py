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


@pytest.mark.parametrize(("name", "columns", "depth"), [("f16", 384, 384), ("bf16", 64, 1536), ("f32", 64, 384)])
def test_decoding_reads_the_weight_once(rng, name, columns, depth):
    launch = counted(ops.linear, arguments(rng, name, 1, columns, depth), gelu=False)
    size = 4 if name == "f32" else 2
    assert launch.moved <= 1.10 * size * (columns * depth + depth + 2 * columns)
    assert launch.bank_conflicts == 0
    if name != "f32":
        assert launch.tensor_core == columns // 16 * depth // 16

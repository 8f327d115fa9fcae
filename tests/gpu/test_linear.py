"""The linear layer on a GPU against float64, and what it moves on the phantom."""

import numpy as np
import pytest

from max_whisper import eager, ops, runtime
from max_whisper.packing import fold_norm
from tests.kernels import references as cpu_references
from tests.phantom import install
from tests.phantom.architecture import A100, CURRENT, H100

from . import references
from .harness import DTYPES, check, counted, execute, prepare, refused, round_to, widen

pytestmark = pytest.mark.gpu

for name in DTYPES:
    prepare(ops.linear, f"{name}[2] {name}[2] {name}[1]", gelu=False)
    prepare(ops.linear, f"{name}[2] {name}[2] {name}[1] {name}[2]", gelu=True)
    prepare(ops.norm_linear, f"{name}[2] {name}[2] {name}[1] f32[1]", gelu=True)

# M around the border of the two bodies (16), one less and one more than a warp's and a block's tile (48, 96; 64, 128); K
# and N whole and with tails: N odd, N not a multiple of 8, K shorter and longer than a step (64, 32).
ROWS = [1, 2, 5, 8, 9, 16, 17, 47, 48, 49, 63, 64, 65, 95, 97, 129]
SHAPES = [
    *[(rows, 72, 136) for rows in ROWS],
    *[(rows, columns, depth) for rows in (3, 19) for columns, depth in [(1, 8), (65, 64), (17, 24), (128, 200)]],
    (1500, 64, 64),
    (129, 64 * 55 - 5, 136),  # more tiles than the phantom has multiprocessors: a block has one group of threads
]

# On Hopper the smallest tile is the fastest for all of these; where it would take two rounds of the multiprocessors, others
# are: (rows, columns, depth) -> rows and columns of the tile.
HOPPER = {(193, 8504, 40): (192, 192), (129, 4291, 136): (192, 96), (127, 12768, 72): (128, 128)}


def tiles(rows: int, columns: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Tiles across and down."""
    return -(-columns // tile[1]), -(-rows // tile[0])


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


@pytest.mark.skipif(bool(install.installed) and CURRENT is A100, reason="an A100 has no tiles of these shapes")
@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize("shape", HOPPER, ids=lambda s: "x".join(map(str, s)))
def test_each_of_hoppers_tiles(rng, name, shape):
    residual = round_to(name, rng.standard_normal(shape[:2]))
    check(ops.linear, name, arguments(rng, name, *shape), references.linear, gelu=False)
    check(ops.linear, name, [*arguments(rng, name, *shape), residual], references.linear, gelu=True)
    if install.installed and CURRENT is H100:
        assert install.installed.launches[0].grid[:2] == tiles(shape[0], shape[1], HOPPER[shape])


# One launch up to 16 rows, in which each warp has a part of its k, all, or two rounds; a row of a part of one warp's k.
NORMED = [*[(rows, 24, 136) for rows in (1, 5, 8, 9, 16, 17)], (3, 17, 8), (9, 8, 1024), (2, 16, 1032)]
NORMED += [(2, 16, 2040), (1, 8, 2048)]

# What a launch of its own has normalised may lie between two of the dtype's numbers, and be rounded to the other one, which
# moves a sum by 2**-11 / sqrt(K). In one launch, the variance of a row whose mean is 50 times its width has 13 of 24 bits
# left.
NORMED_TOLERANCE = {"f32": (5e-5, 5e-5), "f16": (2**-10, 1e-3), "bf16": (2**-7, 8e-3)}


def normed(rng: np.random.Generator, name: str, rows: int, columns: int, depth: int) -> list[np.ndarray]:
    """Rows far from mean 0, each of its own width."""
    x = rng.standard_normal((rows, depth)) * 2.0 ** rng.integers(-3, 4, (rows, 1)) + 2 * rng.standard_normal((rows, 1))
    gamma, beta = 1 + rng.standard_normal(depth) / 4, rng.standard_normal(depth) / 4
    _, weight, bias = map(widen, arguments(rng, name, 1, columns, depth))
    return [round_to(name, x), *fold_norm(weight, bias, gamma, beta, DTYPES[name])]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", NORMED, ids=lambda s: "x".join(map(str, s)))
def test_of_normalised_rows(rng, name, shape):
    arrays = normed(rng, name, *shape)
    (result,) = execute(ops.norm_linear, arrays, gelu=True)
    x, weight, bias, _ = map(widen, arrays)
    rows = cpu_references.layer_norm(x, np.ones(x.shape[1]), np.zeros(x.shape[1]))
    if name == "f32" or len(x) > 16:  # a launch of its own, which rounds
        rows = widen(round_to(name, rows))
    rtol, atol = NORMED_TOLERANCE[name]
    np.testing.assert_allclose(widen(result), references.linear(rows, weight, bias, gelu=True), rtol=rtol, atol=atol)


def test_a_bias_that_does_not_start_at_a_chunk(rng):
    buffers = eager.to_buffers(ops.norm_linear, normed(rng, "f16", 17, 24, 136), "gpu")
    model = eager.compile_op(ops.norm_linear, buffers, {"gelu": True})
    shifted = eager.to_buffers(ops.norm_linear, normed(rng, "f16", 17, 25, 136), "gpu")
    buffers[2] = shifted[2][1:]
    with pytest.raises(ValueError, match="bias starts at an address that is no multiple of 16 bytes"):
        runtime.execute(model, *buffers)


@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize("rows", [1, 16])
def test_few_rows_are_normalised_in_the_same_launch(rng, name, rows):
    launch = counted(ops.norm_linear, normed(rng, name, rows, 48, 384), gelu=True)
    sums = (rows + 1) // 2 * 2 * 48  # 4 bytes each, for every warp, which finishes two rows
    assert launch.moved <= 1.01 * 2 * (48 * 384 + 3 * rows * 384 + 48 + sums + rows * 48)
    assert launch.bank_conflicts == 0


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
        (
            lambda x, w, b: (np.zeros((65535 * 96 + 1, 8), np.float16), w[:1, :8], b[:1]),
            "M is 6291361, on a GPU at most 6291360",
        ),
    ],
)
def test_refuses(rng, change, message):
    refused(ops.linear, change(*arguments(rng, "f16", 4, 20, 24)), message, gelu=False)


@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(256, 128, 384), (150, 96, 192), (128, 64 * 109, 128)])
def test_moves_what_the_tiling_implies(rng, name, rows, columns, depth):
    """A is read once for each 64 columns, W once for each 96 rows where there are few tiles, for each 128 where there are
    many, and on Hopper; tensor cores do no more than padding asks for."""
    launch = counted(ops.linear, arguments(rng, name, rows, columns, depth), gelu=False)
    tile = 96 if columns < 6000 and CURRENT is A100 else 128
    across, down = tiles(rows, columns, (tile, 64))
    assert launch.moved <= 1.25 * 2 * (rows * depth * across + columns * depth * down + rows * columns)
    assert launch.bank_conflicts == 0
    assert 32 * launch.sectors_read <= 1.01 * launch.global_read
    assert 32 * launch.sectors_written == launch.global_written
    assert launch.tensor_core == across * 8 * down * tile // 16 * -(-depth // 64) * 4


DECODING = [(1, 384, 384), (2, 384, 384), (5, 384, 384), (8, 384, 384), (16, 384, 384), (2, 64, 1536), (5, 64, 2560)]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", DECODING, ids=lambda s: "x".join(map(str, s)))
def test_decoding_reads_the_weight_once(rng, name, shape):
    """And x once for each 16 columns, which is a tenth of the weight at most if there is one row."""
    rows, columns, depth = shape
    launch = counted(ops.linear, arguments(rng, name, *shape), gelu=False)
    size = 4 if name == "f32" else 2
    ends = columns + rows * columns
    assert launch.moved <= 1.01 * size * (columns * depth + columns // 16 * rows * depth + ends)
    assert rows > 1 or launch.moved <= 1.10 * size * (columns * depth + rows * depth + ends)
    assert 32 * launch.sectors_read <= 1.01 * launch.global_read
    assert launch.bank_conflicts == 0
    assert launch.tensor_core == (0 if name == "f32" else columns // 16 * depth // 16 * (2 if rows > 8 else 1))

"""Layer norm on a GPU against its float64 reference, and what it moves against what it must."""

import numpy as np
import pytest

from max_whisper import ops
from tests.kernels import references

from .harness import DTYPES, check, counted, prepare, refused, round_to, widen

pytestmark = pytest.mark.gpu

for name in DTYPES:
    prepare(ops.layer_norm, f"{name}[3] {name}[1] {name}[1]")
    prepare(ops.add_layer_norm, f"{name}[2] {name}[2] {name}[1] {name}[1]")

# One chunk; around the 32 chunks of a round, in 2 and in 4 bytes; where a lane holds more; Whisper's; the most.
COLUMNS = [8, 16, 120, 128, 136, 248, 256, 264, 384, 512, 520, 1024, 1032, 1280, 2048]


def arguments(rng, name, rows, columns, count):
    """Rows far from zero, whose variance cancels in a difference of means, and positive gammas."""
    x = rng.standard_normal((count, *rows, columns)) * 2.0 ** rng.integers(-3, 4) + rng.integers(-8, 9)
    gamma, beta = rng.random(columns) + 0.5, rng.standard_normal(columns)
    return [round_to(name, array) for array in (*x, gamma, beta)]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_columns(rng, columns, name):
    check(ops.layer_norm, name, arguments(rng, name, (1, 3), columns, 1), references.layer_norm)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 17, 33])
def test_rows(rng, rows, name):
    check(ops.layer_norm, name, arguments(rng, name, (rows, 1), 384, 1), references.layer_norm)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (17, 384), (16, 512), (5, 1280), (3, 2048), (0, 384)])
def test_add(rng, rows, columns, name):
    def reference(x, residual, gamma, beta):
        """What is normalised is the sum as it is stored: the next layer adds to that."""
        total = widen(round_to(name, (x + residual).astype(np.float32)))
        return total, references.layer_norm(total, gamma, beta)

    check(ops.add_layer_norm, name, arguments(rng, name, (rows,), columns, 2), reference)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("op", [ops.layer_norm, ops.add_layer_norm])
def test_moves_little_more_than_it_must(rng, op, name):
    inputs = 1 if op is ops.layer_norm else 2
    rows = (1, 160) if inputs == 1 else (160,)
    arrays = arguments(rng, name, rows, 384, inputs)
    launch = counted(op, arrays)
    least = sum(array.nbytes for array in arrays) + inputs * arrays[0].nbytes
    assert launch.moved <= 1.1 * least
    assert launch.moved == launch.global_read + launch.global_written  # every byte of every sector is used
    assert launch.bank_conflicts == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, g, b: (x[..., :12], g[:12], b[:12]), "D is 12, on a GPU a multiple of 8 is expected"),
        (lambda x, g, b: (np.tile(x, 129), np.tile(g, 129), np.tile(b, 129)), "D is 2064, on a GPU at most 2048"),
        (lambda x, g, b: (x, g[:8], b), "D of gamma is 8, expected 16"),
        (lambda x, g, b: (x, g, b[:8]), "D of beta is 8, expected 16"),
        (lambda x, g, b: (x[..., :0], g[:0], b[:0]), "D must be positive"),
    ],
)
def test_refuses(rng, change, message):
    refused(ops.layer_norm, change(*arguments(rng, "f16", (1, 2), 16, 1)), message)

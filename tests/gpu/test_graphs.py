"""MAX's own ops on the GPU at hand: if these fail, it is not a kernel of ours that is wrong."""

import numpy as np
import pytest
from max.graph import ops

from .harness import all_counted, check, prepare

pytestmark = pytest.mark.gpu

prepare(ops.softmax, "f32[2]")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("shape", [(1, 1), (5, 391), (3, 1500)])
def test_softmax(rng, shape):
    check(ops.softmax, "f32", [rng.standard_normal(shape, dtype=np.float32)], softmax)


def test_counters(rng):
    x = rng.standard_normal((5, 391), dtype=np.float32)
    assert sum(launch.global_written for launch in all_counted(ops.softmax, [x])) == x.nbytes

"""`bench/gpu`: the formulas are what the phantom counts, and the model of time is one of them."""

import numpy as np
import pytest
from bench.gpu import legs, model, work
from bench.gpu.cases import Cases
from bench.gpu.peaks import A100, GPUS

from max_whisper import ops
from tests.phantom import architecture

from . import test_attention, test_conv1d, test_greedy, test_layer_norm, test_linear, test_log_mel
from .harness import all_counted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(architecture.CURRENT is not architecture.A100, reason="the formulas are of an A100's kernels"),
]


def linear(rng, *shape):
    return ops.linear, test_linear.arguments(rng, "f16", *shape), {"gelu": False}, work.linear(*shape)


def norm_linear(rng):
    return (
        ops.norm_linear,
        test_linear.normed(rng, "f16", 5, 384, 384),
        {"gelu": True},
        work.linear(5, 384, 384, norm=True),
    )


def conv1d(rng):
    launches = work.conv1d(1, 300, 80, 64, stride=1, positions=False)
    return ops.conv1d, test_conv1d.arguments(rng, "f16", 1, 300, 80, 64), {"stride": 1}, launches


def layer_norm(rng):
    launches = work.layer_norm(50, 384, add=True)
    return ops.add_layer_norm, test_layer_norm.arguments(rng, "f16", (50,), 384, 2), {}, launches


def self_attention(rng):
    rows = test_attention.normal(rng, "f16", 1, 200, 3 * 2 * 64)
    return ops.self_attention, [rows], {"heads": 2}, work.self_attention(1, 2, 200)


def pack_heads(rng):
    rows = test_attention.normal(rng, "f16", 1, 150, 3 * 3 * 64)
    return ops.pack_heads, [rows], {"heads": 3}, work.pack_heads(1, 3, 150)


def cached_attention(rng):
    rows, kv = (test_attention.normal(rng, "f16", *shape) for shape in [(1, 1, 384), (2, 1, 2, 448, 64)])
    arrays = [rows, np.array([100], np.int32), *kv]
    return test_attention.cached_attention, arrays, {}, work.cached_attention(1, 2, 100)


def cross_attention(rng):
    q, kv = (test_attention.normal(rng, "f16", *shape) for shape in [(1, 1, 128), (2, 1, 2, 1500, 64)])
    return ops.attention, [q, *kv], {}, work.cross_attention(1, 2, 1500)


def greedy(rng):
    hidden, _, table = test_greedy.rows(rng, "f16", 5, 384)
    arrays = [hidden, np.zeros(5, np.int32), table, np.zeros(test_greedy.V, np.uint8)]
    arrays.append(np.array([test_greedy.EVERYTHING] * 5, np.int32))
    return ops.greedy, arrays, {"timestamp_begin": test_greedy.FIRST}, work.greedy(5, 384, test_greedy.V)


def log_mel(rng):
    arrays = test_log_mel.arguments(rng, "f32", 1, 160 * 120, 0)
    return test_log_mel.log_mel, arrays, {}, work.log_mel(1, 120, 80)


CASES = {
    "linear, many rows": lambda rng: linear(rng, 150, 96, 384),
    "linear, one row": lambda rng: linear(rng, 1, 384, 384),
    "linear, nine rows": lambda rng: linear(rng, 9, 384, 384),
    **{
        f.__name__: f
        for f in (norm_linear, conv1d, layer_norm, self_attention, pack_heads, cached_attention, cross_attention)
    },
    **{f.__name__: f for f in (greedy, log_mel)},
}


@pytest.mark.parametrize("name", CASES)
def test_formulas(rng, name):
    """Bytes within 3 %, tensor-core instructions and blocks exactly; what launches of a few KB move, within 1 KB."""
    op, arrays, parameters, launches = CASES[name](rng)
    counted = all_counted(op, arrays, **parameters)
    assert len(counted) == len(launches)
    for launch, count in zip(launches, counted, strict=True):
        assert launch.blocks == np.prod(count.grid), launch.kernel
        assert launch.mma == count.tensor_core, launch.kernel
        assert launch.moved == pytest.approx(count.moved, rel=0.03, abs=1024), launch.kernel
        assert launch.least <= launch.moved


def test_legs_that_differ_in_rows_share_a_graph():
    cases = Cases("float16", rows=30, windows=(1, 2))
    for leg in ("ours", "builtin"):
        windows = [{legs.graph_name(getattr(case, leg)) for case in cases.encoder(n)} for n in cases.windows]
        assert windows[0] == windows[1]
        assert len(windows[0]) == len(cases.encoder(1))


def test_model():
    """What holds whatever the numbers are: nothing is faster than its bytes or its launches."""
    for gpu in GPUS:
        encoding = model.encoder(1, 384, 4)
        seconds = sum(model.estimate(launch, gpu, {}).seconds for launch in encoding)
        assert seconds >= len(encoding) * model.LAUNCH + sum(launch.least for launch in encoding) / gpu.memory
        one, eight = (model.transcribe(gpu, "tiny", batch, {}) for batch in (1, 8))
        assert eight.seconds < one.seconds
        assert one.seconds > model.transcribe(gpu, "tiny", 1, {}).launches * model.LAUNCH
        assert one.factor == pytest.approx(model.SPEECH / one.seconds)


def test_a_launch_waits_for_what_it_has_most_of():
    gpu = A100
    memory, tensor = work.Launch("x", 108, 1e9, 1e9), work.Launch("x", 108, 1e6, 1e6, mma=10**9)
    assert model.estimate(memory, gpu, {}).bound == "memory"
    assert model.estimate(tensor, gpu, {}).bound == "tensor cores"
    assert model.estimate(work.Launch("x", 1, 1e8, 1e6), gpu, {}).bound == "intake"
    assert model.estimate(memory, gpu, {"x": 1.0}).bound == "issue"

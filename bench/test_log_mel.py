"""Log-mel spectrogram of 30 s: ours from samples, MAX's own ops from frames that the host has cut and windowed.

The graph of built-in ops multiplies the frames with the DFT's matrix (400, 402), squares and adds, multiplies with the
filters and takes logarithms. What the host does before is not in its time.
"""

from functools import cache

import numpy as np
import pytest
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.graph import DeviceRef, TensorType, TensorValue
from max.graph import ops as max_ops
from pytest_benchmark.fixture import BenchmarkFixture

from max_whisper import eager, ops
from max_whisper.mel import mel_filters
from max_whisper.packing import pack_filters
from max_whisper.runtime import GraphModule, session

from .compare import compare

SAMPLES, FRAMES, POINTS, BINS = 480_000, 3000, 400, 201
DFT_OPERATIONS = 5100  # per frame, see kernels/log_mel/dft.mojo


def built_in(frames: TensorValue, dft: TensorValue, filters: TensorValue) -> TensorValue:
    """Frames (3000, 400), dft (400, 402), filters (201, n_mels) -> (n_mels, 3000)."""
    spectrum = max_ops.matmul(frames, dft)
    squares = spectrum * spectrum
    energies = max_ops.matmul(squares[:, :BINS] + squares[:, BINS:], filters)
    logs = max_ops.transpose(max_ops.log(max_ops.max(energies, 1e-10)) / float(np.log(10)), 0, 1)
    top = max_ops.max(max_ops.max(logs, axis=0), axis=1)
    return (max_ops.max(logs, top - 8) + 4) / 4


@cache
def compile_built_in() -> dict[int, Model]:
    module = GraphModule()
    for n_mels in (80, 128):
        shapes = [(FRAMES, POINTS), (POINTS, 2 * BINS), (BINS, n_mels)]
        types = [TensorType(DType.float32, shape, DeviceRef.CPU()) for shape in shapes]
        with module.graph(f"built_in_{n_mels}", types) as graph:
            graph.output(built_in(*(value.tensor for value in graph.inputs)))
    models = session().init_all(module.compile())
    return {n_mels: models[f"built_in_{n_mels}"] for n_mels in (80, 128)}


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel(benchmark: BenchmarkFixture, n_mels: int) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(SAMPLES, dtype=np.float32)
    runs, weights = pack_filters(mel_filters(n_mels))
    ours = [Buffer.from_numpy(a) for a in (samples[None], np.zeros(1, np.int32), runs, weights)]
    model = eager.compile_op(ops.log_mel, ours, {})

    t = np.arange(POINTS)
    cut = np.lib.stride_tricks.sliding_window_view(np.pad(samples, 200, mode="reflect"), POINTS)[::160][:FRAMES]
    angles = 2 * np.pi * np.outer(t, np.arange(BINS)) / POINTS
    matrices = (cut * (0.5 - 0.5 * np.cos(2 * np.pi * t / POINTS)), np.hstack([np.cos(angles), np.sin(angles)]))
    theirs = [Buffer.from_numpy(a.astype(np.float32, order="C")) for a in (*matrices, mel_filters(n_mels).T)]
    other = compile_built_in()[n_mels]

    expected = other.execute(*theirs)[0].to_numpy()
    np.testing.assert_allclose(model.execute(*ours)[0].to_numpy()[0], expected, rtol=0, atol=1e-4)
    compare(
        benchmark,
        lambda: model.execute(*ours),
        lambda: other.execute(*theirs),
        flops=FRAMES * (POINTS + DFT_OPERATIONS + weights.size + 18 * n_mels),
        bytes=4 * (SAMPLES + n_mels * FRAMES),
    )

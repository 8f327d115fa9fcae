"""Log-mel spectrogram of 30 s: ours from samples, MAX's own ops from frames that the host has cut and windowed."""

import numpy as np
import pytest
from max.graph import TensorValue
from max.graph import ops as max_ops

from bench.cases import call, random
from bench.compare import compare
from max_whisper import eager, ops
from max_whisper.mel import mel_filters
from max_whisper.packing import pack_filters

SAMPLES, FRAMES, POINTS, BINS = 480_000, 3000, 400, 201
DFT_OPERATIONS = 5100  # per frame: see kernels/log_mel/dft.mojo


def builtin(frames: TensorValue, dft: TensorValue, filters: TensorValue) -> TensorValue:
    """The composition: the DFT as a matrix (400, 402), powers, filters (201, n_mels), logarithm. Cutting is left out."""
    squares = max_ops.matmul(frames.rebind([FRAMES, POINTS]), dft.rebind([POINTS, 2 * BINS])) ** 2
    powers = squares[:, :BINS] + squares[:, BINS:]
    energies = max_ops.matmul(powers, filters.rebind([BINS, filters.shape[1]]))
    logs = max_ops.transpose(max_ops.log(max_ops.max(energies, 1e-10)) / float(np.log(10)), 0, 1)
    top = max_ops.max(max_ops.max(logs, axis=0), axis=1)
    return (max_ops.max(logs, top - 8) + 4) / 4


def cut(samples: np.ndarray) -> np.ndarray:
    """(480000) -> (3000, 400), windowed."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, POINTS // 2, mode="reflect"), POINTS)[::160]
    return frames[:FRAMES] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(POINTS) / POINTS))


eager.prepare(ops.log_mel, "f32[2] i32[1] i16[2] f32[1]")
eager.prepare(builtin, "f32[2] f32[2] f32[2]")


@pytest.mark.benchmark(group="log_mel")
@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel(benchmark, n_mels):
    samples = random(SAMPLES)
    filters = mel_filters(n_mels)
    runs, weights = pack_filters(filters)
    angles = 2 * np.pi * np.outer(np.arange(POINTS), np.arange(BINS)) / POINTS
    matrices = cut(samples), np.hstack([np.cos(angles), np.sin(angles)]), filters.T
    compare(
        benchmark,
        call(ops.log_mel, samples[None], np.zeros(1, np.int32), runs, weights),
        call(builtin, *(matrix.astype(np.float32) for matrix in matrices)),
        flops=FRAMES * (POINTS + DFT_OPERATIONS + len(weights) + 18 * n_mels),
        bytes=4 * (SAMPLES + n_mels * FRAMES),
    )

"""The log-mel spectrogram on a GPU against its float64 reference, and what it moves against what it must."""

import numpy as np
import pytest

from max_whisper import ops
from max_whisper.mel import mel_filters
from max_whisper.packing import pack_filters
from tests.kernels import references

from .harness import DTYPES, all_counted, execute, prepare, refused, round_to, widen

pytestmark = pytest.mark.gpu


def log_mel(samples, padding, runs, weights):
    return ops.log_mel(samples, padding, runs, weights)


log_mel.on_host = frozenset({1})  # type: ignore[attr-defined]

for name in DTYPES:
    prepare(log_mel, f"{name}[2] i32[1] i32[2] f32[1]")

TOLERANCE = {
    "f32": {"rtol": 0, "atol": 2e-5},  # a weak bin beside a strong one: errors of 1e-7 of the strong one's power
    "f16": {"rtol": 2**-10, "atol": 2e-5},
    "bf16": {"rtol": 2**-7, "atol": 2e-5},
}


def arguments(rng, name, batch, count, padding, mels=80):
    samples = rng.standard_normal((batch, count)) * 0.1
    return [round_to(name, samples), np.array([padding], np.int32), *pack_filters(mel_filters(mels))]


def check(name, arrays):
    (result,) = execute(log_mel, arrays)
    expected = references.log_mel(*map(widen, arrays))
    assert result.shape == expected.shape
    np.testing.assert_allclose(widen(result), expected, **TOLERANCE[name])


# The least there is; one frame less and more than a block's 24; no samples at all; silence behind, of which some blocks
# hear nothing; a filter bank of 128.
SHAPES = [(1, 201, 0, 80), (1, 0, 201, 80), (2, 400, 0, 80), (1, 3839, 0, 80), (1, 3840, 1, 80), (1, 4159, 0, 80)]
SHAPES += [(1, 5000, 8000, 80), (3, 161, 159, 80), (1, 1, 12000, 80), (1, 2000, 0, 128), (0, 400, 0, 80)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_shapes(rng, shape):
    check("f32", arguments(rng, "f32", *shape))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_dtypes(rng, name):
    check(name, arguments(rng, name, 1, 4000, 500))


def test_a_pure_tone_and_its_clamp(rng):
    samples = np.sin(2 * np.pi * 1000 / 16000 * np.arange(8000))[None].astype(np.float32)
    arrays = [samples, np.array([1000], np.int32), *pack_filters(mel_filters(80))]
    check("f32", arrays)


def test_moves_little_more_than_it_must(rng):
    samples, padding, runs, weights = arguments(rng, "f32", 1, 160 * 24 * 4, 0)
    launches = all_counted(log_mel, [samples, padding, runs, weights])
    features = 4 * 80 * 24 * 4
    least = samples.nbytes + 3 * features + runs.nbytes + weights.nbytes  # written, then read and clamped
    assert sum(launch.moved for launch in launches) <= 1.1 * least
    assert len(launches) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, p, r, w: (s[:, :100], p, r, w), "n_samples + padding is 100, expected at least 201"),
        (lambda s, p, r, w: (s, p - 1, r, w), "padding is -1, expected at least 0"),
        (lambda s, p, r, w: (s, p, np.tile(r, (2, 1)), w), "n_mels is 160, on a GPU at most 128"),
        (lambda s, p, r, w: (s, p, r, np.tile(w, 3)), "weights, on a GPU at most 1024"),
    ],
)
def test_refuses(rng, change, message):
    refused(log_mel, change(*arguments(rng, "f32", 1, 400, 0)), message)

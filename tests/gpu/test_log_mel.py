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
    prepare(log_mel, f"{name}[2] i32[1] i16[2] f32[1]")

TOLERANCE = {
    "f32": {"rtol": 0, "atol": 2e-5},  # a weak bin beside a strong one: errors of 1e-7 of the strong one's power
    "f16": {"rtol": 2**-10, "atol": 2e-5},
    "bf16": {"rtol": 2**-7, "atol": 2e-5},
}


def arguments(rng, name, batch, count, padding, mels=80):
    samples = rng.standard_normal((batch, count)) * 0.1
    return [round_to(name, samples), np.array([padding], np.int32), *pack_filters(mel_filters(mels))]


GAP = 1.5
"""The most by which a band may be below the strongest of its frame for TOLERANCE to hold: six decades, a quarter each."""


def noise(rng, name, *shape):
    """As `arguments`, drawn again where a band happens to have a gap, of which float32 cannot tell how deep it is."""
    while True:
        arrays = arguments(rng, name, *shape)
        mel = references.log_mel(*map(widen, arrays))
        if not mel.size or (mel.max(1) - mel.min(1)).max() < GAP:
            return arrays


def check(name, arrays):
    (result,) = execute(log_mel, arrays)
    expected = references.log_mel(*map(widen, arrays))
    assert result.shape == expected.shape
    np.testing.assert_allclose(widen(result), expected, **TOLERANCE[name])


# The least there is; one frame less and more than a block's 32; no samples at all; silence behind, of which some blocks
# hear nothing; a filter bank of 128, and of 3, fewer than parts; more blocks than one of the second kernel's looks at.
SHAPES = [(1, 201, 0, 80), (1, 0, 201, 80), (2, 400, 0, 80), (1, 5119, 0, 80), (1, 5120, 1, 80), (1, 5439, 0, 80)]
SHAPES += [(1, 5000, 12000, 80), (3, 161, 159, 80), (1, 1, 12000, 80), (1, 2000, 0, 128), (0, 400, 0, 80)]
SHAPES += [(1, 6000, 0, 3), (2, 1000, 24000, 80)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_shapes(rng, shape):
    check("f32", noise(rng, "f32", *shape))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_dtypes(rng, name):
    check(name, noise(rng, name, 1, 4000, 500))


def test_a_pure_tone_and_its_clamp(rng):
    samples = np.sin(2 * np.pi * 1000 / 16000 * np.arange(8000))[None].astype(np.float32)
    arrays = [samples, np.array([1000], np.int32), *pack_filters(mel_filters(80))]
    check("f32", arrays)


def fading(rng, frames):
    """Noise that loses a decade of power every 20th of the time; two thirds of its features are clamped."""
    samples, *rest = arguments(rng, "f32", 1, 160 * frames, 0)
    return [samples * np.logspace(0, -10, samples.shape[1], dtype=np.float32), *rest]


def test_what_is_clamped(rng):
    """Blocks without it, with some of it, and of nothing else; more of them than one of the second kernel's looks at."""
    check("f32", fading(rng, 150))


@pytest.mark.parametrize("clamped", [0, 0.7])
def test_moves_little_more_than_it_must(rng, clamped):
    """Samples and tables once, features once; what is clamped is read and written again, in parts of blocks."""
    make = fading(rng, 320) if clamped else arguments(rng, "f32", 1, 160 * 320, 0)
    launches = all_counted(log_mel, make)
    features = 4 * 80 * 320
    least = sum(array.nbytes for array in (make[0], *make[2:])) + features
    assert sum(launch.moved for launch in launches) <= 1.1 * least + 2.2 * clamped * features
    assert len(launches) == 2
    assert not any(launch.bank_conflicts for launch in launches)


def test_writes_silence_once(rng):
    """Blocks that hear nothing but padding are left to the second kernel; the second of five hears 200 samples."""
    launches = all_counted(log_mel, arguments(rng, "f32", 1, 160 * 32, 160 * 128))
    assert sum(launch.global_written for launch in launches) <= 4 * 80 * (160 + 32) + 1024
    assert sum(launch.global_read for launch in launches) <= 4 * (160 * 32 + 80 * 32 + 1600)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, p, r, w: (s[:, :100], p, r, w), "n_samples + padding is 100, expected at least 201"),
        (lambda s, p, r, w: (s, p - 1, r, w), "padding is -1, expected at least 0"),
        (lambda s, p, r, w: (s, p, np.tile(r, (2, 1)), w), "n_mels is 160, on a GPU at most 128"),
        (lambda s, p, r, w: (s, p, r, np.tile(w, 3)), "weights, on a GPU at most 402"),
    ],
)
def test_refuses(rng, change, message):
    refused(log_mel, change(*arguments(rng, "f32", 1, 400, 0)), message)

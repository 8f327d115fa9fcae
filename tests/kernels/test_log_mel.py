"""The log-mel kernel against a float64 reference, librosa, and (live) openai-whisper.

Tolerance: rounding in a float32 DFT is a noise of about 1e-7 of the loudest bin's amplitude. The quietest value that is
kept lies 8 decades of power, 4 of amplitude, below the loudest, so its amplitude may be off by 1e-3 and the result by
log10(1.001) * 2 / 4 = 2e-4 when everything conspires; a tenth of that is usual, in openai-whisper's float32 too. What
the kernel promises on speech, noise and pure tones is 1e-4.
"""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from max_whisper import eager, ops
from max_whisper.audio import load_audio
from max_whisper.mel import mel_filters
from max_whisper.packing import pack_filters
from tests.golden import clips

from . import references
from .harness import check, run

TOLERANCE = {"rtol": 0, "atol": 1e-4}

eager.prepare(ops.log_mel, "f32[2] i32[1] i16[2] f32[1]")

# The shortest that can be mirrored; a hop, a window; the ends of blocks of 4, 8 and 16 frames, and of the samples under
# them; a prime.
LENGTHS = [201, 319, 320, 321, 400, 479, 480, 639, 640, 800, 1279, 1280, 1281, 2559, 2560, 2561, 2761, 3120, 7919]


def signals() -> dict[str, np.ndarray]:
    t = np.arange(48_000) / 16_000
    shapes = {
        "silence": 0 * t,
        "constant": 0 * t + 1,
        "tone on a bin": np.sin(2 * np.pi * 1000 * t),
        "tone between bins": 0.5 * np.sin(2 * np.pi * 457 * t),
        "tone at the end of the spectrum": np.sin(2 * np.pi * 7999 * t),
        "sweep": np.sin(2 * np.pi * (20 * t + 1300 * t**2)),
        "square wave": np.sign(np.sin(2 * np.pi * 100 * t + 0.1)),
        "fading tone": np.sin(2 * np.pi * 300 * t) * np.exp(-20 * t),
    }
    for at in (0, 1, 199, 200, 8_000, 47_839, 47_840, 47_998, 47_999):
        shapes[f"impulse at {at}"] = (np.arange(48_000) == at) * 1.0
    return {name: shape.astype(np.float32) for name, shape in shapes.items()}


def arguments(samples: np.ndarray, padding: int = 0, n_mels: int = 80) -> list[np.ndarray]:
    return [np.atleast_2d(samples), np.array([padding], np.int32), *pack_filters(mel_filters(n_mels))]


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return 0.1 * rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(rng, length, n_mels):
    check(ops.log_mel, arguments(noise(rng, length), 0, n_mels), references.log_mel, **TOLERANCE)


@pytest.mark.parametrize(
    ("length", "padding"),
    [(0, 201), (1, 200), (1, 480_000), (159, 1281), (200, 1), (1000, 41), (1600, 39), (2560, 5000), (40_000, 480_000)],
)
def test_padding(rng, length, padding):
    """The zeros behind the samples are mirrored too, and frames that hear nothing else are silent."""
    check(ops.log_mel, arguments(noise(rng, length), padding), references.log_mel, **TOLERANCE)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("name", list(signals()))
def test_signals(name, n_mels):
    check(ops.log_mel, arguments(signals()[name], 0, n_mels), references.log_mel, **TOLERANCE)


def test_thirty_seconds(rng):
    check(ops.log_mel, arguments(noise(rng, 480_000)), references.log_mel, **TOLERANCE)


def test_rows_of_a_batch_have_their_own_maximum(rng):
    samples = noise(rng, 3, 4321) * np.array([[1], [1e-4], [0]], np.float32)
    result = run(ops.log_mel, *arguments(samples, 1000))
    for row, alone in zip(result, samples, strict=True):
        np.testing.assert_array_equal(row, run(ops.log_mel, *arguments(alone, 1000))[0])
    check(ops.log_mel, arguments(samples, 1000), references.log_mel, **TOLERANCE)


@pytest.mark.parametrize("runs", [[[0, 201]], [[200, 1], [0, 0], [7, 0], [0, 1]], [[0, 0]]])
def test_any_filters(rng, runs):
    runs = np.array(runs, np.int16)
    weights = rng.random(runs[:, 1].sum(), dtype=np.float32)
    samples, padding, *_ = arguments(noise(rng, 2000))
    check(ops.log_mel, [samples, padding, runs, weights], references.log_mel, **TOLERANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, p, r, w: (s[:, :200], p, r, w), r"n_samples \+ padding is 200, expected at least 201"),
        (lambda s, p, r, w: (s[:, :0], p, r, w), r"n_samples \+ padding is 0, expected at least 201"),
        (lambda s, p, r, w: (s, p - 1, r, w), "padding is -1, expected at least 0"),
        (lambda s, p, r, w: (s, p[:0], r, w), "the size of padding is 0, expected 1"),
        (lambda s, p, r, w: (s, p, r[:, :1], w), "the length of a run's description is 1, expected 2"),
        (lambda s, p, r, w: (s, p, r, w[1:]), "the number of weights is 390, expected 391"),
        (lambda s, p, r, w: (s, p, r - np.array([2, 0], np.int16), w), r"runs\[0, 0\] is -1, expected 0 to 200"),
        (lambda s, p, r, w: (s, p, r + np.array([15, 0], np.int16), w), r"runs\[78, 0\] is 194, expected 0 to 187"),
        (lambda s, p, r, w: (s, p, r - np.array([0, 2], np.int16), w), r"runs\[0, 1\] is -1, expected 0 to 201"),
    ],
)
def test_refuses(rng, change, message):
    with pytest.raises(ValueError, match=message):
        eager.call(ops.log_mel, *change(*arguments(noise(rng, 1000))))


@pytest.fixture(scope="module")
def librosa() -> Any:
    """librosa without numba, which would compile what is not called here while it is imported: half a minute of a core."""

    def leave(*arguments: Any, **_: Any) -> Any:  # a decorator, with and without arguments
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else leave

    numba = ModuleType("numba")
    for decorator in ("jit", "njit", "vectorize", "guvectorize", "stencil"):
        setattr(numba, decorator, leave)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", numba)
        library = pytest.importorskip("librosa")
        pytest.importorskip("librosa.core.spectrum")
        pytest.importorskip("librosa.filters")
    return library


def test_filters_are_librosas(librosa):
    for n_mels in (80, 128):
        filters = mel_filters(n_mels)
        expected = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=n_mels)
        np.testing.assert_allclose(filters, expected, rtol=0, atol=1e-7 * expected.max())
        np.testing.assert_allclose(references.unpack_filters(*pack_filters(filters)), filters, rtol=1e-7)


@pytest.mark.parametrize("clip", clips.paths())
def test_speech_is_what_librosa_hears(librosa, clip):
    samples = load_audio(clips.paths()[clip])[:480_000]
    spectrum = librosa.stft(samples, n_fft=400, hop_length=160, window="hann", pad_mode="reflect")[:, :-1]
    energies = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=80) @ np.abs(spectrum) ** 2
    logs = np.log10(np.maximum(energies, 1e-10))
    expected = (np.maximum(logs, logs.max() - 8) + 4) / 4
    np.testing.assert_allclose(eager.call(ops.log_mel, *arguments(samples))[0], expected, **TOLERANCE)


@pytest.mark.live
@pytest.mark.parametrize("name", [*clips.paths(), *signals()])
def test_is_what_openai_whisper_hears(name):
    whisper = pytest.importorskip("whisper")
    samples = signals()[name] if name in signals() else load_audio(clips.paths()[name])
    for n_mels in (80, 128):
        for padding in (0, 480_000):
            expected = whisper.log_mel_spectrogram(samples, n_mels=n_mels, padding=padding).numpy()
            result = eager.call(ops.log_mel, *arguments(samples, padding, n_mels))[0]
            np.testing.assert_allclose(result, expected, **TOLERANCE)

"""Recordings read a stretch at a time, and their features window by window: the same as all at once."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from max_whisper import features as features_module
from max_whisper import recording as recording_module
from max_whisper.errors import AudioError
from max_whisper.features import Features
from max_whisper.recording import ArrayRecording, SpooledRecording, open_recording

RANDOM = np.random.default_rng()


def pieces(samples: np.ndarray) -> Iterator[np.ndarray]:
    position = 0
    while position < len(samples):
        size = int(RANDOM.integers(1, 5000))
        yield samples[position : position + size]
        position += size


@pytest.mark.parametrize("in_memory", [1000, 10**9])
def test_spooled_samples_are_those_decoded(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "IN_MEMORY", in_memory)
    samples = RANDOM.integers(-32768, 32768, 20_011).astype(np.int16)
    floats = samples.astype(np.float32) / np.float32(32768)
    with SpooledRecording(pieces(samples)) as spooled:
        assert (spooled.n_samples, spooled.seconds) == (20_011, 20_011 / 16000)
        for begin, end in ((0, 20_011), (0, 1), (777, 15_555), (20_000, 30_000), (20_011, 20_500), (50_000, 60_000)):
            read = spooled.read(begin, end)
            assert read.dtype == np.float32
            np.testing.assert_array_equal(read, floats[begin:end])


def test_arrays_are_not_copied() -> None:
    samples = RANDOM.uniform(-1, 1, 1000).astype(np.float32)
    recording = open_recording(samples)
    assert np.shares_memory(recording.read(10, 20), samples)
    assert open_recording(recording) is recording
    scaled = open_recording(np.array([-32768, 16384], np.int16))
    np.testing.assert_array_equal(scaled.read(0, 5), np.array([-1, 0.5], np.float32))
    with pytest.raises(AudioError, match="0 samples"):
        open_recording(np.zeros(0, np.float32))


def test_a_recording_that_breaks_off_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros(100, np.int16)
        raise AudioError("cut short")

    opened = []
    spool = tempfile.SpooledTemporaryFile

    def noted(size: int) -> object:
        opened.append(spool(size))
        return opened[0]

    monkeypatch.setattr(recording_module.tempfile, "SpooledTemporaryFile", noted)
    with pytest.raises(AudioError, match="cut short"):
        SpooledRecording(broken())
    assert opened[0].closed


def test_no_room_for_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(recording_module.tempfile, "SpooledTemporaryFile", lambda size: Full())
    with pytest.raises(AudioError, match=r"No space left on device.*set TMPDIR"):
        SpooledRecording([np.zeros(10, np.int16)])


def test_no_room_for_the_last_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file writes what is left in its buffer when it is asked to, and once more when it is closed."""

    class Full:
        def write(self, data: bytes) -> int:
            return len(data)

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

        close = flush

    monkeypatch.setattr(recording_module.tempfile, "SpooledTemporaryFile", lambda size: Full())
    with pytest.raises(AudioError, match=r"No space left on device.*set TMPDIR"):
        SpooledRecording([np.zeros(10, np.int16)])


class Ears:
    """Features as Whisper's kernel makes them, of one band: energy of 25 ms, mirrored ends, clamped below their highest."""

    def log_mel_spectrogram(self, audio: np.ndarray, padding: int = 0) -> np.ndarray:
        assert len(audio) + padding > 200
        heard = np.pad(np.pad(audio.astype(np.float64), (0, padding)), 200, mode="reflect")
        frames = (len(audio) + padding) // 160
        energy = np.array([(heard[160 * f : 160 * f + 400] ** 2).sum() for f in range(frames)])
        values = ((np.log10(np.maximum(energy, 1e-10)) + 4) / 4).astype(np.float32)
        return np.maximum(values, values.max(initial=-1.5) - np.float32(2))[None]


@pytest.mark.parametrize("n_samples", [1, 159, 160, 201, 319, 480_000, 480_001, 479_999, 1_234_567])
def test_windows_are_cut_from_the_features_of_the_whole(monkeypatch: pytest.MonkeyPatch, n_samples: int) -> None:
    monkeypatch.setattr(features_module, "PAGE", 1234)
    loudness = np.repeat(10 ** RANDOM.uniform(-6, 0, n_samples // 8000 + 1), 8000)[:n_samples]
    samples = (RANDOM.normal(size=n_samples) * loudness * 0.2).astype(np.float32)
    whole = Ears().log_mel_spectrogram(samples, 480_000)
    features = Features(Ears(), ArrayRecording(samples))
    assert features.frames == n_samples // 160
    np.testing.assert_array_equal(features.stretch(0, 3000), whole[:, :3000])
    firsts = {0, 1, 2, 3, 7, features.frames - 1, features.frames // 2, features.frames - 3000}
    for first in sorted(first for first in firsts if 0 <= first < features.frames):
        frames = min(3000, features.frames - first)
        window = features.window(first, frames)
        assert (window.shape, window.dtype) == ((1, 3000), np.float32)
        np.testing.assert_array_equal(window[:, :frames], whole[:, first : first + frames])
        assert not window[:, frames:].any()


def test_silence_behind_the_recording() -> None:
    features = Features(Ears(), ArrayRecording(np.ones(16_000, np.float32)))
    stretch = features.stretch(90, 3000)
    assert (stretch[:, 12:] == features.silence).all()
    np.testing.assert_array_equal(features.stretch(102, 50), np.full((1, 50), features.silence))


@pytest.mark.parametrize(("windows", "kept"), [(1, 3), (4, 3), (5, 4), (8, 4)])
def test_the_latest_pages_are_kept(monkeypatch: pytest.MonkeyPatch, windows: int, kept: int) -> None:
    """As many as so many neighbouring windows may touch; each is computed once more when one goes through the recording."""
    monkeypatch.setattr(features_module, "N_FRAMES", 20)
    monkeypatch.setattr(features_module, "PAGE", 80)
    ears, asked = Ears(), []
    compute = ears.log_mel_spectrogram
    ears.log_mel_spectrogram = lambda audio, padding=0: asked.append(len(audio)) or compute(audio, padding)
    recording = ArrayRecording(RANDOM.normal(size=160 * 80 * 6).astype(np.float32) * 0.1)
    features = Features(ears, recording, windows=windows)
    assert len(asked) == 7  # one frame behind the end hears the recording
    asked.clear()
    features.stretch((7 - kept) * 80, kept * 80)
    assert not asked
    for begin in range(0, 480, 7):
        features.stretch(begin, 20)
    assert len(asked) == 7

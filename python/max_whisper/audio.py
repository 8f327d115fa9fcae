"""Sound as Whisper hears it: 16 kHz mono float32 samples, from files (`media.py`) or from arrays."""

import os
from typing import BinaryIO

import numpy as np

from max_whisper.errors import AudioError

SAMPLE_RATE = 16000
N_FFT = 400  # samples in one analysis window (25 ms)
HOP_LENGTH = 160  # samples from one mel frame to the next (10 ms)
CHUNK_LENGTH = 30  # seconds in the window that the encoder sees
N_SAMPLES = CHUNK_LENGTH * SAMPLE_RATE
N_FRAMES = N_SAMPLES // HOP_LENGTH
N_SAMPLES_PER_TOKEN = 2 * HOP_LENGTH  # the encoder's second convolution halves the frame rate
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
TOKENS_PER_SECOND = SAMPLE_RATE // N_SAMPLES_PER_TOKEN

AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | np.ndarray

INT16_SCALE = 1 / 32768  # a power of two: the division is exact
LOUDEST = 32.0  # floats are meant to lie in [-1, 1]; beyond this they are unscaled integers, not a loud recording


def load_audio(source: AudioSource) -> np.ndarray:
    """Reads a recording as 16 kHz mono samples.

    Args:
        source: A path; "-" for standard input; the bytes of an audio or video file, or a binary file object that is
            read to its end; or samples that are already 16 kHz mono: a one-dimensional array, float32 or float64 in
            [-1, 1] or int16.

    Returns:
        float32 (n_samples,), in [-1, 1]. A contiguous float32 array is returned as it is, not copied.

    Raises:
        AudioError: The source is missing, is not sound, holds no samples or NaN or infinite ones, or is damaged or cut
            short. (A bare MP3, AAC or AC-3 stream does not say how long it is: a clean cut there cannot be noticed.)
    """
    if isinstance(source, np.ndarray):
        return as_floats(check_samples(source))
    from max_whisper.media import decode  # FFmpeg's libraries take 0.1 s to load

    samples = np.concatenate(list(decode(source)), dtype=np.float32)
    samples *= INT16_SCALE
    return samples


def as_floats(samples: np.ndarray) -> np.ndarray:
    """Scales int16 samples to [-1, 1]; returns float32 samples as they are."""
    if samples.dtype != np.int16:
        return samples
    floats = samples.astype(np.float32)
    floats *= INT16_SCALE
    return floats


def pad_or_trim(array: np.ndarray, length: int = N_SAMPLES, *, axis: int = -1) -> np.ndarray:
    """Cuts one axis to `length`, or appends zeros up to it; an axis of that length already is not copied."""
    missing = length - array.shape[axis]
    if missing > 0:
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, missing)
        return np.pad(array, widths)
    kept = [slice(None)] * array.ndim
    kept[axis] = slice(length)
    return array[tuple(kept)]


def check_samples(samples: np.ndarray) -> np.ndarray:
    """Refuses arrays that are not sound.

    Returns:
        The samples, contiguous, float32 or int16.

    Raises:
        AudioError: The array is not one-dimensional, is empty, or holds other numbers than 16 kHz sound does.
    """
    if samples.ndim != 1:
        raise AudioError(
            f"an audio array of shape {samples.shape}: expected one channel, (n_samples,) at {SAMPLE_RATE} Hz; "
            "mix the channels down first, e.g. audio.mean(axis=1)"
        )
    if samples.size == 0:
        raise AudioError("an audio array of 0 samples: expected at least one")
    if samples.dtype == np.int16:
        return np.ascontiguousarray(samples)
    if samples.dtype not in (np.float32, np.float64):
        raise AudioError(
            f"an audio array of {samples.dtype}: expected float32 or float64 in [-1, 1], or int16; convert it first"
        )
    low, high = samples.min(), samples.max()  # both are NaN if any sample is
    if not (np.isfinite(low) and np.isfinite(high)):
        first = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(f"sample {first} of the audio array is {samples[first]}: expected finite numbers in [-1, 1]")
    if max(-low, high) > LOUDEST:
        raise AudioError(
            f"the audio array reaches {max(-low, high):g}: expected floats in [-1, 1]; divide 16-bit samples by 32768"
        )
    return np.ascontiguousarray(samples, dtype=np.float32)

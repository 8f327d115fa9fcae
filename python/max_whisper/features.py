"""Log-mel features of a recording, window by window, each as if the whole had been computed at once.

A frame of 10 ms hears 25 ms of samples, so a window is computed with two more frames at either end, which are dropped:
what is kept has seen no end that is not one of the recording. Whisper clamps its features 8 decades below the highest
value of the whole recording. The kernel clamps below the highest of what it is given, which is no higher: so one pass
over the recording finds the highest, and every window is clamped once more when it is made. Computing a window takes
a millisecond; keeping those of an hour would take 115 MB, so only as many are kept as are about to be looked at again.
"""

from typing import Protocol

import numpy as np

from max_whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES
from max_whisper.recording import Recording

RANGE = np.float32(2.0)
"""Distance between the highest feature and the lowest: 8 decades, a quarter each."""

SILENCE = np.float32(-1.5)
"""The feature of no sound at all."""

MARGIN = 2
"""Frames dropped at either end of what is computed: more than a frame reaches beyond its own 10 ms."""


class Featurizer(Protocol):
    """What turns samples into features: a model."""

    def log_mel_spectrogram(self, audio: np.ndarray, padding: int = 0) -> np.ndarray:
        """Turns samples and so many zeros after them into features, float32 (n_mels, frames)."""
        ...


class Features:
    """The features of a recording that is followed by silence.

    Args:
        model: Computes them.
        recording: The recording; read once now, and again for every window.
        remembered: Stretches that are kept for the case that they, or their beginnings, are asked for again.

    Attributes:
        frames: Whole frames of 10 ms that the recording fills.
    """

    def __init__(self, model: Featurizer, recording: Recording, *, remembered: int = 0) -> None:
        self._model, self._recording = model, recording
        self._remembered: dict[int, np.ndarray] = {}
        self._most_remembered = remembered
        self.frames = recording.n_samples // HOP_LENGTH
        self._lowest = SILENCE - RANGE
        audible = -(-(recording.n_samples + N_FFT // 2) // HOP_LENGTH)
        highest = SILENCE
        for first in range(0, audible, N_FRAMES):
            highest = max(highest, self.stretch(first, min(N_FRAMES, audible - first)).max())
        self._lowest = highest - RANGE

    def stretch(self, first: int, frames: int) -> np.ndarray:
        """Computes some frames.

        Args:
            first: The first frame.
            frames: How many; behind the recording they are silent.

        Returns:
            (n_mels, frames) float32.
        """
        mel = self._remembered.get(first)
        if mel is None or mel.shape[1] < frames:
            mel = self._compute(first, frames)
            self._remember(first, mel)
        return np.maximum(mel[:, :frames], self._lowest)

    def _compute(self, first: int, frames: int) -> np.ndarray:
        begin = max(0, first - MARGIN)
        wanted = first + frames + MARGIN - begin
        samples = self._recording.read(begin * HOP_LENGTH, (begin + wanted) * HOP_LENGTH)
        mel = self._model.log_mel_spectrogram(samples, wanted * HOP_LENGTH - len(samples))
        return mel[:, first - begin : first - begin + frames]

    def _remember(self, first: int, mel: np.ndarray) -> None:
        self._remembered.pop(first, None)
        self._remembered[first] = mel
        while len(self._remembered) > self._most_remembered:
            del self._remembered[next(iter(self._remembered))]  # the oldest

    @property
    def silence(self) -> float:
        """The feature of no sound in this recording."""
        return float(max(SILENCE, self._lowest))

    def window(self, first: int, frames: int, fill: float = 0.0) -> np.ndarray:
        """Computes some frames and fills the rest of a window of 30 s.

        Args:
            first: The first frame.
            frames: How many.
            fill: The features behind them. openai-whisper's are zeros, a sound of middling loudness; the model was
                trained with `silence`.

        Returns:
            (n_mels, 3000) float32.
        """
        mel = self.stretch(first, frames)
        if frames == N_FRAMES:
            return mel
        window = np.full((len(mel), N_FRAMES), fill, np.float32)
        window[:, :frames] = mel
        return window

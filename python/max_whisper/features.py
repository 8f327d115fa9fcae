"""Log-mel features of a recording, window by window, each as if the whole had been computed at once.

    frames    0           6000         12000      audible
              | page 0     | page 1      | page 2  |  silence ...
                  |--- window ---|                              30 s from anywhere

Pages of a minute are computed, and the last few are kept: windows overlap, and batches look for pauses first. Keeping
those of an hour would take 115 MB. A frame of 10 ms hears 25 ms of samples, so a page is computed with two more frames at
either end, which are dropped: what is kept has seen no end that is not one of the recording. Whisper clamps its features 8
decades below the highest value of the whole recording. The kernel clamps below the highest of what it is given, which is no
higher: so one pass over the recording finds the highest, and every window is clamped once more when it is made.
"""

from typing import Protocol

import numpy as np

from max_whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES
from max_whisper.recording import Recording

RANGE = np.float32(2.0)
"""Distance between the highest feature and the lowest: 8 decades, a quarter each."""

SILENCE = np.float32(-1.5)
"""The feature of no sound at all."""

PAGE = 2 * N_FRAMES
"""Frames that are computed at once: 1.9 MB of 80 features, of 5.8 MB of samples."""

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
        recording: The recording; read once now, and again where pages are no longer kept.
        windows: How many neighbouring windows are looked at by turns.

    Attributes:
        frames: Whole frames of 10 ms that the recording fills.
    """

    def __init__(self, model: Featurizer, recording: Recording, *, windows: int = 1) -> None:
        self._model, self._recording = model, recording
        self._pages: dict[int, np.ndarray] = {}
        # The windows may begin anywhere; one page more, and three minutes are computed once.
        self._most_pages = 2 + -(-windows * N_FRAMES // PAGE)
        self.frames = recording.n_samples // HOP_LENGTH
        self._audible = -(-(recording.n_samples + N_FFT // 2) // HOP_LENGTH)
        self._n_mels = len(self._page(0))
        highest = SILENCE
        for number in range(-(-self._audible // PAGE)):
            highest = max(highest, self._page(number).max())
        self._lowest = highest - RANGE

    def stretch(self, first: int, frames: int) -> np.ndarray:
        """Gives some frames.

        Args:
            first: The first frame.
            frames: How many; behind the recording they are silent.

        Returns:
            (n_mels, frames) float32.
        """
        stretch = np.full((self._n_mels, frames), self.silence, np.float32)
        at, end = first, min(first + frames, self._audible)
        while at < end:
            number = at // PAGE
            part = self._page(number)[:, at - number * PAGE : end - number * PAGE]
            np.maximum(part, self._lowest, out=stretch[:, at - first : at - first + part.shape[1]])
            at += part.shape[1]
        return stretch

    def _page(self, number: int) -> np.ndarray:
        """A page, up to the last frame that hears the recording."""
        page = self._pages.pop(number, None)
        if page is None:
            first = number * PAGE
            page = self._compute(first, min(PAGE, self._audible - first))
        self._pages[number] = page
        if len(self._pages) > self._most_pages:
            del self._pages[next(iter(self._pages))]  # the one asked for longest ago
        return page

    def _compute(self, first: int, frames: int) -> np.ndarray:
        begin = max(0, first - MARGIN)
        wanted = first + frames + MARGIN - begin
        samples = self._recording.read(begin * HOP_LENGTH, (begin + wanted) * HOP_LENGTH)
        mel = self._model.log_mel_spectrogram(samples, wanted * HOP_LENGTH - len(samples))
        return mel[:, first - begin : first - begin + frames]

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

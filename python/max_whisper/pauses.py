r"""Where to cut a recording into windows that can be transcribed independently: at pauses.

Loudness is the mean of a frame's log-mel features: every band counts alike, so that neither a hum nor the pitch of a voice
decides. Between the quietest and the loudest of a window's 30 s, a pause is a stretch of a fifth of a second or more in
the lowest fifth:

    loudness  |   __      ___  _         __   __
              |  /  |    /   || |_      /  |_/  |
     +20 %  --|-/----\--/------- \-----/---------\----   <- below this: a pause
              |/      \/          \___/           \__
              +----------------------------------------> time
                                    ^ cut: in the longest pause of the window's second half, late rather than early

A longer pause is a safer cut, and a later one saves windows, which all cost the same: a pause counts its length, up to a
second, and 30 ms for every second that the cut comes later. Where nobody pauses, the cut is at the quietest spot of the
window's last third.
"""

import numpy as np

from max_whisper.audio import FRAMES_PER_SECOND, N_FRAMES

QUIET = 0.2
"""Part of the range of loudness in which a pause lies."""

SHORTEST = FRAMES_PER_SECOND // 5
"""Frames that a pause lasts at least."""

LONG_ENOUGH = FRAMES_PER_SECOND
"""Frames beyond which a longer pause is no better."""

LATER = 0.03
"""What a second later is worth, in seconds of pause."""

LEAD = FRAMES_PER_SECOND // 4
"""Frames of a pause that are left to the window behind it."""


def find_cut(mel: np.ndarray) -> int:
    """Finds where a window should end that the recording does not end for it.

    Args:
        mel: The features of its 30 s, (n_mels, 3000).

    Returns:
        The first frame that belongs to the next window: between the middle and the end of these.
    """
    loudness = mel.mean(axis=0)
    low, high = np.percentile(loudness, (2, 98))
    begins, ends = _runs(loudness <= low + QUIET * (high - low))
    cuts = np.maximum((begins + ends) // 2, ends - LEAD)
    lengths = ends - begins
    good = (lengths >= SHORTEST) & (cuts >= N_FRAMES // 2)
    if good.any():
        worth = np.minimum(lengths, LONG_ENOUGH) + LATER * cuts
        return int(cuts[good][worth[good].argmax()])
    smooth = np.convolve(loudness, np.full(SHORTEST, 1 / SHORTEST), mode="same")
    late = 2 * N_FRAMES // 3
    return late + int(smooth[late : N_FRAMES - SHORTEST].argmin())


def quietest(mel: np.ndarray) -> int:
    """Finds the quietest tenth of a second among some frames.

    Args:
        mel: Their features, (n_mels, frames).

    Returns:
        The frame in the middle of it.
    """
    width = min(FRAMES_PER_SECOND // 10, mel.shape[1])
    return int(np.convolve(mel.mean(axis=0), np.ones(width), mode="valid").argmin()) + width // 2


def _runs(quiet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First frames of stretches that are quiet, and the frames behind them."""
    edges = np.diff(quiet.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)

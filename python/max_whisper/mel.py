"""The mel filters: triangles that gather a spectrum's 201 bins into bands as the ear does (Slaney's Auditory Toolbox).

    mel(f) = f * 3 / 200                            below 1000 Hz
             15 + 27 * log(f / 1000) / log(6.4)     above

n_mels + 2 frequencies, evenly spaced in mels from 0 to 8000 Hz, are the corners; filter m rises from corner m to m + 1,
falls to m + 2, and has the area 1 over the frequency in Hz.
"""

import numpy as np

from max_whisper.audio import N_FFT, SAMPLE_RATE


def _frequencies(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


def mel_filters(n_mels: int) -> np.ndarray:
    """Weights of each bin in each filter.

    Args:
        n_mels: Number of filters; Whisper has 80, from large-v3 on 128.

    Returns:
        (n_mels, 201) float64; bin k is the frequency k * 40 Hz.
    """
    nyquist = SAMPLE_RATE / 2
    top = 15 + 27 * np.log(nyquist / 1000) / np.log(6.4)
    corners = _frequencies(np.linspace(0, top, n_mels + 2))
    bins = np.linspace(0, nyquist, N_FFT // 2 + 1)
    slopes = (bins - corners[:, None]) / np.diff(corners, append=np.inf)[:, None]
    triangles = np.maximum(0, np.minimum(slopes[:-2], 1 - slopes[1:-1]))
    return triangles * (2 / (corners[2:] - corners[:-2]))[:, None]

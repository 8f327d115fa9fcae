"""Float64 references of ops whose weights lie differently on a GPU: (N, K) as they are."""

import numpy as np

from tests.kernels.references import gelu as apply_gelu


def linear(x, weight, bias, residual=None, *, gelu: bool = False):
    y = x @ weight.T + bias
    if gelu:
        y = apply_gelu(y)
    return y if residual is None else y + residual


def conv1d(x, weight, bias, positions=None, *, stride: int):
    """Three taps, zeros beyond both ends, GELU, positions."""
    channels = x.shape[2]
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    taps = [padded[:, j : padded.shape[1] - 2 + j : stride] for j in range(3)]
    w = weight.reshape(len(bias), 3, channels)
    y = apply_gelu(sum(tap @ w[:, j].T for j, tap in enumerate(taps)) + bias)
    return y if positions is None else y + positions

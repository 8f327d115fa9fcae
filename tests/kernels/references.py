"""Float64 references: each op's definition in the plainest NumPy, on unpacked weights."""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU in its erf form."""
    return 0.5 * x * (1 + erf(x / math.sqrt(2))) if x.size else x


def unpack_linear(packed: np.ndarray, columns: int) -> np.ndarray:
    """(panels, K, 16) -> (N, K)."""
    return packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:columns]


def linear(x, weight, bias, residual=None, *, gelu: bool = False):
    y = x @ unpack_linear(weight, len(bias)).T + bias
    if gelu:
        y = globals()["gelu"](y)
    return y if residual is None else y + residual

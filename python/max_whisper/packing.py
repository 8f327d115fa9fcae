"""Weights as the kernels read them. Everything is laid out here, once, on the host: the graphs take packed weights.

A matrix (N, K) becomes panels of 16 output columns, each K rows of 16 consecutive values:

    packed[p, k, j] = w[16 * p + j, k]      shape (ceil(N / 16), K, 16), zeros behind the last column
"""

import numpy as np

PANEL = 16
"""Columns of a panel; the same number as PANEL in kernels/cpu/tile.mojo."""


def packed_shape(columns: int, depth: int) -> tuple[int, int, int]:
    """Shape of a packed (columns, depth) matrix."""
    return -(-columns // PANEL), depth, PANEL


def pack_linear(weight: np.ndarray, dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
    """Packs the weight of a linear layer.

    Args:
        weight: (N, K), as checkpoints store it.
        dtype: Element type of the result.

    Returns:
        (ceil(N / 16), K, 16), C-contiguous.
    """
    columns, depth = weight.shape
    packed = np.zeros(packed_shape(columns, depth), dtype)
    whole = columns // PANEL
    packed[:whole] = weight[: whole * PANEL].reshape(whole, PANEL, depth).transpose(0, 2, 1)
    if whole < len(packed):
        packed[whole, :, : columns - whole * PANEL] = weight[whole * PANEL :].T
    return packed


def pack_conv1d(weight: np.ndarray, dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
    """Packs the weight of a convolution as the matrix whose row j * C + c holds tap j of channel c.

    Args:
        weight: (N, C, 3), as checkpoints store it.
        dtype: Element type of the result.

    Returns:
        (ceil(N / 16), 3 * C, 16), C-contiguous.
    """
    return pack_linear(weight.transpose(0, 2, 1).reshape(len(weight), -1), dtype)


def pack_filters(filters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packs a bank of filters, each of which weighs a few neighbouring bins.

    Args:
        filters: (n, bins); the weights of a row that are not zero lie side by side.

    Returns:
        runs (n, 2) int32, first bin and number of bins of each filter, and weights (total number of bins) float32,
        the runs one after another.
    """
    runs = np.zeros((len(filters), 2), np.int32)
    for run, row in zip(runs, filters, strict=True):
        if (used := np.flatnonzero(row)).size:
            run[:] = used[0], used[-1] + 1 - used[0]
    weights = [row[first : first + count] for row, (first, count) in zip(filters, runs, strict=True)]
    return runs, np.concatenate(weights, dtype=np.float32)

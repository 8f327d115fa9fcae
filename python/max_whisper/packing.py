"""Weights as the kernels read them. Everything is laid out here, once, on the host: the graphs take packed weights.

A matrix (N, K) becomes panels of 16 output columns. A row of a panel is one cache line: 16 columns of G neighbouring k,
with G = 1 in float32, 2 in bfloat16, 4 in int8:

    packed[p, k // G, j * G + k % G] = w[16 * p + j, k]      shape (ceil(N / 16), ceil(K / G), 16 * G), zeros as padding

In int8 a column is rounded to 127 steps on either side of 0. The scales of a panel's columns, float32, are one more row in
front of it: w[n, k] = scale[n] * int8[n, k].

NumPy has no bfloat16: such arrays hold its 16 bits as uint16, here and wherever arrays become buffers.
"""

import numpy as np

PANEL = 16
"""Columns of a panel; the same number as PANEL in kernels/cpu/tile.mojo."""

GROUPS = {"float32": 1, "bfloat16": 2, "int8": 4}
"""Values of k that lie together, by the dtype of the weights."""

STEPS = 127
"""Largest magnitude of a weight in int8."""


def packed_shape(columns: int, depth: int, dtype: str = "float32") -> tuple[int, int, int]:
    """Shape of a packed (columns, depth) matrix."""
    group = GROUPS[dtype]
    return -(-columns // PANEL), -(-depth // group) + (dtype == "int8"), PANEL * group


def pack_linear(weight: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Packs the weight of a linear layer.

    Args:
        weight: (N, K), as checkpoints store it, finite.
        dtype: "float32", "bfloat16" or "int8".

    Returns:
        Panels of `packed_shape(N, K, dtype)`, C-contiguous: float32, uint16 (the bits of bfloat16) or int8.
    """
    (columns, depth), group = weight.shape, GROUPS[dtype]
    panels = -(-columns // PANEL)
    values = np.zeros((panels * PANEL, -(-depth // group) * group), np.float32)
    values[:columns, :depth] = weight
    if dtype == "int8":
        scales = np.abs(values).max(axis=1) / np.float32(STEPS)
        values = np.rint(values / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
    elif dtype == "bfloat16":
        values = to_bfloat16(values)
    rows = values.reshape(panels, PANEL, -1, group).swapaxes(1, 2).reshape(panels, -1, PANEL * group)
    if dtype == "int8":
        rows = np.concatenate([scales.reshape(panels, 1, PANEL).view(np.int8), rows], axis=1)
    return np.ascontiguousarray(rows)


def pack_conv1d(weight: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Packs the weight of a convolution as the matrix whose column j * C + c holds tap j of channel c.

    Args:
        weight: (N, C, 3), as checkpoints store it.
        dtype: As for `pack_linear`.

    Returns:
        Panels of `packed_shape(N, 3 * C, dtype)`, C-contiguous.
    """
    return pack_linear(weight.transpose(0, 2, 1).reshape(len(weight), -1), dtype)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounds finite float32 numbers to the nearest bfloat16, ties to even; returns its bits as uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


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

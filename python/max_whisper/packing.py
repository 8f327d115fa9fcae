"""Weights as the kernels read them. Everything is laid out here, once, on the host: the graphs take packed weights.

A GPU reads a matrix (N, K) row by row, in the dtype that it computes in. For a CPU it becomes panels of 16 output columns.
A row of a panel is 16 columns of G neighbouring k, with G = 1 in float32 and float16, 2 in bfloat16, 4 in int8:

    packed[p, k // G, j * G + k % G] = w[16 * p + j, k]      shape (ceil(N / 16), ceil(K / G), 16 * G), zeros as padding

In int8 a column is rounded to 127 steps on either side of 0. The scales of a panel's columns, float32, are one more row in
front of it: w[n, k] = scale[n] * int8[n, k].

NumPy has no bfloat16: such arrays hold its 16 bits as uint16, here and wherever arrays become buffers.
"""

from typing import Any

import numpy as np

from max_whisper.config import HEAD_DIM

PANEL = 16
"""Columns of a panel; the same number as PANEL in kernels/cpu/tile.mojo."""

GROUPS = {"float32": 1, "float16": 1, "bfloat16": 2, "int8": 4}
"""Values of k that lie together, by the dtype of the weights."""

STEPS = 127
"""Largest magnitude of a weight in int8."""


def packed_shape(columns: int, depth: int, dtype: str = "float32", device: str = "cpu") -> tuple[int, ...]:
    """Shape of a packed (columns, depth) matrix."""
    if device == "gpu":
        return columns, depth
    group = GROUPS[dtype]
    return -(-columns // PANEL), -(-depth // group) + (dtype == "int8"), PANEL * group


def pack_linear(weight: np.ndarray, dtype: str = "float32", device: str = "cpu") -> np.ndarray:
    """Packs the weight of a linear layer.

    Args:
        weight: (N, K), as checkpoints store it, finite.
        dtype: "float32", "float16", "bfloat16" or, on a CPU, "int8".
        device: "cpu" or "gpu", which reads it.

    Returns:
        An array of `packed_shape(N, K, dtype, device)`, C-contiguous; of uint16 (the bits) for bfloat16.
    """
    if device == "gpu":
        return cast(weight, dtype)
    (columns, depth), group = weight.shape, GROUPS[dtype]
    panels = -(-columns // PANEL)
    values = np.zeros((panels * PANEL, -(-depth // group) * group), np.float32)
    values[:columns, :depth] = weight
    header = []
    if dtype == "int8":
        scales = np.abs(values).max(axis=1) / np.float32(STEPS)
        values = np.rint(values / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
        header = [scales.reshape(panels, 1, PANEL).view(np.int8)]
    else:
        values = cast(values, dtype)
    rows = values.reshape(panels, PANEL, -1, group).swapaxes(1, 2).reshape(panels, -1, PANEL * group)
    return np.ascontiguousarray(np.concatenate([*header, rows], axis=1))


def fold_norm(
    weight: np.ndarray, bias: np.ndarray, gamma: np.ndarray, beta: np.ndarray, dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts what a layer norm ends with into the linear layer behind it, for a GPU (`ops.norm_linear`).

    (z gamma + beta) W^T + b  =  z (W gamma)^T + (b + W beta)     for z, a row without its mean, over its deviation

    Args:
        weight: (N, K), as checkpoints store it.
        bias: (N).
        gamma: (K), scale of the norm.
        beta: (K), shift of the norm.
        dtype: As for `pack_linear`.

    Returns:
        weight (N, K) and bias (N), rounded to the dtype, and the sums (N) float32 of the weight's rows as rounded.
    """
    exact = np.asarray(weight, np.float64)
    folded = cast((exact * gamma).astype(np.float32), dtype)
    shifted = cast((bias + exact @ np.asarray(beta, np.float64)).astype(np.float32), dtype)
    return folded, shifted, widen(folded).sum(axis=1, dtype=np.float64).astype(np.float32)


def pack_conv1d(weight: np.ndarray, dtype: str = "float32", device: str = "cpu") -> np.ndarray:
    """Packs the weight of a convolution as the matrix whose column j * C + c holds tap j of channel c.

    Args:
        weight: (N, C, 3), as checkpoints store it.
        dtype: As for `pack_linear`.
        device: As for `pack_linear`.

    Returns:
        An array of `packed_shape(N, 3 * C, dtype, device)`, C-contiguous.
    """
    return pack_linear(weight.transpose(0, 2, 1).reshape(len(weight), -1), dtype, device)


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds numbers to a dtype, in a C-contiguous array; bfloat16 as uint16."""
    if dtype == "bfloat16":
        return to_bfloat16(np.ascontiguousarray(values, np.float32))
    return np.ascontiguousarray(values, dtype)


def widen(values: np.ndarray) -> np.ndarray:
    """Float32 numbers of those that `cast` rounded."""
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values.astype(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounds finite float32 numbers to the nearest bfloat16, ties to even; returns its bits as uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def keys_shape(batch: Any, heads: Any, length: Any, device: str = "cpu") -> list[Any]:
    """Shape of keys, from integers or a graph's dimensions: in panels of 16 on a CPU, (B, H, S, 64) as values on a GPU."""
    if device == "gpu":
        return [batch, heads, length, HEAD_DIM]
    return [batch, heads, (length + PANEL - 1) // PANEL, HEAD_DIM, PANEL]


def pairs_shapes(batch: Any, heads: Any, length: Any, terms: int = 1) -> tuple[list[Any], list[Any]]:
    """Shapes of keys and values of bfloat16 on a CPU: of pairs, see `kernels/attention/pairs.mojo`; arguments as above.

    `terms` is how many bfloat16 numbers stand for one: 1, or 2 for float32's results.
    """
    pairs = (length + 2 * PANEL - 1) // (2 * PANEL) * PANEL
    return (
        [batch, heads, (length + PANEL - 1) // PANEL, terms * HEAD_DIM // 2, 2 * PANEL],
        [batch, heads, HEAD_DIM // PANEL, terms * pairs, 2 * PANEL],
    )


def integers_shapes(batch: Any, heads: Any, length: Any) -> tuple[list[Any], list[Any]]:
    """Shapes of keys and values of int16 on a CPU, see `kernels/attention/integers.mojo`; arguments as above."""
    rows = 1 + HEAD_DIM // 2
    groups = (length + HEAD_DIM - 1) // HEAD_DIM
    return (
        [batch, heads, (length + PANEL - 1) // PANEL, rows, 2 * PANEL],
        [batch, heads, HEAD_DIM // PANEL * groups, rows, 2 * PANEL],
    )


def bytes_shapes(batch: Any, heads: Any, length: Any) -> tuple[list[Any], list[Any]]:
    """Shapes of keys and values of bytes on a CPU, see `kernels/attention/bytes.mojo`; arguments as above."""
    return (
        [batch, heads, (length + PANEL - 1) // PANEL, 1 + PANEL, HEAD_DIM],
        [batch, heads, (length + HEAD_DIM - 1) // HEAD_DIM, 4 + HEAD_DIM, HEAD_DIM],
    )


def pack_filters(filters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packs a bank of filters, each of which weighs a few neighbouring bins.

    Args:
        filters: (n, bins); the weights of a row that are not zero lie side by side.

    Returns:
        runs (n, 2) int16, first bin and number of bins of each filter, and weights (total number of bins) float32,
        the runs one after another.
    """
    runs = np.zeros((len(filters), 2), np.int16)
    for run, row in zip(runs, filters, strict=True):
        if (used := np.flatnonzero(row)).size:
            run[:] = used[0], used[-1] + 1 - used[0]
    weights = [row[first : first + count] for row, (first, count) in zip(filters, runs, strict=True)]
    return runs, np.concatenate(weights, dtype=np.float32)

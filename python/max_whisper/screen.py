"""The vocabulary in four bits: what a CPU reads of it to know which few rows have to be read in full.

A decoding step asks which row e[v] of the vocabulary (V, D) has the largest product with a state h. A rough copy gives all
logits within a bound, and only rows whose bound reaches up to the best one's can win: `kernels/greedy/screen.mojo`. The
rougher the copy, the less is read of it and the more rows remain, so it is made with care:

    e[v] h = m h + (e[v] - m) R^-1 (R h)          m: the mean row, which would need most of the bits
    R = diag(c) Q^T                               the columns of Q are the principal axes of the rows around m

Columns of (e - m) R^-1 come in the order of their spread. 64 neighbours of a row make a group, n * scale with n = -8 ... 7,
which suits them well, as they are alike. c is the root of the spread: it shares each column's spread evenly with R h, whose
norm is part of the bound. m and R are rounded to float16 before anything is computed with them.

For tiny, 4.4 bits a number leave 7 of 51,864 rows in a median step, where the bits and bounds of the rows as they are would
leave nearly all.
"""

import numpy as np

from max_whisper.packing import PANEL, pack_linear

GROUP = 64
"""Columns that share a scale; the same number as GROUP in kernels/greedy/screen.mojo."""

_NARROWEST = 1e-3
"""Least spread of a column, as a part of the widest one's: vocabularies of few tokens have columns without any."""

_NIBBLES = [0, 2, 1, 3, 4, 6, 5, 7]
"""The order of 8 neighbours in 4 bytes: bits 0 to 15 hold every other one from the first on, bits 16 to 31 the others."""

_BATCH = 256 * PANEL
"""Rows that are rounded at once, so that no large vocabulary is in memory in float64."""


def groups(depth: int) -> int:
    """Groups of a row."""
    return -(-depth // GROUP)


def rotation_shape(depth: int) -> tuple[int, ...]:
    """Shape of R and m, packed."""
    return groups(depth) * GROUP // PANEL + 1, depth, PANEL


def screen_shape(tokens: int, depth: int) -> tuple[int, ...]:
    """Shape of a vocabulary's screen: for 16 tokens, rows of 64 bytes."""
    count = groups(depth)
    return -(-tokens // PANEL), 2 + -(-count // 2) + GROUP // 8 * count, 4 * PANEL


def pack_rotation(vocabulary: np.ndarray) -> np.ndarray:
    """Finds R and m for a vocabulary.

    Args:
        vocabulary: (V, D), finite.

    Returns:
        R, filled up to whole groups, then m, packed as a linear layer of float16, `rotation_shape(D)`.
    """
    mean, rotation = _frame(vocabulary)
    depth = len(mean)
    rows = np.zeros((groups(depth) * GROUP + 1, depth), np.float16)
    rows[:depth], rows[-1] = rotation, mean
    return pack_linear(rows, "float16")


def pack_screen(vocabulary: np.ndarray) -> np.ndarray:
    """Rounds a vocabulary to four bits.

    Args:
        vocabulary: (V, D), finite.

    Returns:
        `screen_shape(V, D)` int8. 16 tokens are a panel of rows of 64 bytes: the norms of their rounding errors and the
        norms of what they are rounded to, 16 float32 each; the groups' scales, 16 float16 each; the groups, eight rows
        each, of which a row holds 8 neighbouring columns of the 16 tokens in 4 bytes each.
    """
    tokens, depth = vocabulary.shape
    mean, rotation = (part.astype(np.float64) for part in _frame(vocabulary))
    inverse = np.linalg.inv(rotation)
    shape = screen_shape(tokens, depth)
    panels = np.zeros(shape, np.int8)
    for first in range(0, tokens, _BATCH):
        rows = ((vocabulary[first : first + _BATCH].astype(np.float64) - mean) @ inverse).astype(np.float32)
        place = slice(first // PANEL, -(-(first + len(rows)) // PANEL))
        panels[place] = _pack(rows, panels[place].shape)
    return panels


def _frame(vocabulary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean row (D,) and R (D, D), float16."""
    mean = vocabulary.mean(axis=0, dtype=np.float32).astype(np.float16)
    centred = vocabulary.astype(np.float32) - mean
    spread, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    spread = np.sqrt(np.maximum(spread[::-1], 0))
    shares = np.sqrt(np.maximum(spread / (spread[0] or 1), _NARROWEST))
    return mean, (axes[:, ::-1] * shares).T.astype(np.float16)


def _pack(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rounds rows in the columns of R and lays them out, see `pack_screen`."""
    count, depth = rows.shape
    padded = np.zeros((shape[0] * PANEL, -(-depth // GROUP) * GROUP), np.float32)
    padded[:count, :depth] = rows
    wanted = padded.reshape(len(padded), -1, GROUP)
    numbers, scales = _round(wanted)
    rounded = numbers * scales

    def norm(x: np.ndarray) -> np.ndarray:
        return np.sqrt((x * x).sum(axis=(1, 2))).reshape(-1, 1, PANEL).view(np.int8)

    halves = np.zeros((shape[0], -(-numbers.shape[1] // 2) * 2, PANEL), np.float16)
    halves[:, : numbers.shape[1]] = scales.reshape(shape[0], PANEL, -1).swapaxes(1, 2)
    nibbles = (numbers.astype(np.int32) & 15).astype(np.uint32).reshape(shape[0], PANEL, -1, 8)[..., _NIBBLES]
    places = np.arange(4, dtype=np.uint32) * 4
    low, high = (np.bitwise_or.reduce(nibbles[..., half::2] << places, axis=-1) for half in (0, 1))
    words = np.ascontiguousarray((low | high << 16).swapaxes(1, 2))
    return np.concatenate(
        [
            norm(wanted - rounded),
            norm(rounded),
            halves.reshape(shape[0], -1, 2 * PANEL).view(np.int8),
            words.view(np.int8),
        ],
        axis=1,
    )


def _round(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers -8 ... 7 and float16 scales, (rows, groups, GROUP) and (rows, groups, 1): what is largest becomes -8."""
    largest = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=-1)[..., None], axis=-1)
    scales = (largest / -8).astype(np.float16).astype(np.float32)
    return np.clip(np.rint(wanted / np.where(scales != 0, scales, 1)), -8, 7), scales

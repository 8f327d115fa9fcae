"""What a launch of each kernel of ours moves and multiplies, as the kernels' headers say: closed formulas for any shape.

For numbers of 2 bytes. `tests/gpu/test_bench.py` holds them against what the phantom GPU counts.
"""

from dataclasses import dataclass
from math import ceil

HEAD = 64
ELEMENT = 2
MULTIPROCESSORS = 108
"""Of the phantom, an A100: `kernels/gpu/matmul.mojo` has other tiles where they are no more than multiprocessors."""


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        kernel: The kernel's name in these tables.
        blocks: Blocks of threads.
        moved: Bytes that multiprocessors ask for, rereads included.
        least: Bytes that must come from memory or go there.
        mma: Tensor-core instructions.
    """

    kernel: str
    blocks: int
    moved: float
    least: float
    mma: int = 0

    @property
    def units(self) -> float:
        """What the number of instructions grows with: tensor-core instructions, or else bytes."""
        return self.mma or self.moved


def linear(rows: int, columns: int, depth: int, *, residual: bool = False, norm: bool = False) -> list[Launch]:
    """rows x depth -> columns, with a residual, or of normalised rows."""
    if rows > 16 and norm:
        return layer_norm(rows, depth) + linear(rows, columns, depth, residual=residual)
    ends = columns * (1 + 2 * norm) + rows * columns * (1 + residual)  # a norm has sums of 4 bytes
    every = rows * depth  # what every block reads
    least = ELEMENT * (columns * depth + every + ends)
    if rows <= 16:
        blocks = ceil(columns / 16)
        moved = ELEMENT * (columns * depth + blocks * every + ends)
        mma = blocks * ceil(depth / 32) * 2 * (2 if rows > 8 else 1)
        return [Launch("linear, few rows", blocks, moved, least, mma)]
    return [_tiles("linear, many rows", 1, rows, columns, depth, residual, least)]


def conv1d(batch: int, length: int, channels: int, columns: int, *, stride: int, positions: bool) -> list[Launch]:
    """(batch, length, channels) -> (batch, length / stride, columns)."""
    rows = length // stride
    outputs = batch * rows * columns + positions * rows * columns
    least = ELEMENT * (batch * length * channels + 3 * channels * columns + columns + outputs)
    return [_tiles("convolution", batch, rows, columns, 3 * channels, positions, least)]


def _tiles(kernel: str, batch: int, rows: int, columns: int, depth: int, residual: bool, least: float) -> Launch:
    few = batch * ceil(columns / 64) * ceil(rows / 96) <= MULTIPROCESSORS
    tile = 96 if few else 128
    across, down = ceil(columns / 64), ceil(rows / tile)
    ends = rows * columns * (1 + residual) + down * columns
    moved = ELEMENT * batch * (rows * depth * across + columns * depth * down + ends)
    mma = batch * across * 8 * down * tile // 16 * ceil(depth / 64) * 4
    return Launch(kernel, batch * across * down, moved, least, mma)


def layer_norm(rows: int, columns: int, *, add: bool = False) -> list[Launch]:
    """rows x columns, alone or with a residual."""
    data, blocks = 2 * (1 + add) * rows * columns, ceil(rows / 16)
    moved, least = (ELEMENT * (data + 2 * columns * times) for times in (blocks, 1))
    return [Launch("layer norm", blocks, moved, least)]


def self_attention(batch: int, heads: int, length: int, *, keys: int | None = None) -> list[Launch]:
    """Of `length` queries over as many keys, or over `keys`."""
    keys = length if keys is None else keys
    blocks, steps = ceil(length / 96), ceil(keys / 64)
    moved, least = (ELEMENT * batch * heads * HEAD * 2 * (length + keys * times) for times in (blocks, 1))
    return [Launch("attention", batch * heads * blocks, moved, least, batch * heads * blocks * 6 * steps * 64)]


def pack_heads(batch: int, heads: int, length: int) -> list[Launch]:
    """Keys and values of cross-attention."""
    elements = batch * heads * length * HEAD
    return [Launch("keys and values", ceil(elements / 2048), 4 * ELEMENT * elements, 4 * ELEMENT * elements)]


def cached_attention(batch: int, heads: int, past: int) -> list[Launch]:
    """Of one query over the text so far."""
    moved = batch * heads * (ELEMENT * HEAD * (2 * past + 6) + 32)
    return [Launch("attention, one query", batch * heads, moved, moved)]


def cross_attention(batch: int, heads: int, keys: int) -> list[Launch]:
    """Of one query over the audio: blocks of 256 keys, whose 8 warps read the query each, and their combination."""
    splits, matrices = ceil(keys / 256), batch * heads
    data, parts = ELEMENT * HEAD * 2 * keys, splits * 4 * (HEAD + 2)
    moved = matrices * (data + splits * 8 * ELEMENT * HEAD + parts)
    combined = matrices * (splits * 4 * HEAD + splits * 2 * 32 + ELEMENT * HEAD)
    return [
        Launch("attention, one query", matrices * splits, moved, matrices * data),
        Launch("combination", matrices, combined, combined),
    ]


def embed(tokens: int, columns: int) -> list[Launch]:
    """Token and position."""
    data = 3 * tokens * columns * ELEMENT
    return [Launch("embedding", ceil(tokens * columns / 1024), data * 1.05, data)]


def greedy(rows: int, columns: int, vocabulary: int) -> list[Launch]:
    """Logits and pick, `rows` at most 16: the vocabulary and the mask once, the states once a block."""
    blocks = ceil(vocabulary / 256)
    read = ELEMENT * vocabulary * columns
    moved = read + vocabulary + blocks * rows * (ELEMENT * columns + 2 * 32 + 2 * 32)
    mma = ceil(vocabulary / 256) * 16 * ceil(columns / 32) * 2 * (2 if rows > 8 else 1)
    return [
        Launch("vocabulary", blocks, moved, read + vocabulary, mma),
        Launch("pick", rows, rows * (64 * blocks + 96), rows * 64 * blocks),
    ]


def log_mel(batch: int, frames: int, mels: int, *, again: float = 0) -> list[Launch]:
    """Samples in float32 to features in float32: made, then clamped.

    Args:
        batch: Recordings.
        frames: Of each.
        mels: Bands.
        again: Which part of the features is looked at again and written, because it is clamped.
    """
    blocks, features = ceil(frames / 32), 4 * mels * frames
    moved = 4 * (160 * frames + 240 * blocks) + features + (1888 + 64) * blocks
    clamping = min(ceil(blocks / 4), 32)
    looks = 32 * blocks + clamping * 4 * blocks + 2 * again * features
    return [
        Launch("log-mel", batch * blocks, batch * moved, batch * (4 * 160 * frames + features)),
        Launch("clamping", batch * clamping, batch * looks, batch * 2 * again * features),
    ]

"""The second kernel of the log-mel spectrogram: clamps what the first one wrote, where that is too low; see `spectrogram.mojo`.

A team of 32 threads looks after an eighth of the mels of 32 frames. Five rows of it are in flight at a time.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, grid_dim, thread_idx
from std.collections import Array
from std.math import ceildiv
from std.utils import StaticTuple

from ...data import Data
from ...gpu.memory import shared_memory
from ...gpu.reduce import block_max
from ..cpu import RANGE, SILENCE
from .slots import FRAMES
from .spectrogram import PARTS, UNHEARD

comptime CLAMP_THREADS = 1024
"""Threads of a block of the second kernel: a team for each part of 4 blocks of the first."""

comptime CLAMP_TEAMS = CLAMP_THREADS // FRAMES

comptime CLAMP_BLOCKS = 32
"""Most blocks of it for a recording: each reads the highest values of all."""

comptime CLAMP_AT_ONCE = 5
"""Mels that a team of it has in flight."""


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(CLAMP_THREADS)))
def clamp_kernel[
    dtype: DType
](
    output: Data[dtype],
    highest: Data[DType.float32],
    lowest: Data[DType.float32],
    frames: Int64,
    mels: Int32,
    blocks: Int32,
):
    """Clamps one recording's result 8 decades below its highest value, where it is lower.

    Parameters:
        dtype: Of the result.

    Args:
        output: (B, mels, frames).
        highest: (B, blocks).
        lowest: (B, blocks, 8).
        frames: Of a recording.
        mels: Filters.
        blocks: Blocks of the first kernel.
    """
    var lows = shared_memory[DType.float32, CLAMP_TEAMS]()
    var thread = Int(thread_idx.x)
    var team = thread // FRAMES
    var recording = Int(block_idx.y)
    var top = SILENCE
    for i in range(thread, Int(blocks), CLAMP_THREADS):
        top = max(top, highest[unsafe_offset=recording * Int(blocks) + i])
    var clamp = block_max[CLAMP_THREADS](top) - RANGE
    var rounded = clamp.cast[dtype]()
    var silence = max(SILENCE, clamp).cast[dtype]()
    var parts = Int(blocks) * PARTS
    var size = ceildiv(Int(mels), PARTS)
    for begin in range(Int(block_idx.x) * CLAMP_TEAMS, parts, Int(grid_dim.x) * CLAMP_TEAMS):
        if thread < CLAMP_TEAMS:
            var low = Float32.MAX_FINITE
            if begin + thread < parts:
                low = lowest[unsafe_offset=recording * parts + begin + thread]
            lows.unsafe_store(thread, low)
        barrier()
        var low = lows.unsafe_load(team)
        var frame = (begin + team) // PARTS * FRAMES + thread % FRAMES
        if low < clamp and frame < Int(frames):
            var place = output.unsafe_offset(recording * Int(mels) * Int(frames) + frame)
            var end = min(((begin + team) % PARTS + 1) * size, Int(mels))
            for m in range((begin + team) % PARTS * size, end, CLAMP_AT_ONCE):
                var values = Array[Scalar[dtype], CLAMP_AT_ONCE](fill=silence)
                if low != UNHEARD:
                    comptime for i in range(CLAMP_AT_ONCE):
                        if m + i < end:
                            values[i] = place[unsafe_offset=(m + i) * Int(frames)]
                comptime for i in range(CLAMP_AT_ONCE):
                    if m + i < end and (low == UNHEARD or values[i] < rounded):
                        place[unsafe_offset=(m + i) * Int(frames)] = max(values[i], rounded)
        barrier()

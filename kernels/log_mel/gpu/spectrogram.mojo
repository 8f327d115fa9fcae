"""Log-mel spectrogram on a GPU; equations and shapes as in `../cpu.mojo`, the DFT as in `../dft.mojo`.

A block makes 32 neighbouring frames, of which nothing but the result leaves the chip:

      samples                    x in shared memory: 400 slots of 32 frames                   y
    |--- 5360 --|    window,    +----------------+ columns: DFTs of 16  +---------------+    +------+
      read once ------------->  | slot of sample | rows:    DFTs of 25  | slot of bin k | -> | mel m|  32 frames:
                                |   x  frame     | ------------------>  |   x  frame    |    |      |  4 sectors
                                +----------------+ powers, in place     +---------------+    +------+

1.  A team of 32 threads takes 16 neighbouring samples of half of the hops, two hops at a time that are 16 apart: sample j of hop
    q is sample j of frame q, j + 160 of frame q - 1 and j + 320 of frame q - 2, so that a thread needs three values of the
    window, which stay in registers.
2.  A team takes a column of the 16 x 25 DFT (25 columns), then a row (one real pair, 7 complex), one frame per thread. The
    powers of a row replace it.
3.  A team takes a mel; its weights, and where the powers of its bins are, come from tables in shared memory.
4.  The highest value of the block goes to memory, and the lowest of each eighth of its mels. A second kernel finds the highest
    of all, and looks again only at those eighths that hold something below its clamp; of these it writes only what changes.

A block that hears nothing but padding writes nothing; the second kernel fills it.

No two threads of a team ever meet in a bank: `slots.mojo` says why.

Cost per frame: 7300 operations, as on a CPU. Bytes: samples once, and 240 more per block (3 % of samples and features), y
written once, tables (1.9 KB with 80 mels) once per block (6 %), the extremes (0.7 %): 1.10 times the least if nothing is to be
clamped. What is to be clamped cannot be known before the last sample is heard, nor do the features stay on the chip till then:
such an eighth is read once more, and of it every sector written that changes. Of speech that is 0.3 to 0.6 of all and 0.1 to 0.3:
1.2 to 1.4 times the least, where reading and writing all of it again would be 1.8.

Shared memory 54 KB, of which 50 KB dynamic; at most 64 registers: 1 block, 20 warps per multiprocessor. float32 on sm_80 takes 48:
2 blocks.
"""

from max.gpu import (
    MAX_THREADS_PER_BLOCK_METADATA,
    WARP_SIZE,
    barrier,
    block_idx,
    grid_dim,
    lane_id,
    thread_idx,
    warp_id,
)
from max.gpu.memory import AddressSpace, external_memory
from max.gpu.primitives import warp
from std.math import ceildiv
from std.utils import StaticTuple

from ...data import Data
from ...gpu.memory import shared_memory
from ...gpu.reduce import block_max
from ..cpu import FLOOR, HOP, REACH, SILENCE, scaled_log
from ..dft import BINS, POINTS
from .slots import FRAMES, PASSES, ROW, SPAN, TEAMS, THREADS, hear, power_slot, slot_place
from .transform import transform_column, transform_complex_row, transform_real_row

comptime MAX_MELS = 128
"""Most filters."""

comptime MAX_WEIGHTS = 2 * BINS
"""Most weights of all filters: neighbouring triangles overlap, and no third one."""

comptime ROWS = 8
"""Rows that the columns' DFTs leave for the teams: the two real ones count as one."""

comptime PARTS = 8
"""Parts of a block's mels whose lowest values are kept: one sector of them."""

comptime UNHEARD = Float32.MIN_FINITE
"""The lowest value of a part that the first kernel has not written."""


@always_inline
def _team_min(x: Float32) -> Float32:
    """The lowest value of a team, in every thread of it."""
    var y = x
    comptime for step in range(5):
        y = min(y, warp.shuffle_xor(y, UInt32(1 << step)))
    return y


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def spectrogram_kernel[
    dtype: DType
](
    output: Data[dtype],
    highest: Data[DType.float32],
    lowest: Data[DType.float32],
    samples: Data[dtype],
    runs: Data[DType.int16],
    weights: Data[DType.float32],
    count: Int64,
    length: Int64,
    frames: Int64,
    mels: Int32,
    total: Int32,
):
    """Computes 32 frames of one recording, not clamped yet.

    Parameters:
        dtype: Of samples and result.

    Args:
        output: (B, mels, frames).
        highest: (B, blocks), the highest value of each block.
        lowest: (B, blocks, 8), the lowest value of each part of its mels.
        samples: (B, count).
        runs: (mels, 2), first bin and number of bins.
        weights: (total), the runs one after another.
        count: Samples of a recording.
        length: The same with the zeros behind it.
        frames: Whole hops, length / 160.
        mels: Filters, at most 128.
        total: Weights, at most 402.
    """
    var x = external_memory[Float32, address_space=AddressSpace.SHARED, alignment=128]().unsafe_origin_cast[
        MutUntrackedOrigin
    ]()
    var slots = shared_memory[DType.int16, BINS + MAX_MELS // WARP_SIZE]()
    var sums = slots.unsafe_offset(BINS)  # of the runs' lengths, one for each WARP_SIZE mels
    var filters = shared_memory[DType.int16, 2 * MAX_MELS]()
    var offsets = shared_memory[DType.int16, MAX_MELS]()
    var weight = shared_memory[DType.float32, MAX_WEIGHTS]()
    var lows = shared_memory[DType.float32, MAX_MELS]()
    var thread = Int32(thread_idx.x)
    var team = Int(thread) // FRAMES
    var lane = Int(thread) % FRAMES
    var frame = Int(block_idx.x) * FRAMES
    var recording = Int(block_idx.y)
    var block = recording * Int(grid_dim.x) + Int(block_idx.x)
    var place = output.unsafe_offset(recording * Int(mels) * Int(frames) + frame + lane)
    var there = frame + lane < Int(frames)
    var first = frame * HOP - REACH

    if first >= Int(count) and 2 * (Int(length) - 1) - (first + SPAN - 1) >= Int(count):
        if thread < PARTS:
            lowest[unsafe_offset=block * PARTS + Int(thread)] = UNHEARD
        if thread == 0:
            highest[unsafe_offset=block] = SILENCE
        return

    # 1. Samples, window; tables.
    var needed = (min(FRAMES, Int(frames) - frame) - 1) * HOP + POINTS
    var own = samples.unsafe_offset(recording * Int(count))
    if team < TEAMS // 2:
        hear[0](own, Int(count), Int(length), first, needed, x)
    else:
        hear[PASSES // 2](own, Int(count), Int(length), first, needed, x)
    if thread < BINS:
        slots.unsafe_store(Int(thread), Int16(slot_place(Int(power_slot(thread)))))
    for i in range(thread, total, Int32(THREADS)):
        weight.unsafe_store(Int(i), weights[unsafe_offset=i])
    if thread < MAX_MELS:
        var run = SIMD[DType.int16, 2](0)
        if thread < mels:
            run = runs.unsafe_load[width=2, alignment=4](2 * thread)
            filters.unsafe_store[alignment=4](2 * Int(thread), run)
        var bins = max(Int32(run[1]), 0)
        var up_to = warp.prefix_sum(bins)
        offsets.unsafe_store(Int(thread), Int16(up_to - bins))
        if lane_id() == WARP_SIZE - 1:
            sums.unsafe_store(Int(warp_id()), Int16(up_to))
    barrier()

    # 2. The DFT.
    var mine = x.unsafe_offset(lane)
    for n2 in range(team, 25, TEAMS):
        transform_column(mine.unsafe_offset(n2 * FRAMES))
    barrier()
    for row in range(team, ROWS, TEAMS):
        if row == 0:
            transform_real_row(mine)
            transform_real_row(mine.unsafe_offset(ROW))
        else:
            transform_complex_row(mine.unsafe_offset(2 * row * ROW))
    barrier()

    # 3. Filters, logarithm.
    var top = SILENCE
    for m in range(team, Int(mels), TEAMS):
        var run = filters.unsafe_load[width=2, alignment=4](2 * m).cast[DType.int32]()
        var offset = Int32(offsets.unsafe_load(m))
        for w in range(m // WARP_SIZE):
            offset += Int32(sums.unsafe_load(w))
        offset = min(offset, total)
        var bin = min(max(run[0], 0), Int32(BINS))
        var bins = min(run[1], min(Int32(BINS) - bin, total - offset))
        var energy = Float32(0)
        for i in range(bins):
            var power = mine.unsafe_load(Int(slots.unsafe_load(Int(bin + i))))
            energy = power.fma(weight.unsafe_load(Int(offset + i)), energy)
        var y = scaled_log(max(energy, FLOOR))
        if there:
            top = max(top, y)
            place[unsafe_offset=m * Int(frames)] = y.cast[dtype]()
        var low = _team_min(y if there else Float32.MAX_FINITE)
        if lane == 0:
            lows.unsafe_store(m, low)

    # 4. The extremes; block_max has a barrier.
    top = block_max[THREADS](top)
    if thread == 0:
        highest[unsafe_offset=block] = top
    if thread < PARTS:
        var low = Float32.MAX_FINITE
        var size = ceildiv(mels, Int32(PARTS))
        for m in range(thread * size, min((thread + 1) * size, mels)):
            low = min(low, lows.unsafe_load(Int(m)))
        lowest[unsafe_offset=block * PARTS + Int(thread)] = low

"""Log-mel spectrogram on a GPU; equations and shapes as in `cpu.mojo`, the DFT as in `dft.mojo`.

A block makes 24 neighbouring frames, of which nothing but the result leaves the chip:

      samples                    x in shared memory: 400 slots of 24 frames                   y
    |--- 4080 --|    window,    +----------------+ columns: DFTs of 16  +---------------+    +------+
      read once ------------->  | slot of sample | rows:    DFTs of 25  | slot of bin k | -> | mel m|  24 frames:
                                |   x  frame     | ------------------>  |   x  frame    |    |      |  3 sectors
                                +----------------+ powers, in place     +---------------+    +------+

1.  Thread j takes samples j, j + 160, ... of the span: sample j + 160 q is sample j of frame q, j + 160 of frame q - 1 and
    j + 320 of frame q - 2, so that it needs three values of the window, which stay in registers.
2.  A warp takes a column of the 16 x 25 DFT (25 columns), then a row (one real pair, 7 complex), one frame per lane: lanes
    read and write neighbouring words, no two in one bank. The powers of a row replace it.
3.  A warp takes a mel; its weights, and where the powers of its bins are, come from tables in shared memory.
4.  The highest value of the block goes to memory; a second kernel finds the highest of all and clamps.

A block that hears nothing but padding writes silence.

Cost per frame: 7300 operations, as on a CPU; samples once and 240 more per block, y written, read and written again, tables
(2.3 KB) once per block: 1.09 times the least of two passes. Shared memory 44 KB, at most 64 registers: 3 blocks, 30 warps
per multiprocessor on sm_80.
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
from max.gpu.host import DeviceContext
from std.collections import Array
from std.math import ceildiv
from std.utils import StaticTuple

from ..data import Data
from ..gpu.memory import Shared, shared_memory
from ..gpu.reduce import block_max
from .cpu import FLOOR, HOP, RANGE, REACH, SILENCE, scaled_log
from .dft import BINS, POINTS, Complex, dft5, real_dft, real_dft5

comptime FRAMES = 24
"""Frames of a block: as many as their samples fit into 48 KB beside the tables; rows of whole sectors."""

comptime THREADS = 320
"""Threads of a block: two for each sample of a hop."""

comptime SPAN = (FRAMES - 1) * HOP + POINTS
"""Samples under a block's frames."""

comptime MAX_MELS = 128
"""Most filters."""

comptime MAX_WEIGHTS = 1024
"""Most weights of all filters."""

comptime ROWS = 8
"""Rows that the columns' DFTs leave for the warps: the two real ones count as one."""

comptime CLAMP_THREADS = 256
"""Threads of a block of the second kernel."""

comptime CLAMP_EACH = 16
"""Values that a thread of it clamps."""

comptime Number = Complex[1]


@always_inline
def _hann(n: Int32) -> Float32:
    """The Hann window: the square of sin(pi n / 400), by Taylor's series on the half where the angle is at most pi / 2.
    """
    var a = Float32(min(n, Int32(POINTS) - n)) * Float32(3.14159265358979323846 / Float64(POINTS))
    var b = a * a
    var y = Float32(-2.5052108385441720e-08)
    y = y.fma(b, Float32(2.7557319223985893e-06))
    y = y.fma(b, Float32(-1.9841269841269841e-04))
    y = y.fma(b, Float32(8.3333333333333332e-03))
    y = y.fma(b, Float32(-1.6666666666666666e-01))
    y = y.fma(b, 1) * a
    return y * y


@always_inline
def _slot(n: Int32) -> Int32:
    """Where sample n of a frame belongs: n = 25 n1 + 16 n2 mod 400, slot 25 n1 + n2; 9 and 11 invert 25 and 16."""
    return 25 * (9 * n % 16) + 11 * n % 25


@always_inline
def _power_slot(bin: Int32) -> Int32:
    """Where the power of a bin is, once the rows are done.

    k mod 16 names the row and k mod 25 = c + 5 d the place in it, or those of 400 - k do, which has the same power.
    """
    var k1 = bin % 16
    var k2 = bin % 25
    var row = _row(k1)
    if row == NO_ROW:
        k2 = (25 - k2) % 25
        row = _row(16 - k1)
    if row >= 2:
        return (row - 1) * 50 + 5 * (k2 % 5) + k2 // 5
    if k2 % 5 > 2 or k2 == 15 or k2 == 20:
        k2 = 25 - k2
    var c = k2 % 5
    return row * 25 + (10 * c - 5 if c > 0 else 0) + k2 // 5


comptime NO_ROW = 15


@always_inline
def _row(k1: Int32) -> Int32:
    """The row that holds k1 after the columns: the inverse of the order in which `real_dft` stores."""
    comptime ROWS_OF_K1: UInt64 = 0xFF8F_F471_FF62_F350  # one hexadecimal digit each, k1 = 0 last
    return Int32((ROWS_OF_K1 >> UInt64(4 * k1)) & 15)


@always_inline
def _load(x: Shared[DType.float32], slot: Int) -> Float32:
    return x.unsafe_load(slot * FRAMES)


@always_inline
def _store(x: Shared[DType.float32], slot: Int, y: Float32):
    x.unsafe_store(slot * FRAMES, y)


@always_inline
def _reals(x: Shared[DType.float32], first: Int, step: Int) -> Array[Float32, 5]:
    var five = Array[Float32, 5](uninitialized=True)
    comptime for i in range(5):
        five[i] = _load(x, first + i * step)
    return five^


@always_inline
def _numbers(x: Shared[DType.float32], re: Int, im: Int, step: Int) -> Array[Number, 5]:
    var five = Array[Number, 5](uninitialized=True)
    comptime for i in range(5):
        five[i] = Number(_load(x, re + i * step), _load(x, im + i * step))
    return five^


@always_inline
def _column(x: Shared[DType.float32]):
    """DFT of the 16 samples of one column of one frame, in place."""
    var samples = Array[Float32, 16](uninitialized=True)
    comptime for n1 in range(16):
        samples[n1] = _load(x, 25 * n1)
    real_dft(samples, x, 25 * FRAMES)


@always_inline
def _real_row(x: Shared[DType.float32]):
    """Powers of the DFT of 25 real numbers of one frame, in place; see `dft.mojo`."""
    comptime for b in range(5):
        var z = real_dft5(_reals(x, b, 5))
        _store(x, b, z[0].re)
        comptime for c in range(1, 3):
            var turned = z[c].turned[b * c, 25]()
            _store(x, 10 * c - 5 + b, turned.re)
            _store(x, 10 * c + b, turned.im)
    var z = real_dft5(_reals(x, 0, 1))
    comptime for d in range(3):
        _store(x, d, z[d].power())
    comptime for c in range(1, 3):
        var z = dft5(_numbers(x, 10 * c - 5, 10 * c, 1))
        comptime for d in range(5):
            _store(x, 10 * c - 5 + d, z[d].power())


@always_inline
def _complex_row(x: Shared[DType.float32]):
    """Powers of the DFT of 25 complex numbers of one frame, in place of their real parts; see `dft.mojo`."""
    comptime for b in range(5):
        var z = dft5(_numbers(x, b, 25 + b, 5))
        comptime for c in range(5):
            var turned = z[c].turned[b * c, 25]()
            _store(x, 5 * c + b, turned.re)
            _store(x, 25 + 5 * c + b, turned.im)
    comptime for c in range(5):
        var z = dft5(_numbers(x, 5 * c, 25 + 5 * c, 1))
        comptime for d in range(5):
            _store(x, 5 * c + d, z[d].power())


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def spectrogram_kernel[
    dtype: DType
](
    output: Data[dtype],
    highest: Data[DType.float32],
    samples: Data[dtype],
    runs: Data[DType.int32],
    weights: Data[DType.float32],
    count: Int64,
    length: Int64,
    frames: Int64,
    mels: Int32,
    total: Int32,
):
    """Computes 24 frames of one recording, not clamped yet.

    Parameters:
        dtype: Of samples and result.

    Args:
        output: (B, mels, frames).
        highest: (B, blocks), the highest value of each block.
        samples: (B, count).
        runs: (mels, 2), first bin and number of bins.
        weights: (total), the runs one after another.
        count: Samples of a recording.
        length: The same with the zeros behind it.
        frames: Whole hops, length / 160.
        mels: Filters, at most 128.
        total: Weights, at most 1024.
    """
    var x = shared_memory[DType.float32, POINTS * FRAMES]()
    var slots = shared_memory[DType.int32, BINS]()
    var filters = shared_memory[DType.int32, 2 * MAX_MELS]()
    var offsets = shared_memory[DType.int32, MAX_MELS]()
    var weight = shared_memory[DType.float32, MAX_WEIGHTS]()
    comptime warps = THREADS // WARP_SIZE
    var thread = Int32(thread_idx.x)
    var lane = Int(lane_id())
    var frame = Int(block_idx.x) * FRAMES
    var recording = Int(block_idx.y)
    var place = output.unsafe_offset(recording * Int(mels) * Int(frames) + frame + lane)
    var stored = lane < FRAMES and frame + lane < Int(frames)
    var first = frame * HOP - REACH

    if first >= Int(count) and 2 * (Int(length) - 1) - (first + SPAN - 1) >= Int(count):
        for m in range(Int32(warp_id()), mels, Int32(warps)):
            if stored:
                place[unsafe_offset=Int(m) * Int(frames)] = SILENCE.cast[dtype]()
        if thread == 0:
            highest[unsafe_offset=recording * Int(grid_dim.x) + Int(block_idx.x)] = SILENCE
        return

    # 1. Samples, window; tables.
    var sample = thread % HOP
    var window = Array[Float32, 3](fill=0)
    comptime for i in range(3):
        window[i] = _hann(sample + Int32(i * HOP))
    var own = samples.unsafe_offset(recording * Int(count))
    for q in range(Int(thread) // HOP, FRAMES + 2, THREADS // HOP):
        var s = q * HOP + Int(sample)
        if s < SPAN:
            var at = abs(first + s)
            if at >= Int(length):
                at = 2 * (Int(length) - 1) - at
            var value = Float32(0)
            if 0 <= at and at < Int(count):
                value = own[unsafe_offset=at].cast[DType.float32]()
            comptime for i in range(3):
                var n = sample + Int32(i * HOP)
                if n < POINTS and i <= q and q - i < FRAMES:
                    x.unsafe_store(Int(_slot(n)) * FRAMES + q - i, value * window[i])
    if thread < BINS:
        slots.unsafe_store(Int(thread), _power_slot(thread))
    if thread < 2 * mels:
        filters.unsafe_store(Int(thread), runs[unsafe_offset=thread])
    for i in range(thread, total, Int32(THREADS)):
        weight.unsafe_store(Int(i), weights[unsafe_offset=i])
    barrier()
    if thread < mels:
        var offset = Int32(0)
        for m in range(thread):
            offset += max(filters.unsafe_load(2 * Int(m) + 1), 0)
        offsets.unsafe_store(Int(thread), offset)

    # 2. The DFT.
    var mine = x.unsafe_offset(min(lane, FRAMES - 1))
    for n2 in range(Int(warp_id()), 25, warps):
        if lane < FRAMES:
            _column(mine.unsafe_offset(n2 * FRAMES))
    barrier()
    for row in range(Int(warp_id()), ROWS, warps):
        if lane < FRAMES:
            if row == 0:
                _real_row(mine)
                _real_row(mine.unsafe_offset(25 * FRAMES))
            else:
                _complex_row(mine.unsafe_offset(50 * row * FRAMES))
    barrier()

    # 3. Filters, logarithm.
    var top = SILENCE
    for m in range(Int(warp_id()), Int(mels), warps):
        var bin = min(max(filters.unsafe_load(2 * m), 0), Int32(BINS))
        var offset = min(offsets.unsafe_load(m), total)
        var bins = min(filters.unsafe_load(2 * m + 1), min(Int32(BINS) - bin, total - offset))
        var energy = Float32(0)
        for i in range(bins):
            var power = _load(mine, Int(slots.unsafe_load(Int(bin + i))))
            energy = power.fma(weight.unsafe_load(Int(offset + i)), energy)
        var y = scaled_log(max(energy, FLOOR))
        if stored:
            top = max(top, y)
            place[unsafe_offset=m * Int(frames)] = y.cast[dtype]()

    # 4. The block's highest value.
    top = block_max[THREADS](top)
    if thread == 0:
        highest[unsafe_offset=recording * Int(grid_dim.x) + Int(block_idx.x)] = top


def clamp_kernel[dtype: DType](output: Data[dtype], highest: Data[DType.float32], size: Int64, blocks: Int32):
    """Clamps a part of one recording's result 8 decades below its highest value.

    Parameters:
        dtype: Of the result.

    Args:
        output: (B, size).
        highest: (B, blocks).
        size: Features of a row, n_mels * frames.
        blocks: Blocks of the first kernel.
    """
    var recording = Int(block_idx.y)
    var top = SILENCE
    for i in range(Int32(thread_idx.x), blocks, Int32(CLAMP_THREADS)):
        top = max(top, highest[unsafe_offset=recording * Int(blocks) + Int(i)])
    var lowest = (block_max[CLAMP_THREADS](top) - RANGE).cast[dtype]()
    var place = output.unsafe_offset(recording * Int(size))
    comptime for i in range(CLAMP_EACH):
        var at = (Int(block_idx.x) * CLAMP_EACH + i) * CLAMP_THREADS + Int(thread_idx.x)
        if at < Int(size):
            place[unsafe_offset=at] = max(place[unsafe_offset=at], lowest)


def enqueue_log_mel[
    dtype: DType, //
](
    output: Data[dtype],
    samples: Data[dtype],
    runs: Data[DType.int32],
    weights: Data[DType.float32],
    batch: Int,
    count: Int,
    padding: Int,
    mels: Int,
    total: Int,
    ctx: DeviceContext,
) raises:
    """Launches both kernels.

    Args:
        output: `batch x mels x frames`, frames = (count + padding) // 160.
        samples: `batch x count`, finite.
        runs: `mels x 2`.
        weights: `total`.
        batch: B, less than 65536.
        count: Samples of a recording; with the padding at least 201.
        padding: Zeros behind them.
        mels: Filters, at most 128.
        total: Weights, at most 1024.
        ctx: The device.
    """
    var frames = (count + padding) // HOP
    var blocks = ceildiv(frames, FRAMES)
    if batch * mels * blocks == 0:
        return
    var highest = ctx.enqueue_create_buffer[DType.float32](batch * blocks)
    ctx.enqueue_function[spectrogram_kernel[dtype]](
        output,
        highest,
        samples,
        runs,
        weights,
        Int64(count),
        Int64(count + padding),
        Int64(frames),
        Int32(mels),
        Int32(total),
        grid_dim=(blocks, batch),
        block_dim=THREADS,
    )
    ctx.enqueue_function[clamp_kernel[dtype]](
        output,
        highest,
        Int64(mels * frames),
        Int32(blocks),
        grid_dim=(ceildiv(mels * frames, CLAMP_THREADS * CLAMP_EACH), batch),
        block_dim=CLAMP_THREADS,
    )

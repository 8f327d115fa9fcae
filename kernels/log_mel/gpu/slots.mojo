"""Where a block of the log-mel kernel has its numbers in shared memory, and how samples get there.

A slot is one number of all 32 frames, side by side. Slots lie in rows of 25, as `../dft.mojo` draws them: n1 names the row of
a sample, k1 that of what the columns' DFTs leave. A row is followed by one empty word, so slot 25 a + b of frame f lies in bank
(a + f) mod 32:

    transform, filters    a team has one slot and 32 f: 32 banks
    arriving samples      it has 16 samples in a row, whose a are all different (a = 9 n mod 16), of two f that are 16 apart
"""

from max.gpu import thread_idx
from std.collections import Array

from ...data import Data
from ...gpu.memory import Shared
from ..cpu import HOP
from ..dft import POINTS

comptime FRAMES = 32
"""Frames of a block, one for each thread of a team: rows of whole sectors; the smallest number that keeps the tables and
the samples that two blocks need within a tenth of the rest."""

comptime THREADS = 640
"""Threads of a block: four for each sample of a hop."""

comptime TEAMS = THREADS // FRAMES
"""Teams of a block: two for each 16 samples of a hop."""

comptime ABREAST = 16
"""Neighbouring samples that a team takes."""

comptime PASSES = FRAMES // 2 + 2
"""How often one team would take them: of two hops, the last two times of one; two teams have half of the passes each."""

comptime SPAN = (FRAMES - 1) * HOP + POINTS
"""Samples under a block's frames."""

comptime ROW = 25 * FRAMES + 1
"""Numbers from one row of 25 slots to the next: a row starts one bank further."""

comptime X_BYTES = 16 * ROW * 4
"""Dynamic shared memory."""


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
def sample_slot(n: Int32) -> Int32:
    """Where sample n of a frame belongs: n = 25 n1 + 16 n2 mod 400, slot 25 n1 + n2; 9 and 11 invert 25 and 16."""
    return 25 * (9 * n % 16) + 11 * n % 25


@always_inline
def power_slot(bin: Int32) -> Int32:
    """Where the power of a bin is, once the rows are done.

    k mod 16 names the row and k mod 25 = c + 5 d the place in it, or those of 400 - k do, which has the same power.
    """
    var k1 = bin % 16
    var k2 = bin % 25
    var row = _row(k1)
    if row == _NO_ROW:
        k2 = (25 - k2) % 25
        row = _row(16 - k1)
    if row >= 2:
        return (row - 1) * 50 + 5 * (k2 % 5) + k2 // 5
    if k2 % 5 > 2 or k2 == 15 or k2 == 20:
        k2 = 25 - k2
    var c = k2 % 5
    return row * 25 + (10 * c - 5 if c > 0 else 0) + k2 // 5


comptime _NO_ROW = 15


@always_inline
def _row(k1: Int32) -> Int32:
    """The row that holds k1 after the columns: the inverse of the order in which `real_dft` stores."""
    comptime ROWS_OF_K1: UInt64 = 0xFF8F_F471_FF62_F350  # one hexadecimal digit each, k1 = 0 last
    return Int32((ROWS_OF_K1 >> UInt64(4 * k1)) & 15)


@always_inline
def slot_place(slot: Int) -> Int:
    """Where a slot of the first frame is."""
    return slot * FRAMES + slot // 25


@always_inline
def hear[
    dtype: DType, //, begin: Int
](samples: Data[dtype], count: Int, length: Int, first: Int, needed: Int, x: Shared[DType.float32]):
    """Reads samples and stores them, windowed, in the slots of all frames that hear them.

    Parameters:
        dtype: Of the samples.
        begin: First pass of the team, which has half of them.

    Args:
        samples: Of the recording.
        count: How many there are.
        length: The same with the zeros behind them.
        first: Where the block's first frame starts.
        needed: Samples under those of its frames that exist; behind them are zeros.
        x: All slots.
    """
    comptime APART = FRAMES // 2
    var thread = Int32(thread_idx.x)
    var sample = (thread // Int32(FRAMES) * Int32(ABREAST) + thread % Int32(ABREAST)) % Int32(HOP)
    var later = thread % Int32(FRAMES) >= Int32(ABREAST)
    var window = Array[Float32, 3](fill=0)
    var slots = Array[Shared[DType.float32], 3](fill=x)
    comptime for i in range(3):
        var n = sample + Int32(i * HOP)
        window[i] = _hann(n)
        slots[i] = x.unsafe_offset(slot_place(Int(sample_slot(n))) + (APART if later else 0))
    var inside = first >= 0 and first + SPAN <= count
    var start = Int(sample) + (APART * HOP if later else 0)
    comptime for batch in range(begin, begin + PASSES // 2, 3):
        var values = Array[Float32, 3](fill=0)
        comptime for b in range(3):
            # Hop q, and q + 16 by the other half of the team; the last two hops one by one.
            comptime q = batch + b
            comptime hop = q if q < APART else q + APART
            var s = start + hop * HOP
            if (q < APART or not later) and (q <= APART or sample < Int32(POINTS - 2 * HOP)):
                if inside:
                    values[b] = samples[unsafe_offset=first + s].cast[DType.float32]()
                elif s < needed:
                    var at = abs(first + s)
                    if at >= length:
                        at = 2 * (length - 1) - at
                    if 0 <= at and at < count:
                        values[b] = samples[unsafe_offset=at].cast[DType.float32]()
        comptime for b in range(3):
            comptime q = batch + b
            comptime hop = q if q < APART else q + APART
            comptime for i in range(3):
                comptime if hop - i < FRAMES:
                    var exists = i < 2 or sample < Int32(POINTS - 2 * HOP)
                    if exists and (q >= i or later) and (q < APART or not later):
                        slots[i].unsafe_store(hop - i, values[b] * window[i])

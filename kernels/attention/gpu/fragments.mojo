"""Online softmax on the fragments that tensor cores leave: 16 queries a warp, of which four lanes share each.

Of 16 x 64 scores, or of 16 x 64 sums of the output, lane l has eight times four numbers: row l/4, columns 8n + 2 (l % 4) and the
next, then the same of row l/4 + 8. `mma` and `wgmma` both leave them so.

    m' = max(m, rowmax S),  P = exp2((S - m') c),  l = exp2((m - m') c) l + rowsum P,  c = log2(e) / 8

and whoever keeps the output multiplies it by exp2((m - m') c), too (algorithm 1 of FlashAttention-2).
"""

from max.gpu.primitives import warp
from std.collections import Array
from std.math import exp2
from std.memory import bitcast
from std.sys import inlined_assembly

from ...data import Data
from ...gpu.memory import CHUNK, Shared, chunk, store_chunk
from ..strip import HEAD, SCALE
from .key_values import LOWEST

comptime Two = SIMD[DType.float32, 2]
"""A number for each of a lane's two queries."""

comptime Four = SIMD[DType.float32, 4]
"""A fragment of 8 columns: two numbers of the first query, two of the second."""

comptime FRAGMENTS = HEAD // 8

comptime Fragments = Array[Four, FRAGMENTS]
"""Of 64 columns."""

comptime GIVEN[threads: Int] = (1 + HEAD // 8) * 4 * threads
"""Float32 numbers of shared memory that `give` takes, by so many threads."""


@always_inline
def hide(mut s: Fragments, seen: Int32, seen_by_next: Int32, lane: Int32):
    """Gives keys that a query does not see the lowest score.

    Args:
        s: Scores.
        seen: How many of the keys the lane's first query sees.
        seen_by_next: How many its second sees.
        lane: Number of the lane.
    """
    var column = lane % 4 * 2
    var end = seen - column
    var end_of_next = seen_by_next - column
    comptime for n in range(FRAGMENTS):
        comptime for e in range(2):
            if Int32(8 * n + e) >= end:
                s[n][e] = LOWEST
            if Int32(8 * n + e) >= end_of_next:
                s[n][2 + e] = LOWEST


@fieldwise_init
struct OnlineSoftmax(TrivialRegisterPassable):
    """The softmax of a lane's two queries so far."""

    var maximum: Two
    """The largest score."""
    var total: Two
    """What this lane has added up."""

    @always_inline
    def __init__(out self):
        self.maximum = Two(LOWEST)
        self.total = Two(0)

    @always_inline
    def follow(mut self, mut s: Fragments) -> Two:
        """Takes in scores, which become weights; returns what earlier weights, and sums of them, have to be multiplied by.
        """
        var new = self.maximum
        comptime for n in range(FRAGMENTS):
            new = max(new, max(s[n].deinterleave()[0], s[n].deinterleave()[1]))
        comptime for distance in [1, 2]:
            new = max(new, _from_lane(new, distance))
        var correction = exp2((self.maximum - new) * SCALE)
        self.maximum = new
        var shift = for_rows(new * -SCALE)
        self.total *= correction
        comptime for n in range(FRAGMENTS):
            s[n] = exp2(s[n].fma(Four(SCALE), shift))
            self.total += s[n].deinterleave()[0] + s[n].deinterleave()[1]
        return correction

    @always_inline
    def give[threads: Int](self, o: Fragments, place: Shared[DType.float32]):
        """Leaves what a thread has in shared memory, for `take` of the same thread of another group of so many."""
        place.unsafe_store[alignment=CHUNK](0, self.maximum.join(self.total))
        comptime for n in range(FRAGMENTS):
            place.unsafe_store[alignment=CHUNK]((1 + n) * 4 * threads, o[n])

    @always_inline
    def take[threads: Int](mut self, mut o: Fragments, place: Shared[DType.float32]):
        """Adds what `give` left, both weighted by exp2((m - max m) c)."""
        var theirs = place.unsafe_load[width=4, alignment=CHUNK](0)
        var new = max(self.maximum, theirs.slice[2]())
        var own_factor = exp2((self.maximum - new) * SCALE)
        var their_factor = exp2((theirs.slice[2]() - new) * SCALE)
        self.maximum = new
        self.total = self.total * own_factor + theirs.slice[2, offset=2]() * their_factor
        comptime for n in range(FRAGMENTS):
            var part = place.unsafe_load[width=4, alignment=CHUNK]((1 + n) * 4 * threads)
            o[n] = o[n] * for_rows(own_factor) + part * for_rows(their_factor)

    @always_inline
    def store[
        dtype: DType, //
    ](self, o: Fragments, output: Data[dtype], output_stride: Int32, query: Int32, last: Int32, lane: Int32):
        """Divides by the total, rounds once and stores 16 bytes at once.

        Args:
            o: Sums of weighted values.
            output: (T, 64), rows at a distance of `output_stride`.
            output_stride: Elements.
            query: The lane's first query; its second is 8 further.
            last: One behind the last query.
            lane: Number of the lane.
        """
        var total = self.total
        comptime for distance in [1, 2]:
            total += _from_lane(total, distance)
        var inverse = for_rows(1 / total)
        comptime for half in range(2):
            var upper = SIMD[DType.uint32, 4](0)
            var lower = SIMD[DType.uint32, 4](0)
            comptime for n in range(4):
                var pairs = bitcast[DType.uint32, 2](round_to[dtype](o[4 * half + n] * inverse))
                upper[n] = pairs[0]
                lower[n] = pairs[1]
            var column = Int32(32 * half) + lane % 4 * 8
            upper = _transpose(upper, lane % 4)
            lower = _transpose(lower, lane % 4)
            if query < last:
                store_chunk(output, Int(query * output_stride + column), bitcast[dtype, chunk[dtype]()](upper))
            if query + 8 < last:
                store_chunk(output, Int((query + 8) * output_stride + column), bitcast[dtype, chunk[dtype]()](lower))


@always_inline
def _from_lane(x: Two, distance: Int) -> Two:
    """The numbers of the lane whose number differs in one bit."""
    return Two(warp.shuffle_xor(x[0], UInt32(distance)), warp.shuffle_xor(x[1], UInt32(distance)))


@always_inline
def for_rows(x: Two) -> Four:
    """One number per query, for each element of an accumulator: two of the first query, two of the second."""
    return Four(x[0], x[0], x[1], x[1])


@always_inline
def round_to[dtype: DType](x: Four) -> SIMD[dtype, 4]:
    """An accumulator in 16 bits. LLVM would convert numbers one by one."""
    comptime convert = "cvt.rn." + ("bf16x2" if dtype == DType.bfloat16 else "f16x2") + ".f32 $0, $1, $2;"
    var first = inlined_assembly[convert, UInt32, constraints="=r,f,f", has_side_effect=False](x[1], x[0])
    var second = inlined_assembly[convert, UInt32, constraints="=r,f,f", has_side_effect=False](x[3], x[2])
    return bitcast[dtype, 4](SIMD[DType.uint32, 2](first, second))


@always_inline
def _transpose(x: SIMD[DType.uint32, 4], lane: Int32) -> SIMD[DType.uint32, 4]:
    """Transposes the 4 x 4 pairs that 4 lanes hold: lane t has pair t of four times 8 columns and gets all pairs of the
    t-th 8, 16 bytes that lie together.

    Args:
        x: This lane's pairs.
        lane: Number of the lane among the four.
    """
    var y = x
    comptime for distance in [1, 2]:
        var keeps_upper = lane & Int32(distance) != 0
        comptime for i in range(2):
            comptime low = 2 * i if distance == 1 else i
            comptime high = low + distance
            var given = y[low] if keeps_upper else y[high]
            var got = warp.shuffle_xor(given, UInt32(distance))
            if keeps_upper:
                y[low] = got
            else:
                y[high] = got
    return y

"""Softmaxes of logits that are reduced piece by piece, by warps: what is asked, a block's part of it, and the merging.

    log of the sum of exponentials = largest + log(total);   the merge of (m, t) and (n, u), with o = max(m, n):
    (o, t * exp(m - o) + u * exp(n - o))

Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
"""

from max.gpu import WARP_SIZE, barrier, lane_id, thread_idx, warp_id
from std.collections import Array
from std.math import exp
from std.memory import bitcast

from ...data import Data
from ...gpu.memory import Shared, shared_memory
from ...gpu.reduce import warp_max, warp_min, warp_sum
from ..softmax import NO_TOKEN
from .logits import TOKENS, place

comptime MERGING_THREADS = 128
"""Threads of a block that merges: two wavefronts, or four warps."""


@fieldwise_init
struct Softmax(TrivialRegisterPassable):
    """The softmax of some logits: the log of the sum of their exponentials is largest + log(total)."""

    var largest: Float32
    var total: Float32
    var index: Int32

    @staticmethod
    @always_inline
    def empty() -> Self:
        """Returns the softmax of no logits."""
        return Self(Float32.MIN_FINITE, 0, NO_TOKEN)

    @always_inline
    def merge(self, other: Self) -> Self:
        """Returns the softmax of these logits and others; of equal ones the lower index counts."""
        var largest = max(self.largest, other.largest)
        var total = self.total * exp(self.largest - largest) + other.total * exp(other.largest - largest)
        var index = min(
            self.index if self.largest == largest else NO_TOKEN, other.index if other.largest == largest else NO_TOKEN
        )
        return Self(largest, total, index)


@fieldwise_init
struct Tokens(TrivialRegisterPassable):
    """Which tokens of a row take part: the bits that suppress, and two ranges."""

    var suppress: UInt8
    var begin: SIMD[DType.int32, 2]
    var end: SIMD[DType.int32, 2]


@fieldwise_init
struct Question(TrivialRegisterPassable):
    """What is asked of the vocabulary: a pick under rules, or the probability of one token."""

    var rules: Data[DType.int32]
    """(B, 4), see `kernels/ops/vocabulary.mojo`; not read if `token` is not negative."""
    var mask: Data[DType.uint8]
    """(V), the bits that suppress each token; not read if `token` is not negative."""
    var first_timestamp: Int32
    var token: Int32
    """The token whose probability is asked for; negative for a pick."""

    @always_inline
    def of(self, row: Int32, vocabulary: Int32) -> Tokens:
        """The tokens that take part in a row."""
        if self.token >= 0:
            return Tokens(0, {0, self.token}, {vocabulary, self.token + 1})
        var rule = self.rules.unsafe_load[width=4, alignment=16](Int(row) * 4)
        return Tokens(
            (rule[0] & Int32(127)).cast[DType.uint8](),
            {max(rule[1], 0), max(rule[2], self.first_timestamp)},
            {min(self.first_timestamp, vocabulary), min(rule[3], vocabulary)},
        )

    @always_inline
    def mask_of(self, token: Int32, vocabulary: Int32) -> UInt8:
        """The bits that suppress a token, zero if it is none."""
        return self.mask[unsafe_offset=token] if self.token < 0 and token < vocabulary else 0


@always_inline
def softmax_of_block(
    logits: Shared[DType.float32], mask: Shared[DType.uint8], who: Tokens, row: Int, which: Int, first: Int32
) -> Softmax:
    """Softmax of a block's logits that are in one range and not suppressed, by a warp.

    Args:
        logits: Of all rows and the block's tokens, see `place`.
        mask: Of the block's tokens.
        who: The tokens that take part.
        row: Whose logits.
        which: Which range.
        first: The block's first token.
    """
    comptime each = TOKENS // WARP_SIZE
    var begin = who.begin[0] if which == 0 else who.begin[1]  # an index that is not known would be an address
    var end = who.end[0] if which == 0 else who.end[1]
    var x = Array[Float32, each](fill=0)
    var allowed = Array[Bool, each](fill=False)
    var largest = Float32.MIN_FINITE
    comptime for i in range(each):
        var local = i * WARP_SIZE + Int(lane_id())
        var token = first + Int32(local)
        x[i] = logits.unsafe_load(place(row, local))
        allowed[i] = begin <= token and token < end and mask.unsafe_load(local) & who.suppress == 0
        if allowed[i]:
            largest = max(largest, x[i])
    largest = warp_max(largest)
    var total = Float32(0)
    var index = NO_TOKEN
    comptime for i in range(each):
        if allowed[i]:
            total += exp(x[i] - largest)
            if x[i] == largest:
                index = min(index, first + Int32(i * WARP_SIZE) + Int32(lane_id()))
    return Softmax(largest, warp_sum(total), warp_min(index))


@always_inline
def merged(parts: Data[DType.float32], row: Int, blocks: Int32) -> Array[Softmax, 2]:
    """Merges the blocks' softmaxes of one row, by MERGING_THREADS threads, in every one: those of both ranges.

    Half of the threads take one range, the others the other: each some parts whose loads are all started at once, a warp
    those of its lanes, and every thread those of the warps.
    """
    comptime half = MERGING_THREADS // 2
    comptime warps = half // WARP_SIZE
    comptime at_once = 4
    var which = Int(thread_idx.x) // half
    var own = parts.unsafe_offset((row * 2 + which) * Int(blocks) * 4)
    var all = Softmax.empty()
    var first = Int32(Int(thread_idx.x) % half)
    while first < blocks:
        var some = Array[SIMD[DType.float32, 4], at_once](fill={Float32.MIN_FINITE, 0, 0, 0})
        comptime for i in range(at_once):
            var block = first + Int32(i * half)
            if block < blocks:
                some[i] = own.unsafe_load[width=4, alignment=16](Int(block) * 4)
        comptime for i in range(at_once):
            if first + Int32(i * half) < blocks:
                all = all.merge(Softmax(some[i][0], some[i][1], bitcast[DType.int32](some[i][2])))
        first += Int32(at_once * half)
    var largest = warp_max(all.largest)
    var total = warp_sum(all.total * exp(all.largest - largest))
    var index = warp_min(all.index if all.largest == largest else NO_TOKEN)
    var found = shared_memory[DType.float32, 2 * warps * 4]()
    if lane_id() == 0:
        found.unsafe_store[alignment=16](
            Int(warp_id()) * 4, SIMD[DType.float32, 4](largest, total, bitcast[DType.float32](index), 0)
        )
    barrier()
    var both = Array[Softmax, 2](fill=Softmax.empty())
    comptime for i in range(2 * warps):
        var part = found.unsafe_load[width=4, alignment=16](i * 4)
        both[i // warps] = both[i // warps].merge(Softmax(part[0], part[1], bitcast[DType.int32](part[2])))
    return both^

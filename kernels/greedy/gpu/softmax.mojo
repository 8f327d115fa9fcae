"""Softmaxes of logits that are reduced piece by piece, by warps: what is asked, a block's part of it, and the merging.

    log of the sum of exponentials = largest + log(total);   the merge of (m, t) and (n, u), with o = max(m, n):
    (o, t * exp(m - o) + u * exp(n - o))

Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
"""

from max.gpu import WARP_SIZE, lane_id
from max.gpu.primitives import warp
from std.collections import Array
from std.math import exp
from std.memory import bitcast

from ...data import Data
from ...gpu.memory import Shared
from ...gpu.reduce import WARP_STEPS, warp_max, warp_min, warp_sum
from ..cpu import NO_TOKEN
from .logits import TOKENS


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
def softmax_of_block(
    logits: Shared[DType.float32], mask: Data[DType.uint8], who: Tokens, which: Int, first: Int32
) -> Softmax:
    """Softmax of a block's logits that are in one range and not suppressed, by a warp."""
    comptime each = TOKENS // WARP_SIZE
    var x = Array[Float32, each](fill=0)
    var allowed = Array[Bool, each](fill=False)
    var largest = Float32.MIN_FINITE
    comptime for i in range(each):
        var local = Int32(i * WARP_SIZE) + Int32(lane_id())
        var token = first + local
        x[i] = logits.unsafe_load(Int(local))
        var takes_part = who.begin[which] <= token and token < who.end[which]
        if takes_part and who.suppress != 0:
            takes_part = mask[unsafe_offset=token] & who.suppress == 0
        allowed[i] = takes_part
        if takes_part:
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
def merged(parts: Data[DType.float32], blocks: Int32) -> Softmax:
    """Merges the blocks' softmaxes of one row and range, by a warp, in every lane."""
    var all = Softmax.empty()
    var block = Int32(lane_id())
    while block < blocks:
        var part = parts.unsafe_load[width=4, alignment=16](Int(block) * 4)
        all = all.merge(Softmax(part[0], part[1], bitcast[DType.int32](part[2])))
        block += Int32(WARP_SIZE)
    comptime for step in range(WARP_STEPS):
        comptime distance = UInt32(1 << step)
        all = all.merge(
            Softmax(
                warp.shuffle_xor(all.largest, distance),
                warp.shuffle_xor(all.total, distance),
                warp.shuffle_xor(all.index, distance),
            )
        )
    return all

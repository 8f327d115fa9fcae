"""Softmaxes of ranges of logits, and how those of neighbours become one.

    largest = max x        total = sum exp(x - largest)        index = the first x that is the largest

With m = max(m1, m2), two softmaxes merge to total1 * exp(m1 - m) + total2 * exp(m2 - m): the online softmax of Milakov and
Gimelshein, arXiv:1805.02867. Tokens that a row's rules suppress take no part.
"""

from std.math import iota

from ..cpu.tile import WIDTH
from ..data import Data
from ..math import exp, larger

comptime NO_TOKEN = Int32.MAX
"""Index of the largest of no values."""


@fieldwise_init
struct Filter(TrivialRegisterPassable):
    """Which tokens of a row take part: the bits that suppress, and two ranges."""

    var suppress: UInt8
    var begin: SIMD[DType.int32, 2]
    var end: SIMD[DType.int32, 2]
    var weigh: Bool
    """Whether the first range is out if the second one is together more probable than any token of it."""

    @always_inline
    def allows[width: Int](self, mask: Data[DType.uint8], token: Int, tokens: Int) -> SIMD[DType.bool, width]:
        """Tells which of neighbouring tokens are not suppressed.

        Parameters:
            width: How many.

        Args:
            mask: The bits that suppress each token.
            token: The first.
            tokens: Tokens that the mask has; nothing is said of those behind.
        """
        if self.suppress == 0:
            return SIMD[DType.bool, width](fill=True)
        var bits = SIMD[DType.uint8, width](0)
        if token + width <= tokens:
            bits = mask.unsafe_load[width=width](token)
        else:
            for i in range(tokens - token):
                bits[i] = mask[unsafe_offset=token + i]
        return (bits & self.suppress).eq(0)


@fieldwise_init
struct Softmax(TrivialRegisterPassable):
    """The softmax of some logits: the log of the sum of their exponentials is largest + log(total)."""

    var largest: Float32
    var total: Float32
    var index: Int32

    @staticmethod
    def empty() -> Self:
        """Returns the softmax of no logits."""
        return Self(Float32.MIN_FINITE, 0, NO_TOKEN)

    def merge(self, later: Self) -> Self:
        """Returns the softmax of these logits and of some that come behind them."""
        var largest = max(self.largest, later.largest)
        var total = self.total * exp(self.largest - largest) + later.total * exp(later.largest - largest)
        return Self(largest, total, later.index if later.largest > self.largest else self.index)


def softmax(logits: Data[DType.float32], first: Int, size: Int) -> Softmax:
    """Softmax of the logits of the tokens `first ..< first + size`; minus infinity for those that take no part."""
    var whole = size // WIDTH * WIDTH

    var lanes = SIMD[DType.float32, WIDTH](Float32.MIN_FINITE)
    var tokens = SIMD[DType.int32, WIDTH](NO_TOKEN)
    for at in range(0, whole, WIDTH):
        var x = logits.unsafe_load[width=WIDTH](at)
        tokens = x.gt(lanes).select(iota[DType.int32, WIDTH](Int32(first + at)), tokens)
        lanes = larger(lanes, x)
    var largest = lanes.reduce_max()
    var index = lanes.eq(largest).select(tokens, NO_TOKEN).reduce_min()
    for at in range(whole, size):
        if logits[unsafe_offset=at] > largest:
            largest = logits[unsafe_offset=at]
            index = Int32(first + at)
    return Softmax(largest, total_of(logits, size, largest), index)


def total_of(logits: Data[DType.float32], size: Int, largest: Float32) -> Float32:
    """The sum of the exponentials of some logits less the largest of them."""
    var whole = size // WIDTH * WIDTH
    var totals = SIMD[DType.float32, WIDTH](0)
    for at in range(0, whole, WIDTH):
        totals += exp(logits.unsafe_load[width=WIDTH](at) - largest)
    var total = totals.reduce_add()
    for at in range(whole, size):
        total += exp(logits[unsafe_offset=at] - largest)
    return total

"""Attention's step in bfloat16: both products on tiles (AMX) or by dot products, the softmax between them in float32.

    S = Q K^T    Q and K rounded to bfloat16, sums in float32
    P = 2^(S * log2(e) / 8 - m)    rounded to bfloat16, `cpu/exp2.mojo`
    l += sum P,  O += P V    V rounded to bfloat16, sums in float32; l of the rounded P, so that the weights P / l sum to 1

m is an integer, and need not be the largest score: weights of up to 2^32 are as exact as those of up to 1. It is raised
when a score exceeds it by 32, by a whole power of two: then O and l are rescaled, exactly. That happens for the first block
of keys, and for few others.

A panel of V has keys j and j + 16 of every 32 in one word, because P comes so: of two registers of scores, for 16 keys
each, one becomes the lower halves of 16 words and the other the upper ones.

       16 keys a panel                  16 columns a panel
       +---+---+-- -+---+               +---+---+---+---+       AMX: a strip of 32 queries is two registers high, all four
    32 | K^T: pairs |   |            64 | V: pairs of   |       products of a 2 x 2 block of them take 4 loads
 words +---+---+-- -+---+         words | keys          |
       +---+---+-- -+---+               +---+---+---+---+       in the first cache: 8 KB of scores, 16 of P, 8 of O, 4 of Q;
    Q  | S          | 32 queries     P  | O             |       K and V, 32 KB a step, come from the second
       +---+---+-- -+---+               +---+---+---+---+

Cost of 16 queries and 32 keys on AMX, counted in the code compiled for it; cycles of a core that begins a tile product every
16, and in each 2 loads, 2 vector instructions and 1 store of 64 bytes:

| what                                             | tile products | loads | stores | vector instructions |
| ------------------------------------------------ | ------------- | ----- | ------ | ------------------- |
| S: a register of Q and one of K serve two each   | 4             | 64    | 32     |                     |
| m: is a score larger than it suits?              | 0             | 32    | 0      | 16 * 3              |
| P: 32 powers in 10 instructions, their sum in 1  | 0             | 48    | 32     | 16 * 11 + 4         |
| O += P V: O is loaded and stored every 128 keys  | 4             | 80    | 16     |                     |
| cycles                                           | 128           | 112   | 80     | 114                 |

Tiles and vectors are equally busy: between 128 and 242 cycles, by how well they overlap, if tiles come from the first cache and are
stored for nothing. They are not, and measured are some 500 (`docs/kernels/attention.md`). float32 with AVX-512 takes 2,048 for the
same multiply-adds and 300 for the softmax. tiny.en's encoder has 54 million scores.
"""

from std.math import ceil, ceildiv, clamp
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import neg_inf

from ..cpu.exp2 import EXP2_STEPS, exp2_high_offset, exp2_offset, exp2_pairs
from ..cpu.operand import dot
from ..cpu.prefetch import ask_for
from ..cpu.strips import Strips
from ..cpu.tile import PANEL, VECTORS, WIDTH
from ..data import Data
from ..math import exp2, larger
from .pairs import KEY_GROUP
from .strip import HEAD, HEADROOM, SCALE, StripSoftmax

comptime HEAD_PANELS = HEAD // PANEL

comptime _WORDS = HEAD // 2
"""Words of a query."""

comptime _ONES = SIMD[DType.int32, WIDTH](0x3F803F80)
"""Pairs of 1 in bfloat16."""


@fieldwise_init
struct _Block(TrivialRegisterPassable):
    """The weights of a block of keys."""

    var values: Data[DType.int32]
    """Its values."""
    var weights: Data[DType.int32]
    """P."""
    var groups: Int
    """Times 32 keys; 0 for no block."""

    @staticmethod
    def none() -> Self:
        """No block."""
        return Self(Data[DType.int32].unsafe_dangling(), Data[DType.int32].unsafe_dangling(), 0)


@fieldwise_init
struct _Group(TrivialRegisterPassable):
    """32 keys of a block, whose scores are there."""

    var block: _Block
    """Its block."""
    var index: Int
    """Which of the block."""
    var scores: Data[DType.float32]
    """S."""
    var seen: Int
    """How many keys from its first on the first query sees, if causal; may be negative, or more than there are."""
    var count: Int
    """Its keys."""


struct Bfloat16Strips(StripSoftmax):
    """The state in float32, Q and P in strips of bfloat16; a block of queries is one strip.

    Scores are weighed 32 keys later than they are computed, and weights meet their values a block later: so the core always
    has products for its tiles and softmax for its vector units.
    """

    comptime dtype = DType.float32
    comptime cache_type = DType.bfloat16
    comptime panel_size = PANEL * HEAD
    comptime value_group = KEY_GROUP
    comptime group_size = KEY_GROUP * HEAD
    comptime rows = Strips.rows
    comptime query_block = Strips.rows
    comptime key_block = 128

    var product: Strips
    var queries: Data[DType.int32]
    var weights: Data[DType.int32]
    """P of two blocks."""
    var scores: Data[DType.float32]
    """S of two groups."""
    var outputs: Data[DType.float32]
    var totals: Data[DType.float32]
    """Of each query, WIDTH partial sums of l."""
    var maxima: Data[DType.float32]
    """The bound m of each query."""
    var limits: Data[DType.float32]
    """Of each query, the largest score that m suits."""
    var offsets: Data[DType.float32]
    """Of each query, m as `exp2_pairs` takes it for the lower halves of words, then for the upper ones."""
    var scored: _Group
    """The last group that has scores."""
    var waiting: _Block
    """The block before that of the last group, if its weights have not met all of its values."""
    var value_stride: Int
    """Words from one panel of values to the next."""

    comptime _STRIP_WEIGHTS = Self.rows * Self.key_block // 2
    comptime _STRIP_SCORES = Self.rows * KEY_GROUP

    def __init__(out self):
        """Takes memory."""
        self.product = Strips()
        self.queries = unsafe_alloc[Int32](Self.rows * _WORDS, alignment=64)
        self.weights = unsafe_alloc[Int32](2 * Self._STRIP_WEIGHTS, alignment=64)
        self.scores = unsafe_alloc[Float32](2 * Self._STRIP_SCORES, alignment=64)
        self.outputs = unsafe_alloc[Float32](Self.rows * HEAD, alignment=64)
        self.totals = unsafe_alloc[Float32](Self.rows * WIDTH, alignment=64)
        self.maxima = unsafe_alloc[Float32](Self.rows)
        self.limits = unsafe_alloc[Float32](Self.rows)
        self.offsets = unsafe_alloc[Float32](2 * Self.rows)
        self.scored = _Group(_Block.none(), 0, self.scores, 0, 0)
        self.waiting = _Block.none()
        self.value_stride = 0
        for i in range(2 * Self._STRIP_WEIGHTS):  # rows of a strip that no query has are multiplied, too
            self.weights[unsafe_offset=i] = 0

    def end(self):
        """Gives it back."""
        self.product.end()
        self.queries.unsafe_free()
        self.weights.unsafe_free()
        self.scores.unsafe_free()
        self.outputs.unsafe_free()
        self.totals.unsafe_free()
        self.maxima.unsafe_free()
        self.limits.unsafe_free()
        self.offsets.unsafe_free()

    def begin(mut self, queries: Data[DType.float32], stride: Int, count: Int):
        """Begins a strip of queries."""
        Strips.pack(queries, stride, count, HEAD, self.queries)
        for i in range(Self.rows):  # those of the next strip: other threads may have written them
            comptime for j in range(0, HEAD, PANEL):
                ask_for(queries.unsafe_offset((Self.rows + i) * stride + j))
        for i in range(0, Self.rows * HEAD, WIDTH):
            self.outputs.unsafe_store(i, SIMD[DType.float32, WIDTH](0))
        for i in range(Self.rows):
            self.totals.unsafe_store(i * WIDTH, SIMD[DType.float32, WIDTH](0))
            self.maxima[unsafe_offset=i] = neg_inf[DType.float32]()
            self.limits[unsafe_offset=i] = neg_inf[DType.float32]()
        self.scored = _Group(_Block.none(), 0, self.scores, 0, 0)
        self.waiting = _Block.none()

    def step[
        causal: Bool
    ](
        mut self,
        first: Int,
        count: Int,
        keys: Data[DType.bfloat16],
        values: Data[DType.bfloat16],
        capacity: Int,
        key: Int,
        key_count: Int,
        seen: Int,
    ):
        """The scores of a block of keys, the weights of all groups but its last, the values of the block before."""
        self.value_stride = ceildiv(capacity, KEY_GROUP) * PANEL * PANEL
        var other = self.scored.block.weights == self.weights
        var block = _Block(
            values.unsafe_bitcast[Int32]().unsafe_offset(key // 2 * PANEL),
            self.weights.unsafe_offset(Self._STRIP_WEIGHTS if other else 0),
            ceildiv(key_count, KEY_GROUP),
        )
        for index in range(block.groups):
            var begin = index * KEY_GROUP
            var group_count = min(KEY_GROUP, key_count - begin)
            var scores = self.scores.unsafe_offset(Self._STRIP_SCORES if self.scored.scores == self.scores else 0)
            self.product.multiply[accumulate=False](
                count,
                ceildiv(group_count, PANEL),
                self.queries,
                _WORDS,
                keys.unsafe_bitcast[Int32]().unsafe_offset((key + begin) * _WORDS),
                PANEL * _WORDS,
                scores,
                KEY_GROUP,
            )
            self._weigh[causal](count)
            if index == 0:
                self.waiting = self.scored.block
            elif index < 3:
                self._add_values(count, index - 1)
            self.scored = _Group(block, index, scores, seen - begin, group_count)
        for half in range(max(0, block.groups - 1), 2):
            self._add_values(count, half)

    def finish[causal: Bool](mut self, count: Int):
        """Weighs the last group and adds the last values."""
        self._weigh[causal](count)
        self.waiting = self.scored.block
        for half in range(2):
            self._add_values(count, half)

    def _add_values(self, count: Int, half: Int):
        """O += P V of the block that waits, if there is one: half of the columns."""
        var block = self.waiting
        if block.groups > 0:
            self.product.multiply[accumulate=True](
                count,
                HEAD_PANELS // 2,
                block.weights,
                block.groups * PANEL,
                block.values.unsafe_offset(half * HEAD_PANELS // 2 * self.value_stride),
                self.value_stride,
                self.outputs.unsafe_offset(half * HEAD // 2),
                HEAD,
            )

    def _weigh[causal: Bool](self, count: Int):
        """Turns the scores of the last group into weights, in pairs, and adds them up."""
        var group = self.scored
        if group.block.groups == 0:
            return
        var over = SIMD[DType.bool, PANEL](fill=False)
        for query in range(count):
            var scores = group.scores.unsafe_offset(query * KEY_GROUP)
            for j in range(clamp(group.seen + query, 0, group.count) if causal else group.count, KEY_GROUP):
                scores[unsafe_offset=j] = neg_inf[DType.float32]()
            var top = larger(scores.unsafe_load[width=PANEL](0), scores.unsafe_load[width=PANEL](PANEL))
            over |= top.gt(self.limits[unsafe_offset=query])
        if over.reduce_or():
            self._raise(count)
        var words = group.block.groups * PANEL
        for query in range(count):
            var scores = group.scores.unsafe_offset(query * KEY_GROUP)
            var p = exp2_pairs(
                scores.unsafe_load[width=PANEL](0),
                scores.unsafe_load[width=PANEL](PANEL),
                SCALE * EXP2_STEPS,
                self.offsets[unsafe_offset=query],
                self.offsets[unsafe_offset=Self.rows + query],
            )
            group.block.weights.unsafe_store(Strips.place(query, group.index * PANEL, words), p)
            var total = self.totals.unsafe_load[width=WIDTH](query * WIDTH)
            comptime for v in range(VECTORS):
                var pairs = p.slice[WIDTH, offset=v * WIDTH]()
                total = bitcast[DType.float32, WIDTH](
                    dot[DType.bfloat16](bitcast[DType.int32, WIDTH](total), pairs, _ONES)
                )
            self.totals.unsafe_store(query * WIDTH, total)

    @no_inline
    def _raise(self, count: Int):
        """Raises m of the queries that it does not suit, and brings O, l and the weights that have not met their values to it.
        """
        for query in range(count):
            var scores = self.scored.scores.unsafe_offset(query * KEY_GROUP)
            var top = larger(scores.unsafe_load[width=PANEL](0), scores.unsafe_load[width=PANEL](PANEL)).reduce_max()
            if top <= self.limits[unsafe_offset=query]:
                continue
            var new = ceil(top * SCALE)
            var correction = exp2(self.maxima[unsafe_offset=query] - new)
            self.maxima[unsafe_offset=query] = new
            self.limits[unsafe_offset=query] = (new + HEADROOM) / SCALE
            self.offsets[unsafe_offset=query] = exp2_offset(new)
            self.offsets[unsafe_offset=Self.rows + query] = exp2_high_offset(new)
            var total = self.totals.unsafe_load[width=WIDTH](query * WIDTH)
            self.totals.unsafe_store(query * WIDTH, total * correction)
            for j in range(query * HEAD, (query + 1) * HEAD, WIDTH):
                self.outputs.unsafe_store(j, self.outputs.unsafe_load[width=WIDTH](j) * correction)
            _scale_weights(self.waiting, query, self.waiting.groups, correction)
            _scale_weights(self.scored.block, query, self.scored.index, correction)

    def sums(self, query: Int) -> Data[DType.float32]:
        """O of a query."""
        return self.outputs.unsafe_offset(query * HEAD)

    def total(self, query: Int) -> Float32:
        """The sum l of a query's weights."""
        return self.totals.unsafe_load[width=WIDTH](query * WIDTH).reduce_add()


def _scale_weights(block: _Block, query: Int, groups: Int, factor: Float32):
    """Multiplies the weights of a query in the first groups of a block with a power of two."""
    for group in range(groups):
        var place = block.weights.unsafe_offset(Strips.place(query, group * PANEL, block.groups * PANEL))
        var pairs = place.unsafe_load[width=PANEL](0)
        var low = bitcast[DType.int32, PANEL](bitcast[DType.float32, PANEL](pairs << 16) * factor)
        var high = bitcast[DType.int32, PANEL](bitcast[DType.float32, PANEL](pairs & -65536) * factor)
        place.unsafe_store(0, ((low >> 16) & 0xFFFF) | (high & -65536))

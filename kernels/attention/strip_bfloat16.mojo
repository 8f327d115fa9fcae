"""Attention's step in bfloat16: both products on tiles (AMX) or by dot products, the softmax between them in float32.

    S = Q K^T    Q and K rounded to bfloat16, sums in float32
    P = 2^(S * log2(e) / 8 - m)    rounded to bfloat16, `cpu/exp2.mojo`
    l += sum P,  O += P V    V rounded to bfloat16, sums in float32; l of the rounded P, so that the weights P / l sum to 1

m need not be the largest score: weights of up to 2^96, which have an exponent, are as exact as those of up to 1. And no score
exceeds |q| |k| (Cauchy and Schwarz): if that, of all queries of a strip and all keys of the head, is below 96 times
8 / log2(e), m is 0 throughout. Encoders stay below it: with the speech at hand, tiny.en reaches 82 and base 93. Else m is an
integer that is raised when a score exceeds it by 32, by a whole power of two: then O and l are rescaled, exactly.

A panel of V has keys j and j + 16 of every 32 in one word, because P comes so: of two registers of scores, for 16 keys
each, one becomes the lower halves of 16 words and the other the upper ones.

       16 keys a panel                  16 columns a panel
       +---+---+-- -+---+               +---+---+---+---+       AMX: the four registers of 32 queries, and of their P for 64
    32 | K^T: pairs |   |            32 | V: pairs of   |       keys, stay where they are while panels pass: 2 loads for
 words +---+---+-- -+---+         words | keys          |       4 products
       +---+---+-- -+---+               +---+---+---+---+       in the first cache: 16 KB of scores, 8 of P, 8 of O, 4 of Q;
    Q  | S          | 32 queries     P  | O             |       K and V, 16 KB a block, pass by it
       +---+---+-- -+---+               +---+---+---+---+

A block of 64 keys is weighed beside the products of two others (`cpu/beside.mojo`):

    tiles    | S of block j          | O += P V of block j - 2 |
    vectors  | P of block j - 1, half a query at a time        |

Cost of 32 queries and 64 keys on AMX, counted in the code compiled for it:

| what                                                     | tile products | loads | stores | vector instructions |
| -------------------------------------------------------- | ------------- | ----- | ------ | ------------------- |
| S: 4 registers of Q, 8 of K                              | 16            | 12    | 8      |                     |
| P: 32 powers in 8 instructions, their sum in 1           | 0             | 0     | 0      | 64 * 9              |
| O += P V: 4 registers of P, 8 of V, 8 of O               | 16            | 20    | 8      |                     |

A core begins a product every 16 cycles, 512 in all; loads take 8 and stores 16 each beside them. Of its two ports for
arithmetic of 64 bytes, products leave one to floating point, which is most of the 576 instructions. Measured are some 1,600
cycles (`docs/kernels/attention.md`). float32 with AVX-512 takes 8,192 for the same multiply-adds and 1,200 for the softmax.
tiny.en's encoder has 54 million scores.
"""

from std.collections import Array
from std.math import ceil, ceildiv, sqrt
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import inf, isfinite, neg_inf

from ..cpu.beside import Beside, keep_apart
from ..cpu.exp2 import EXP2_STEPS, exp2_high_offset, exp2_offset, exp2_pairs
from ..cpu.operand import dot, largest_magnitude
from ..cpu.prefetch import ask_for
from ..cpu.strips import Strips
from ..cpu.tile import PANEL, VECTORS, WIDTH
from ..data import Data
from ..math import exp2, larger, multiply_add
from .pairs import KEY_GROUP, pair_rows_of_group
from .strip import HEAD, HEAD_PANELS, HEADROOM, SCALE, RoundedSoftmax


comptime KEY_BLOCK = 2 * KEY_GROUP
"""Keys of a block."""

comptime MOST_SCORE = Float32(96)
"""Scores times SCALE up to which no maximum is looked for: weights of 2^-96 to 2^96 and their products with values are
normal numbers, and so are sums of them."""

comptime LEAST_SCORE = (1 / EXP2_STEPS - 127) / SCALE
"""A score whose weight is nearly 0, for keys that are not there."""

comptime _WORDS = HEAD // 2
"""Words of a query."""

comptime _ONES = SIMD[DType.int32, WIDTH](0x3F803F80)
"""Pairs of 1 in bfloat16."""


@no_inline
def _poison(words: Data[DType.int32], count: Int) -> Float32:
    """0, or NaN where one of some pairs holds what is no number."""
    var sums = SIMD[DType.int32, WIDTH](0)
    for word in range(0, count, WIDTH):
        sums = dot[DType.bfloat16](sums, words.unsafe_load[width=WIDTH](word), SIMD[DType.int32, WIDTH](0))
    return bitcast[DType.float32, WIDTH](sums).reduce_add()


@fieldwise_init
struct _Block(TrivialRegisterPassable):
    """A block of keys, whose scores or weights are there."""

    var values: Data[DType.int32]
    """Its values."""
    var scores: Data[DType.float32]
    """S, KEY_BLOCK for each query."""
    var weights: Data[DType.int32]
    """P."""
    var count: Int
    """Its keys; 0 for no block."""

    def groups(self) -> Int:
        """Times 32 keys."""
        return ceildiv(self.count, KEY_GROUP)


@fieldwise_init
struct _Softmax(TrivialRegisterPassable):
    """The state of the softmax of each query of a strip."""

    var maxima: Data[DType.float32]
    """The bound m."""
    var limits: Data[DType.float32]
    """The largest score that m suits."""
    var offsets: Data[DType.float32]
    """m as `exp2_pairs` takes it for the lower halves of words, then for the upper ones."""
    var totals: Data[DType.float32]
    """WIDTH partial sums of l."""
    var corrections: Data[DType.float32]
    """What O is to be multiplied with, as m was raised meanwhile; behind the last query, whether any was."""

    @no_inline
    def raise_bound(self, query: Int, top: SIMD[DType.float32, PANEL]):
        """Raises m for scores that it does not suit."""
        var new = ceil(top.reduce_max() * SCALE)
        var correction = exp2(self.maxima[unsafe_offset=query] - new)
        self.maxima[unsafe_offset=query] = new
        self.limits[unsafe_offset=query] = (new + HEADROOM) / SCALE
        self.offsets[unsafe_offset=query] = exp2_offset(new)
        self.offsets[unsafe_offset=Strips.rows + query] = exp2_high_offset(new)
        self.totals.unsafe_store(query * WIDTH, self.totals.unsafe_load[width=WIDTH](query * WIDTH) * correction)
        self.corrections[unsafe_offset=query] = correction
        self.corrections[unsafe_offset=Strips.rows] = 1


struct _Weighing[bounded: Bool](Beside):
    """Turns the scores of a block into weights, in pairs, and adds them up: query after query, each in two pieces.

    Parameters:
        bounded: Whether all scores times SCALE are known to lie within MOST_SCORE.
    """

    comptime phases = 2

    var softmax: _Softmax
    var block: _Block
    var query: Int
    """The next."""
    var count: Int
    """Queries."""

    def __init__(out self, softmax: _Softmax, block: _Block, count: Int):
        """Begins with the first query."""
        self.softmax = softmax
        self.block = block
        self.query = 0
        self.count = count if block.count > 0 else 0
        if block.count < KEY_BLOCK:  # what is behind the last key
            for query in range(self.count):
                for j in range(block.count, KEY_BLOCK):
                    block.scores[unsafe_offset=query * KEY_BLOCK + j] = LEAST_SCORE if Self.bounded else neg_inf[
                        DType.float32
                    ]()

    @always_inline
    def piece[phase: Int](mut self):
        """Brings m up to date and weighs the first 32 keys; weighs the others."""
        if self.query >= self.count:
            keep_apart()
            return
        comptime if phase == 0:
            comptime if not Self.bounded:
                self._bound()
            self._weigh[0]()
        else:
            if self.block.count > KEY_GROUP:
                self._weigh[1]()
            self.query += 1

    def finish(mut self):
        """Does what is left."""
        while self.query < self.count:
            self.piece[0]()
            self.piece[1]()

    @always_inline
    def _bound(self):
        var scores = self.block.scores.unsafe_offset(self.query * KEY_BLOCK)
        var top = larger(
            larger(scores.unsafe_load[width=PANEL](0), scores.unsafe_load[width=PANEL](PANEL)),
            larger(scores.unsafe_load[width=PANEL](2 * PANEL), scores.unsafe_load[width=PANEL](3 * PANEL)),
        )
        if top.gt(self.softmax.limits[unsafe_offset=self.query]).reduce_or():
            self.softmax.raise_bound(self.query, top)

    @always_inline
    def _weigh[group: Int](self):
        var scores = self.block.scores.unsafe_offset(self.query * KEY_BLOCK + group * KEY_GROUP)
        var low = scores.unsafe_load[width=PANEL](0)
        var high = scores.unsafe_load[width=PANEL](PANEL)
        var p: SIMD[DType.int32, PANEL]
        comptime if Self.bounded:
            p = exp2_pairs[bounded=True](low, high, SCALE * EXP2_STEPS, exp2_offset(0), exp2_high_offset(0))
        else:
            p = exp2_pairs(
                low,
                high,
                SCALE * EXP2_STEPS,
                self.softmax.offsets[unsafe_offset=self.query],
                self.softmax.offsets[unsafe_offset=Strips.rows + self.query],
            )
        var words = self.block.groups() * PANEL
        self.block.weights.unsafe_store(Strips.place(self.query, group * PANEL, words), p)
        var total = self.softmax.totals.unsafe_load[width=WIDTH](self.query * WIDTH)
        comptime for v in range(VECTORS):
            var pairs = p.slice[WIDTH, offset=v * WIDTH]()
            total = bitcast[DType.float32, WIDTH](dot[DType.bfloat16](bitcast[DType.int32, WIDTH](total), pairs, _ONES))
        self.softmax.totals.unsafe_store(self.query * WIDTH, total)


struct Bfloat16Strips(RoundedSoftmax):
    """The state in float32, Q and P in strips of bfloat16; a block of queries is one strip.

    A block is weighed while the scores of the next one are computed, and meets its values after that: so there are always
    products for the tiles, and a softmax for the vector units beside them.
    """

    comptime dtype = DType.float32
    comptime cache_type = DType.bfloat16
    comptime panel_size = PANEL * HEAD
    comptime value_group = KEY_GROUP
    comptime group_size = KEY_GROUP * HEAD
    comptime rows = Strips.rows
    comptime query_block = Strips.rows
    comptime key_block = KEY_BLOCK

    var product: Strips
    var queries: Data[DType.int32]
    var weights: Data[DType.int32]
    """P of two blocks."""
    var scores: Data[DType.float32]
    """S of two blocks."""
    var outputs: Data[DType.float32]
    var softmax: _Softmax
    var scored: _Block
    """The last block, which has scores."""
    var weighed: _Block
    """The block before, which has weights."""
    var value_stride: Int
    """Words from one panel of values to the next."""
    var largest_key: Float32
    """Of the head: the largest sum of a key's squares; infinity before `meet`."""
    var poison: Float32
    """0, or NaN where a key of the head holds a number that is none: a weight would not tell."""
    var bounded: Bool
    """Whether the strip's scores are."""

    comptime _STRIP_WEIGHTS = Self.rows * Self.key_block // 2
    comptime _STRIP_SCORES = Self.rows * Self.key_block

    def __init__(out self):
        """Takes memory."""
        self.product = Strips()
        self.queries = unsafe_alloc[Int32](Self.rows * _WORDS, alignment=64)
        self.weights = unsafe_alloc[Int32](2 * Self._STRIP_WEIGHTS, alignment=64)
        self.scores = unsafe_alloc[Float32](2 * Self._STRIP_SCORES, alignment=64)
        self.outputs = unsafe_alloc[Float32](Self.rows * HEAD, alignment=64)
        self.softmax = _Softmax(
            unsafe_alloc[Float32](Self.rows),
            unsafe_alloc[Float32](Self.rows),
            unsafe_alloc[Float32](2 * Self.rows),
            unsafe_alloc[Float32](Self.rows * WIDTH, alignment=64),
            unsafe_alloc[Float32](Self.rows + 1),
        )
        for i in range(2 * Self._STRIP_WEIGHTS):  # rows of a strip that no query has are multiplied, too
            self.weights[unsafe_offset=i] = 0
        self.scored = _Block(self.weights, self.scores, self.weights, 0)
        self.weighed = self.scored
        self.value_stride = 0
        self.largest_key = inf[DType.float32]()
        self.poison = 0
        self.bounded = False

    def end(self):
        """Gives it back."""
        self.product.end()
        self.queries.unsafe_free()
        self.weights.unsafe_free()
        self.scores.unsafe_free()
        self.outputs.unsafe_free()
        self.softmax.maxima.unsafe_free()
        self.softmax.limits.unsafe_free()
        self.softmax.offsets.unsafe_free()
        self.softmax.totals.unsafe_free()
        self.softmax.corrections.unsafe_free()

    def meet(mut self, keys: Data[DType.bfloat16], capacity: Int):
        """Looks for the longest key, and for one that is none."""
        comptime CHAINS = 4  # sums side by side, as each addition waits for the one before
        var words = keys.unsafe_bitcast[Int32]()
        var largest = SIMD[DType.float32, WIDTH](0)
        var poison = SIMD[DType.float32, WIDTH](0)
        for panel in range(ceildiv(capacity, PANEL)):
            comptime for v in range(VECTORS):
                var squares = Array[SIMD[DType.int32, WIDTH], CHAINS](fill=SIMD[DType.int32, WIDTH](0))
                for word in range(0, _WORDS, CHAINS):
                    comptime for c in range(CHAINS):
                        var pairs = words.unsafe_load[width=WIDTH]((panel * _WORDS + word + c) * PANEL + v * WIDTH)
                        squares[c] = dot[DType.bfloat16](squares[c], pairs, pairs)
                var sums = SIMD[DType.float32, WIDTH](0)
                comptime for c in range(CHAINS):
                    sums += bitcast[DType.float32, WIDTH](squares[c])
                largest = larger(sums, largest)
                poison = multiply_add(sums, SIMD[DType.float32, WIDTH](0), poison)
        self.largest_key = largest.reduce_max() + poison.reduce_add()
        self.poison = 0
        if not isfinite(self.largest_key):  # a key that is none, or one whose squares are too large
            self.poison = _poison(words, ceildiv(capacity, PANEL) * _WORDS * PANEL)

    def begin(mut self, queries: Data[DType.float32], stride: Int, count: Int):
        """Begins a strip of queries."""
        Strips.pack(queries, stride, count, HEAD, self.queries)
        for i in range(Self.rows):  # those of the next strip: other threads may have written them
            comptime for j in range(0, HEAD, PANEL):
                ask_for(queries.unsafe_offset((Self.rows + i) * stride + j))
        for i in range(0, Self.rows * HEAD, WIDTH):
            self.outputs.unsafe_store(i, SIMD[DType.float32, WIDTH](0))
        for i in range(Self.rows):
            self.softmax.totals.unsafe_store(i * WIDTH, SIMD[DType.float32, WIDTH](self.poison))
            self.softmax.maxima[unsafe_offset=i] = neg_inf[DType.float32]()
            self.softmax.limits[unsafe_offset=i] = neg_inf[DType.float32]()
            self.softmax.offsets[unsafe_offset=i] = exp2_offset(0)
            self.softmax.offsets[unsafe_offset=Self.rows + i] = exp2_high_offset(0)
            self.softmax.corrections[unsafe_offset=i] = 1
        self.softmax.corrections[unsafe_offset=Self.rows] = 0
        self.scored = _Block(self.weights, self.scores, self.weights, 0)
        self.weighed = self.scored
        var largest = Float32(0)
        for i in range(count):
            var squares = SIMD[DType.int32, WIDTH](0)
            for word in range(0, _WORDS, PANEL):
                comptime for v in range(VECTORS):
                    var place = Strips.place(i, word, _WORDS) + v * WIDTH
                    var pairs = self.queries.unsafe_load[width=WIDTH](place)
                    squares = dot[DType.bfloat16](squares, pairs, pairs)
            var size = bitcast[DType.float32, WIDTH](squares).reduce_add()
            largest = larger(size, largest)
            if not isfinite(size):
                self.softmax.totals[unsafe_offset=i * WIDTH] += 0 * largest_magnitude(
                    queries.unsafe_offset(i * stride), HEAD
                )
        self.bounded = sqrt(largest * self.largest_key) * SCALE < MOST_SCORE

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
        """The scores of a block of keys, the weights of the block before, the values of the one before that."""
        comptime assert not causal, "no decoder has keys in pairs"
        self.value_stride = ceildiv(capacity, KEY_GROUP) * PANEL * PANEL
        var other = self.scored.scores == self.scores
        var block = _Block(
            values.unsafe_bitcast[Int32]().unsafe_offset(key // 2 * PANEL),
            self.scores.unsafe_offset(Self._STRIP_SCORES if other else 0),
            self.weights.unsafe_offset(Self._STRIP_WEIGHTS if other else 0),
            key_count,
        )
        if self.bounded:
            self._step[bounded=True](count, keys.unsafe_bitcast[Int32]().unsafe_offset(key * _WORDS), block)
        else:
            self._step[bounded=False](count, keys.unsafe_bitcast[Int32]().unsafe_offset(key * _WORDS), block)

    def finish(mut self, count: Int):
        """Weighs the last block and adds the last values."""
        var none = _Block(self.weights, self.scores, self.weights, 0)
        for _ in range(2):
            if self.bounded:
                self._step[bounded=True](count, self.queries, none)
            else:
                self._step[bounded=False](count, self.queries, none)

    def _step[bounded: Bool](mut self, count: Int, keys: Data[DType.int32], block: _Block):
        var weighing = _Weighing[bounded](self.softmax, self.scored, count)
        self.product.multiply[accumulate=False](
            count,
            ceildiv(block.count, PANEL),
            self.queries,
            _WORDS,
            keys,
            PANEL * _WORDS,
            block.scores,
            KEY_BLOCK,
            weighing,
        )
        if self.weighed.count > 0:
            self.product.multiply[accumulate=True](
                count,
                HEAD_PANELS,
                self.weighed.weights,
                self.weighed.groups() * PANEL,
                self.weighed.values,
                self.value_stride,
                self.outputs,
                HEAD,
                weighing,
            )
        weighing.finish()
        comptime if not bounded:
            self._correct(count)
        self.weighed = self.scored
        self.scored = block

    def _correct(self, count: Int):
        """Brings O to the bounds that were raised while it was multiplied."""
        if self.softmax.corrections[unsafe_offset=Self.rows] == 0:
            return
        for query in range(count):
            var correction = self.softmax.corrections[unsafe_offset=query]
            self.softmax.corrections[unsafe_offset=query] = 1
            for j in range(query * HEAD, (query + 1) * HEAD, WIDTH):
                self.outputs.unsafe_store(j, self.outputs.unsafe_load[width=WIDTH](j) * correction)
        self.softmax.corrections[unsafe_offset=Self.rows] = 0

    @staticmethod
    def pack_group(
        keys: Data[DType.bfloat16],
        values: Data[DType.bfloat16],
        rows: Data[DType.float32],
        row_stride: Int,
        heads: Int,
        length: Int,
        matrix: Int,
        group: Int,
    ):
        """Rounds a group of rows to pairs of bfloat16."""
        pair_rows_of_group(keys, values, rows, row_stride, heads, length, matrix, group)

    def sums(self, query: Int) -> Data[DType.float32]:
        """O of a query."""
        return self.outputs.unsafe_offset(query * HEAD)

    def total(self, query: Int) -> Float32:
        """The sum l of a query's weights."""
        return self.softmax.totals.unsafe_load[width=WIDTH](query * WIDTH).reduce_add()

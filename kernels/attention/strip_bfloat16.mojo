"""Attention's step in bfloat16: both products on tiles (AMX) or by dot products, the softmax between them in float32.

    S = Q K^T    Q and K rounded to bfloat16, sums in float32
    P = 2^(S * log2(e) / 8 - m)    rounded to bfloat16, `cpu/exp2.mojo`
    l += sum P,  O += P V    V rounded to bfloat16, sums in float32; l of the rounded P, so that the weights P / l sum to 1

m is an integer, and need not be the largest score: weights of up to 2^8 are as exact as those of up to 1. It is raised
when a score exceeds it by 8, by a whole power of two: then O and l are rescaled, exactly. That happens for the first block
of keys, and for few others.

A panel of V has keys j and j + 16 of every 32 in one word, because P comes so: of two registers of scores, for 16 keys
each, one becomes the lower halves of 16 words and the other the upper ones.

       16 keys a panel                  16 columns a panel
       +---+---+-- -+---+               +---+---+---+---+       AMX: a strip of 32 queries is two registers high, all four
    32 | K^T: pairs |   |            64 | V: pairs of   |       products of a 2 x 2 block of them take 4 loads
 words +---+---+-- -+---+         words | keys          |
       +---+---+-- -+---+               +---+---+---+---+       in the first cache: 16 KB of scores, 8 of P, 8 of O, 4 of Q;
    Q  | S          | 32 queries     P  | O             |       K and V, 32 KB a step, come from the second
       +---+---+-- -+---+               +---+---+---+---+

Cost of 16 queries and 32 keys on AMX, counted in the code compiled for it; cycles of a core that begins a tile product every
16, and in each 2 loads, 2 vector instructions and 1 store of 64 bytes:

| what                                             | tile products | loads | stores | vector instructions |
| ------------------------------------------------ | ------------- | ----- | ------ | ------------------- |
| S: a register of Q and one of K serve two each   | 4             | 64    | 32     |                     |
| m: the largest score; every 128 keys, does it do | 0             | 32    | 0      | 32 + 16 * 2 / 4     |
| P: 32 powers in 12 instructions, their sum in 1  | 0             | 36    | 20     | 16 * 13 + 4         |
| O += P V: O is loaded and stored every 128 keys  | 4             | 80    | 16     |                     |
| cycles                                           | 128           | 106   | 68     | 126                 |

Tiles and vectors are equally busy: between 130 and 260 cycles, by how well they overlap. float32 with AVX-512 takes 2,048
for the same multiply-adds and 300 for the softmax. tiny.en's encoder has 54 million scores: 14 to 28 million cycles.
"""

from std.math import ceil, ceildiv, clamp
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import neg_inf

from ..cpu.exp2 import EXP2_STEPS, exp2_offset, exp2_pairs
from ..cpu.operand import dot
from ..cpu.strips import Strips
from ..cpu.tile import PANEL, VECTORS, WIDTH
from ..data import Data
from ..math import exp2, larger
from .pairs import KEY_GROUP
from .strip import HEAD, SCALE, StripSoftmax

comptime HEAD_PANELS = HEAD // PANEL

comptime _WORDS = HEAD // 2
"""Words of a query."""

comptime _HEADROOM = Float32(8)
"""By how much scores may exceed m."""

comptime _ONES = SIMD[DType.int32, WIDTH](0x3F803F80)
"""Pairs of 1 in bfloat16."""


struct Bfloat16Strips(StripSoftmax):
    """The state in float32, Q and P in strips of bfloat16; a block of queries is one strip."""

    comptime dtype = DType.float32
    comptime cache_type = DType.bfloat16
    comptime value_group = KEY_GROUP
    comptime rows = Strips.rows
    comptime query_block = Strips.rows
    comptime key_block = 128

    var product: Strips
    var queries: Data[DType.int32]
    var weights: Data[DType.int32]
    var scores: Data[DType.float32]
    var outputs: Data[DType.float32]
    var totals: Data[DType.float32]
    """Of each query, WIDTH partial sums of l."""
    var maxima: Data[DType.float32]
    """The bound m of each query."""
    var limits: Data[DType.float32]
    """Of each query, the largest score that m suits."""
    var offsets: Data[DType.float32]
    """Of each query, m as `exp2_pairs` takes it."""

    comptime _STRIP_WEIGHTS = Self.rows * Self.key_block // 2

    def __init__(out self):
        """Takes memory."""
        self.product = Strips()
        self.queries = unsafe_alloc[Int32](Self.rows * _WORDS, alignment=64)
        self.weights = unsafe_alloc[Int32](Self._STRIP_WEIGHTS, alignment=64)
        self.scores = unsafe_alloc[Float32](Self.rows * Self.key_block, alignment=64)
        self.outputs = unsafe_alloc[Float32](Self.rows * HEAD, alignment=64)
        self.totals = unsafe_alloc[Float32](Self.rows * WIDTH, alignment=64)
        self.maxima = unsafe_alloc[Float32](Self.rows)
        self.limits = unsafe_alloc[Float32](Self.rows)
        self.offsets = unsafe_alloc[Float32](Self.rows)
        for i in range(Self._STRIP_WEIGHTS):  # rows of a strip that no query has are multiplied, too
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
        for i in range(0, Self.rows * HEAD, WIDTH):
            self.outputs.unsafe_store(i, SIMD[DType.float32, WIDTH](0))
        for i in range(Self.rows):
            self.totals.unsafe_store(i * WIDTH, SIMD[DType.float32, WIDTH](0))
            self.maxima[unsafe_offset=i] = neg_inf[DType.float32]()
            self.limits[unsafe_offset=i] = neg_inf[DType.float32]()

    def step[
        causal: Bool
    ](
        self,
        first: Int,
        count: Int,
        keys: Data[DType.bfloat16],
        values: Data[DType.bfloat16],
        capacity: Int,
        key: Int,
        key_count: Int,
        seen: Int,
    ):
        """One step of the online softmax."""
        var groups = ceildiv(key_count, KEY_GROUP)
        self.product.multiply[accumulate=False](
            count,
            ceildiv(key_count, PANEL),
            self.queries,
            _WORDS,
            keys.unsafe_bitcast[Int32]().unsafe_offset(key * _WORDS),
            PANEL * _WORDS,
            self.scores,
            Self.key_block,
        )
        for i in range(count):
            self._bound(i, clamp(seen + i, 0, key_count) if causal else key_count, groups)
        for i in range(count):
            self._weigh(i, groups)
        self.product.multiply[accumulate=True](
            count,
            HEAD_PANELS,
            self.weights,
            groups * PANEL,
            values.unsafe_bitcast[Int32]().unsafe_offset(key // 2 * PANEL),
            ceildiv(capacity, KEY_GROUP) * PANEL * PANEL,
            self.outputs,
            HEAD,
        )

    def _bound(self, query: Int, seen: Int, groups: Int):
        """Makes sure that m suits a query's scores.

        Args:
            query: Which of the strip.
            seen: Keys that the query sees; scores behind them become minus infinity.
            groups: Times 32 keys.
        """
        var scores = self.scores.unsafe_offset(query * Self.key_block)
        for j in range(seen, groups * KEY_GROUP):
            scores[unsafe_offset=j] = neg_inf[DType.float32]()
        var top = SIMD[DType.float32, PANEL](neg_inf[DType.float32]())
        for j in range(0, groups * KEY_GROUP, PANEL):
            top = larger(top, scores.unsafe_load[width=PANEL](j))
        if top.gt(self.limits[unsafe_offset=query]).reduce_or():
            self._raise(query, top.reduce_max())

    @no_inline
    def _raise(self, query: Int, largest: Float32):
        """Raises m so that it suits a score, and brings O and l to it."""
        var new = ceil(largest * SCALE)
        var correction = SIMD[DType.float32, WIDTH](exp2(self.maxima[unsafe_offset=query] - new))
        self.maxima[unsafe_offset=query] = new
        self.limits[unsafe_offset=query] = (new + _HEADROOM) / SCALE
        self.offsets[unsafe_offset=query] = exp2_offset(new)
        var total = self.totals.unsafe_load[width=WIDTH](query * WIDTH)
        self.totals.unsafe_store(query * WIDTH, total * correction)
        for j in range(query * HEAD, (query + 1) * HEAD, WIDTH):
            self.outputs.unsafe_store(j, self.outputs.unsafe_load[width=WIDTH](j) * correction)

    def _weigh(self, query: Int, groups: Int):
        """Turns one query's scores into weights, in pairs, and adds them up."""
        var scores = self.scores.unsafe_offset(query * Self.key_block)
        var offset = self.offsets[unsafe_offset=query]
        var total = self.totals.unsafe_load[width=WIDTH](query * WIDTH)
        for j in range(groups):
            var p = exp2_pairs(
                scores.unsafe_load[width=PANEL](j * KEY_GROUP),
                scores.unsafe_load[width=PANEL](j * KEY_GROUP + PANEL),
                SCALE * EXP2_STEPS,
                offset,
            )
            self.weights.unsafe_store(Strips.place(query, j * PANEL, groups * PANEL), p)
            comptime for v in range(VECTORS):
                var words = p.slice[WIDTH, offset=v * WIDTH]()
                total = bitcast[DType.float32, WIDTH](
                    dot[DType.bfloat16](bitcast[DType.int32, WIDTH](total), words, _ONES)
                )
        self.totals.unsafe_store(query * WIDTH, total)

    def sums(self, query: Int) -> Data[DType.float32]:
        """O of a query."""
        return self.outputs.unsafe_offset(query * HEAD)

    def total(self, query: Int) -> Float32:
        """The sum l of a query's weights."""
        return self.totals.unsafe_load[width=WIDTH](query * WIDTH).reduce_add()

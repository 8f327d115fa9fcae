"""Attention's step for float32 on a tile unit: both products are sums of products of bfloat16 (`cpu/split_amx.mojo`).

    S = Q K^T    Q = Q1 + Q2, K = K1 + K2: S ~ Q1 K1^T + Q1 K2^T + Q2 K1^T, sums in float32
    P = 2^(S * log2(e) / 8 - m)    in float32, then P1 + P2
    l += sum P,  O += P V    P V ~ P1 V1 + P1 V2 + P2 V1, sums in float32

Keys and values come split (`pairs.mojo`), queries are split when their strip begins, weights as they are made: keys j and j + 16 of
every 32 share a word, so that two registers of weights become two of words.

       16 keys a panel                  16 columns a panel
       +---+---+-- -+---+               +---+---+---+---+       a strip of 32 queries, 128 keys at a time
  2*32 | K1^T, K2^T     |          2*64 | V1, V2        |
 words +---+---+-- -+---+         words |               |       in the first cache: 16 KB of scores, then P's 16 KB,
       +---+---+-- -+---+               +---+---+---+---+       8 of O, 8 of Q; K and V, 64 KB a step, come from the second
 Q1,Q2 | S          | 32 queries P1,P2  | O             |
       +---+---+-- -+---+               +---+---+---+---+

Cost of 16 queries and 32 keys: 24 tile products, 384 cycles, and about 16 * 2 * 18 vector instructions; float32 with AVX-512
takes 2,048 cycles for the same multiply-adds and 300 for the softmax.

m is an integer and need not be the largest score, as in `strip_bfloat16.mojo`. Errors are those of `cpu/split_amx.mojo`: about 2^-18
of a product in the mean square.
"""

from std.math import ceil, ceildiv
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import neg_inf

from ..cpu.amx import REGISTERS, TILE_BYTES, TILE_ROWS, Tiles
from ..cpu.operand import HARDWARE_AMX
from ..cpu.split_amx import TERMS, WORDS, multiply_terms, split_pairs, split_strip
from ..cpu.tile import PANEL
from ..data import Data
from ..math import exp2, multiply_add
from .pairs import KEY_GROUP
from .strip import HEAD, HEADROOM, SCALE, StripSoftmax, largest_lanes

comptime _HEAD_STEPS = HEAD // KEY_GROUP
"""Times 32 elements of a head."""

comptime _Vector = SIMD[DType.float32, PANEL]


struct SplitStrips(StripSoftmax):
    """The state in float32; a block of queries is one strip."""

    comptime dtype = DType.float32
    comptime cache_type = DType.bfloat16
    comptime panel_size = TERMS * PANEL * HEAD
    comptime value_group = KEY_GROUP
    comptime group_size = TERMS * KEY_GROUP * HEAD
    comptime rows = 2 * TILE_ROWS
    comptime query_block = Self.rows
    comptime key_block = 128

    var tiles: Tiles
    var registers: Data[DType.int32]
    """What stands for tile registers where there are none."""
    var queries: Data[DType.int32]
    var scores: Data[DType.float32]
    var weights: Data[DType.int32]
    var outputs: Data[DType.float32]
    var maxima: Data[DType.float32]
    """The bound m of each query."""
    var limits: Data[DType.float32]
    """Of each query, the largest score that m suits."""
    var totals: Data[DType.float32]
    """Of each query, PANEL partial sums of l."""

    def __init__(out self):
        """Takes memory, and the tile unit."""
        self.registers = unsafe_alloc[Int32](0 if HARDWARE_AMX else REGISTERS * TILE_BYTES // 4, alignment=64)
        self.tiles = Tiles(self.registers)
        self.tiles.begin()
        self.queries = unsafe_alloc[Int32](Self.rows * TERMS * HEAD // 2, alignment=64)
        self.scores = unsafe_alloc[Float32](Self.rows * Self.key_block, alignment=64)
        self.weights = unsafe_alloc[Int32](Self.rows * TERMS * Self.key_block // 2, alignment=64)
        self.outputs = unsafe_alloc[Float32](Self.rows * HEAD, alignment=64)
        self.maxima = unsafe_alloc[Float32](Self.rows)
        self.limits = unsafe_alloc[Float32](Self.rows)
        self.totals = unsafe_alloc[Float32](Self.rows * PANEL, alignment=64)
        for i in range(Self.rows * TERMS * Self.key_block // 2):  # rows that no query has are multiplied, too
            self.weights[unsafe_offset=i] = 0

    def end(self):
        """Gives both back."""
        self.tiles.end()
        self.registers.unsafe_free()
        self.queries.unsafe_free()
        self.scores.unsafe_free()
        self.weights.unsafe_free()
        self.outputs.unsafe_free()
        self.maxima.unsafe_free()
        self.limits.unsafe_free()
        self.totals.unsafe_free()

    def begin(mut self, queries: Data[DType.float32], stride: Int, count: Int):
        """Begins a strip of queries."""
        for s in range(0, count, TILE_ROWS):
            split_strip(
                queries.unsafe_offset(s * stride),
                stride,
                min(TILE_ROWS, count - s),
                HEAD,
                HEAD // 2,
                self.queries.unsafe_offset(s * TERMS * HEAD // 2),
            )
        for i in range(0, Self.rows * HEAD, PANEL):
            self.outputs.unsafe_store(i, _Vector(0))
        for i in range(Self.rows):
            self.maxima[unsafe_offset=i] = neg_inf[DType.float32]()
            self.limits[unsafe_offset=i] = neg_inf[DType.float32]()
            self.totals.unsafe_store(i * PANEL, _Vector(0))

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
        """One step of the online softmax."""
        comptime assert not causal, "every query sees all keys"
        var groups = ceildiv(key_count, KEY_GROUP)
        var strips = ceildiv(count, TILE_ROWS)
        var k = keys.unsafe_bitcast[Int32]().unsafe_offset(key * TERMS * HEAD // 2)
        var v = values.unsafe_bitcast[Int32]().unsafe_offset(key // KEY_GROUP * TERMS * WORDS)
        var value_stride = ceildiv(capacity, KEY_GROUP) * TERMS * WORDS
        comptime for s in range(1, 3):
            if s == strips:
                for j in range(0, key_count, KEY_GROUP):
                    var panels = k.unsafe_offset(j * TERMS * HEAD // 2)
                    var sums = self.scores.unsafe_offset(j).unsafe_bitcast[Int32]()
                    comptime for p in range(1, 3):
                        if ceildiv(min(KEY_GROUP, key_count - j), PANEL) == p:
                            multiply_terms[s, p](
                                self.tiles,
                                self.queries,
                                panels,
                                TERMS * _HEAD_STEPS * WORDS,
                                _HEAD_STEPS,
                                sums,
                                Self.key_block,
                            )
                self._weigh(count, key_count, groups)
                comptime for half in range(0, HEAD, KEY_GROUP):
                    multiply_terms[s, 2, accumulate=True](
                        self.tiles,
                        self.weights,
                        v.unsafe_offset(half // PANEL * value_stride),
                        value_stride,
                        groups,
                        self.outputs.unsafe_offset(half).unsafe_bitcast[Int32](),
                        HEAD,
                    )

    def _weigh(self, count: Int, key_count: Int, groups: Int):
        """Turns scores into weights, split, and adds them up."""
        var over = SIMD[DType.bool, PANEL](fill=False)
        for query in range(count):
            var scores = self.scores.unsafe_offset(query * Self.key_block)
            for j in range(key_count, groups * KEY_GROUP):
                scores[unsafe_offset=j] = neg_inf[DType.float32]()
            over |= largest_lanes[PANEL](scores, groups * KEY_GROUP).gt(self.limits[unsafe_offset=query])
        if over.reduce_or():
            self._raise(count, groups)
        for query in range(count):
            var scores = self.scores.unsafe_offset(query * Self.key_block)
            var m = _Vector(self.maxima[unsafe_offset=query])
            var total = self.totals.unsafe_load[width=PANEL](query * PANEL)
            var strip = self.weights.unsafe_offset(
                query // TILE_ROWS * groups * TERMS * WORDS + query % TILE_ROWS * PANEL
            )
            for group in range(groups):
                var x = scores.unsafe_load[width=PANEL](group * KEY_GROUP)
                var y = scores.unsafe_load[width=PANEL](group * KEY_GROUP + PANEL)
                x = exp2(multiply_add(x, _Vector(SCALE), -m))
                y = exp2(multiply_add(y, _Vector(SCALE), -m))
                total += x + y
                var pairs = split_pairs(x, y)
                comptime for t in range(TERMS):
                    strip.unsafe_store((group * TERMS + t) * WORDS, pairs[t])
            self.totals.unsafe_store(query * PANEL, total)

    @no_inline
    def _raise(self, count: Int, groups: Int):
        """Raises m of the queries that it does not suit, and brings O and l to it."""
        for query in range(count):
            var scores = self.scores.unsafe_offset(query * Self.key_block)
            var largest = largest_lanes[PANEL](scores, groups * KEY_GROUP).reduce_max()
            if largest <= self.limits[unsafe_offset=query]:
                continue
            var new = ceil(largest * SCALE)
            var correction = exp2(self.maxima[unsafe_offset=query] - new)
            self.maxima[unsafe_offset=query] = new
            self.limits[unsafe_offset=query] = (new + HEADROOM) / SCALE
            self.totals.unsafe_store(query * PANEL, self.totals.unsafe_load[width=PANEL](query * PANEL) * correction)
            comptime for j in range(0, HEAD, PANEL):
                self.sums(query).unsafe_store(j, self.sums(query).unsafe_load[width=PANEL](j) * correction)

    def sums(self, query: Int) -> Data[DType.float32]:
        """O of a query."""
        return self.outputs.unsafe_offset(query * HEAD)

    def total(self, query: Int) -> Float32:
        """The sum l of a query's weights."""
        return self.totals.unsafe_load[width=PANEL](query * PANEL).reduce_add()

"""Attention's step in int16, for CPUs that multiply pairs of it but not of bfloat16: sums of integers are exact.

    S = scale_q scale_k (Q K^T)         Q and K of 13 and 12 bits (`integers.mojo`)
    P = 2^((S - m) log2(e) / 8)         in 14 bits, m the largest score so far; l += sum P of what is left of them
    O = O 2^((m' - m) log2(e) / 8) + scale_v (P V)       V of 11 bits, in groups of 64

       16 keys a panel                  16 columns a panel, 64 values a group
       +---+---+-- -+---+               +---+---+---+---+      A strip has the rows of the CPU's register tile, 12, 6 or 3,
    64 | K^T: pairs |   |            64 | V: pairs      |      a block 256 keys: 6 KB of scores and 3 of P with AVX2. Each of
       +---+---+-- -+---+               +---+---+---+---+      the two products is one of 64 numbers a tile, 32 pairs, whose
    Q  | S          |   | strip      P  | added to O    |      sums are turned to float32 behind it.
       +---+---+-- -+---+               +---+---+---+---+

Bits are what int32 has room for: 64 * 8191 * 4095 and 64 * 16383 * 2047 are just below 2^31. A query's and a key's steps
are 2^-13 and 2^-12 of its largest number, where bfloat16 leaves 2^-9 of every number.

Cost of a strip of 6 queries and 64 keys with AVX2: 2 * 6 * 64 * 64 / 16 = 3,072 products of pairs and as many additions, where
float32 takes 6,144 multiply-adds; and 6 * 64 / 8 = 48 times 17 instructions for the powers.
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import bitcast, stack_allocation
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import neg_inf

from ..cpu.exp2 import exp2_integers
from ..cpu.narrow import add_dots
from ..cpu.operand import ONES, dot, largest_magnitude, pair_words
from ..cpu.tile import PANEL, ROWS, VECTORS, WIDTH, tile_panels
from ..data import Data
from ..math import exp2, multiply_add
from .integers import PANEL_WORDS, VALUE_GROUP, WORDS, integer_rows_of_group, paired, reciprocal
from .strip import HEAD, HEAD_PANELS, SCALE, RoundedSoftmax, largest_lanes


comptime _QUERY_STEPS = Float32(8191)
"""Largest integer of a query."""

comptime _LEAST_SCALE = Float32(1e-30)
"""A query of less is one of zeros: minus infinity, of a key that is not there, times its scale must stay what it is."""

comptime _Vector = SIMD[DType.float32, PANEL]


@always_inline
def _scaled_sums[
    panels: Int
](a: Data[DType.int32], a_stride: Int, b: Data[DType.int32]) -> Array[
    SIMD[DType.float32, WIDTH], ROWS * panels * VECTORS
]:
    """The products of a strip of 64 numbers a row and some panels, times the panels' scales.

    Parameters:
        panels: Panels of a tile.

    Args:
        a: The strip.
        a_stride: Words from one row of it to the next.
        b: The first panel.
    """
    comptime columns = panels * VECTORS
    var totals = Array[SIMD[DType.int32, WIDTH], ROWS * panels * VECTORS](fill=SIMD[DType.int32, WIDTH](0))
    add_dots[DType.int16, True](totals, a, a_stride, b.unsafe_offset(PANEL), PANEL_WORDS, WORDS)
    var sums = Array[SIMD[DType.float32, WIDTH], ROWS * panels * VECTORS](uninitialized=True)
    comptime for j in range(columns):
        var place = j // VECTORS * PANEL_WORDS + j % VECTORS * WIDTH
        var scale = b.unsafe_bitcast[Float32]().unsafe_load[width=WIDTH](place)
        comptime for i in range(ROWS):
            sums[i * columns + j] = totals[i * columns + j].cast[DType.float32]() * scale
    return sums^


struct Int16Strips(RoundedSoftmax):
    """The state in float32, m the largest score so far, not yet times SCALE."""

    comptime dtype = DType.float32
    comptime cache_type = DType.int16
    comptime panel_size = 2 * PANEL_WORDS
    comptime value_group = VALUE_GROUP
    comptime group_size = HEAD_PANELS * 2 * PANEL_WORDS
    comptime rows = ROWS
    comptime query_block = 48  # a multiple of every CPU's ROWS
    comptime key_block = 256

    var queries: Data[DType.int32]
    """Q: words of a query, one query after the other."""
    var weights: Data[DType.int32]
    """P of a strip: words of a query, one query after the other."""
    var memory: Data[DType.float32]
    var poison: Float32
    """0, or NaN where a key of the head holds a number that is none: integers would not tell."""

    comptime _SCORES = Self.query_block * HEAD
    comptime _SCALES = Self._SCORES + ROWS * Self.key_block
    comptime _MAXIMA = Self._SCALES + Self.query_block
    comptime _TOTALS = Self._MAXIMA + Self.query_block
    comptime _SIZE = Self._TOTALS + Self.query_block
    comptime _STRIP_WORDS = Self.key_block // 2

    def __init__(out self):
        """Takes memory."""
        self.queries = unsafe_alloc[Int32](Self.query_block * WORDS, alignment=64)
        self.weights = unsafe_alloc[Int32](ROWS * Self._STRIP_WORDS, alignment=64)
        self.memory = unsafe_alloc[Float32](Self._SIZE, alignment=64)
        self.poison = 0
        for i in range(Self.query_block * WORDS):  # rows of a strip that no query has are multiplied, too
            self.queries[unsafe_offset=i] = 0
        for i in range(ROWS * Self._STRIP_WORDS):
            self.weights[unsafe_offset=i] = 0

    def end(self):
        """Gives it back."""
        self.queries.unsafe_free()
        self.weights.unsafe_free()
        self.memory.unsafe_free()

    def meet(mut self, keys: Data[DType.int16], capacity: Int):
        """Looks at the scales of the head's keys."""
        var scales = keys.unsafe_bitcast[Float32]()
        var poison = _Vector(0)
        for panel in range(ceildiv(capacity, PANEL)):
            poison = multiply_add(scales.unsafe_load[width=PANEL](panel * PANEL_WORDS), _Vector(0), poison)
        self.poison = poison.reduce_add()

    def begin(mut self, queries: Data[DType.float32], stride: Int, count: Int):
        """Begins a block of queries."""
        for i in range(count):
            var query = queries.unsafe_offset(i * stride)
            var scale = largest_magnitude(query, HEAD) / _QUERY_STEPS
            var inverse = reciprocal(scale)
            if scale < _LEAST_SCALE:
                scale = 1
                inverse = 0
            self.memory[unsafe_offset=Self._SCALES + i] = scale + self.poison
            self.memory[unsafe_offset=Self._MAXIMA + i] = neg_inf[DType.float32]()
            self.memory[unsafe_offset=Self._TOTALS + i] = 0
            comptime for j in range(0, WORDS, PANEL):
                var low = query.unsafe_load[width=PANEL](2 * j)
                var high = query.unsafe_load[width=PANEL](2 * j + PANEL)
                self.queries.unsafe_store(i * WORDS + j, paired(low, high, inverse))
        for i in range(0, ceildiv(count, ROWS) * ROWS * HEAD, WIDTH):
            self.memory.unsafe_store(i, SIMD[DType.float32, WIDTH](0))

    def step[
        causal: Bool
    ](
        mut self,
        first: Int,
        count: Int,
        keys: Data[DType.int16],
        values: Data[DType.int16],
        capacity: Int,
        key: Int,
        key_count: Int,
        seen: Int,
    ):
        """One step of the online softmax."""
        comptime assert not causal, "no decoder has keys in integers"
        var k = keys.unsafe_bitcast[Int32]().unsafe_offset(key // PANEL * PANEL_WORDS)
        comptime together = tile_panels(ROWS)
        var panels = ceildiv(key_count, PANEL)
        var whole = panels // together * together
        self._score[together](first, k, 0, whole)
        comptime if together > 1:
            self._score[1](first, k, whole, panels)
        var corrections = stack_allocation[ROWS, DType.float32]()
        for i in range(count, ROWS):  # rows that no query has
            corrections[unsafe_offset=i] = 0
        for i in range(count):
            corrections[unsafe_offset=i] = self._weigh(first + i, i, key_count)
        var v = values.unsafe_bitcast[Int32]().unsafe_offset(key // VALUE_GROUP * HEAD_PANELS * PANEL_WORDS)
        self._add(first, v, ceildiv(key_count, VALUE_GROUP), corrections)

    @no_inline
    def _score[together: Int](self, first: Int, keys: Data[DType.int32], begin: Int, end: Int):
        """S of a strip, but for the scales of the queries, with some panels of keys.

        Parameters:
            together: Panels of a tile.

        Args:
            first: The strip's first query, within the block.
            keys: The block's keys.
            begin: First panel.
            end: Panel behind the last one.
        """
        var scores = self.memory.unsafe_offset(Self._SCORES)
        var queries = self.queries.unsafe_offset(first * WORDS)
        for panel in range(begin, end, together):
            var panels = keys.unsafe_offset(panel * PANEL_WORDS)
            var sums = _scaled_sums[together](queries, WORDS, panels)
            comptime for i in range(ROWS):
                comptime for j in range(together * VECTORS):
                    scores.unsafe_store(
                        i * Self.key_block + panel * PANEL + j * WIDTH, sums[i * together * VECTORS + j]
                    )

    @no_inline
    def _weigh(self, query: Int, row: Int, key_count: Int) -> Float32:
        """Turns a query's scores into weights and brings its maximum and total up to date.

        Args:
            query: The query, within the block.
            row: The same, within the strip.
            key_count: Keys of the step.

        Returns:
            What the sums so far have to be multiplied with.
        """
        comptime pair = 2 * PANEL
        var scores = self.memory.unsafe_offset(Self._SCORES + row * Self.key_block)
        var padded = ceildiv(key_count, VALUE_GROUP) * VALUE_GROUP
        for j in range(key_count, padded):
            scores[unsafe_offset=j] = neg_inf[DType.float32]()
        var old = self.memory[unsafe_offset=Self._MAXIMA + query]
        var new = max(old, largest_lanes[WIDTH](scores, padded).reduce_max())
        var factor = self.memory[unsafe_offset=Self._SCALES + query] * SCALE
        var words = self.weights.unsafe_offset(row * Self._STRIP_WORDS)
        var total = SIMD[DType.int32, WIDTH](0)
        for j in range(0, padded, pair):
            comptime for v in range(0, PANEL, WIDTH):
                var low = exp2_integers(scores.unsafe_load[width=WIDTH](j + v), new, factor)
                var high = exp2_integers(scores.unsafe_load[width=WIDTH](j + PANEL + v), new, factor)
                var pairs = pair_words(bitcast[DType.int32, WIDTH](low), bitcast[DType.int32, WIDTH](high))
                words.unsafe_store(j // 2 + v, pairs)
                total = dot[DType.int16](total, pairs, ONES)
        var correction = exp2((old - new) * factor)
        self.memory[unsafe_offset=Self._MAXIMA + query] = new
        var l = self.memory[unsafe_offset=Self._TOTALS + query]
        self.memory[unsafe_offset=Self._TOTALS + query] = l * correction + total.cast[DType.float32]().reduce_add()
        return correction

    @no_inline
    def _add(self, first: Int, values: Data[DType.int32], groups: Int, corrections: Data[DType.float32]):
        """O of a strip.

        Args:
            first: The strip's first query, within the block.
            values: The block's values.
            groups: Times 64 values.
            corrections: What O so far has to be multiplied with, for each query.
        """
        comptime together = tile_panels(ROWS)
        for panel in range(0, HEAD_PANELS, together):
            for group in range(groups):
                var panels = values.unsafe_offset((group * HEAD_PANELS + panel) * PANEL_WORDS)
                var sums = _scaled_sums[together](self.weights.unsafe_offset(group * WORDS), Self._STRIP_WORDS, panels)
                comptime for i in range(ROWS):
                    var correction = SIMD[DType.float32, WIDTH](corrections[unsafe_offset=i] if group == 0 else 1)
                    var o = self.sums(first + i).unsafe_offset(panel * PANEL)
                    comptime for j in range(together * VECTORS):
                        var so_far = o.unsafe_load[width=WIDTH](j * WIDTH)
                        o.unsafe_store(j * WIDTH, multiply_add(so_far, correction, sums[i * together * VECTORS + j]))

    @staticmethod
    def pack_group(
        keys: Data[DType.int16],
        values: Data[DType.int16],
        rows: Data[DType.float32],
        row_stride: Int,
        heads: Int,
        length: Int,
        matrix: Int,
        group: Int,
    ):
        """Rounds a group of rows to integers."""
        integer_rows_of_group(keys, values, rows, row_stride, heads, length, matrix, group)

    def sums(self, query: Int) -> Data[DType.float32]:
        """O of a query."""
        return self.memory.unsafe_offset(query * HEAD)

    def total(self, query: Int) -> Float32:
        """The sum l of a query's weights."""
        return self.memory[unsafe_offset=Self._TOTALS + query]

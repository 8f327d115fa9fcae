"""Attention's step in float32: scores and weights of a strip lie in the first cache, products are those of linear layers.

       16 keys a panel                  16 columns a panel
       +---+---+-- -+---+               +---+---+---+---+      A strip has the rows of the CPU's register tile, 12, 6 or 3,
    64 | K^T        |   |           256 | V |   |   |   |      a block 256 keys: 12 KB of scores with AVX-512, 6 KB with AVX2.
       +---+---+-- -+---+               |   |   |   |   |      Keys and values may be narrower than float32: they are widened
       +---+---+-- -+---+               +---+---+---+---+      in registers.
    Q  | S -> P     |   | strip      P  | added         |
       +---+---+-- -+---+               +---+---+---+---+      O = correction * O + added, in a pass over the strip
"""

from std.math import ceildiv, clamp
from std.memory import stack_allocation
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import neg_inf

from ..cpu.tile import PANEL, ROWS, WIDTH, multiply_tile
from ..data import Data
from ..math import exp2, multiply_add
from .strip import HEAD, HEAD_PANELS, SCALE, StripSoftmax, largest_lanes


struct Float32Strips[queries_type: DType, keys_type: DType](StripSoftmax):
    """The state in float32, m the largest score so far."""

    comptime dtype = Self.queries_type
    comptime cache_type = Self.keys_type
    comptime panel_size = PANEL * HEAD
    comptime value_group = 1
    comptime group_size = HEAD
    comptime rows = ROWS
    comptime query_block = 48  # a multiple of every CPU's ROWS
    comptime key_block = 256

    var queries: Data[Self.dtype]
    var stride: Int
    var memory: Data[DType.float32]

    comptime _SCORES = Self.query_block * HEAD
    comptime _ADDED = Self._SCORES + ROWS * Self.key_block
    comptime _MAXIMA = Self._ADDED + ROWS * HEAD
    comptime _TOTALS = Self._MAXIMA + Self.query_block
    comptime _SIZE = Self._TOTALS + Self.query_block

    def __init__(out self):
        """Takes memory."""
        self.memory = unsafe_alloc[Float32](Self._SIZE, alignment=64)
        self.queries = self.memory.unsafe_bitcast[Scalar[Self.dtype]]()
        self.stride = 0

    def end(self):
        """Gives it back."""
        self.memory.unsafe_free()

    def begin(mut self, queries: Data[Self.dtype], stride: Int, count: Int):
        """Begins a block of queries."""
        self.queries = queries
        self.stride = stride
        for i in range(count):
            self.memory[unsafe_offset=Self._MAXIMA + i] = neg_inf[DType.float32]()
            self.memory[unsafe_offset=Self._TOTALS + i] = 0
        for i in range(0, count * HEAD, WIDTH):
            self.memory.unsafe_store(i, SIMD[DType.float32, WIDTH](0))

    def step[
        causal: Bool
    ](
        mut self,
        first: Int,
        count: Int,
        keys: Data[Self.cache_type],
        values: Data[Self.cache_type],
        capacity: Int,
        key: Int,
        key_count: Int,
        seen: Int,
    ):
        """One step of the online softmax."""
        comptime assert (
            Self.cache_type == DType.float32 or Self.cache_type == DType.float16
        ), "narrower keys and values lie in pairs or bytes, which have steps of their own"
        var scores = self.memory.unsafe_offset(Self._SCORES)
        var added = self.memory.unsafe_offset(Self._ADDED)
        var panels = ceildiv(key_count, PANEL)
        multiply_tile(
            count,
            panels,
            self.queries.unsafe_offset(first * self.stride),
            self.stride,
            keys.unsafe_offset(key * HEAD),
            HEAD * PANEL,
            PANEL,
            HEAD,
            scores,
            Self.key_block,
        )
        var corrections = stack_allocation[ROWS, DType.float32]()
        for i in range(count):
            corrections[unsafe_offset=i] = _soften(
                scores.unsafe_offset(i * Self.key_block),
                clamp(seen + i, 0, key_count) if causal else key_count,
                panels * PANEL,
                self.memory.unsafe_offset(Self._MAXIMA + first + i),
                self.memory.unsafe_offset(Self._TOTALS + first + i),
            )
        multiply_tile(
            count,
            HEAD_PANELS,
            scores,
            Self.key_block,
            values.unsafe_offset(key * HEAD),
            PANEL,
            HEAD,
            key_count,
            added,
            HEAD,
        )
        for i in range(count):
            var correction = SIMD[DType.float32, WIDTH](corrections[unsafe_offset=i])
            var sums = self.sums(first + i)
            for j in range(0, HEAD, WIDTH):
                var o = multiply_add(
                    sums.unsafe_load[width=WIDTH](j), correction, added.unsafe_load[width=WIDTH](i * HEAD + j)
                )
                sums.unsafe_store(j, o)

    def sums(self, query: Int) -> Data[DType.float32]:
        """O of a query."""
        return self.memory.unsafe_offset(query * HEAD)

    def total(self, query: Int) -> Float32:
        """The sum l of a query's weights."""
        return self.memory[unsafe_offset=Self._TOTALS + query]


def _soften(
    scores: Data[DType.float32], seen: Int, padded: Int, maximum: Data[DType.float32], total: Data[DType.float32]
) -> Float32:
    """Turns one query's scores into exponentials and brings its running maximum and total up to date.

    Args:
        scores: `padded` scores, not yet scaled; those from `seen` on become 0.
        seen: Keys that the query sees.
        padded: A multiple of PANEL.
        maximum: m, updated.
        total: l, updated.

    Returns:
        What the sums so far have to be multiplied with.
    """
    for j in range(seen, padded):
        scores[unsafe_offset=j] = neg_inf[DType.float32]()
    var old = maximum[]
    var new = max(old, largest_lanes[WIDTH](scores, padded).reduce_max() * SCALE)
    var sum = SIMD[DType.float32, WIDTH](0)
    for j in range(0, padded, WIDTH):
        var p = exp2(multiply_add(scores.unsafe_load[width=WIDTH](j), SIMD[DType.float32, WIDTH](SCALE), -new))
        scores.unsafe_store(j, p)
        sum += p
    var correction = exp2(old - new)
    maximum[] = new
    total[] = total[] * correction + sum.reduce_add()
    return correction

"""Fused attention: O = softmax(Q K^T / sqrt(d)) V, without the matrix of scores in memory.

Shapes: Q (B, T, H*64) rows of any stride; K in panels of 16 keys (B, H, ceil(C/16), 64, 16), so that Q K^T is the tile
product of the linear layers; V (B, H, C, 64); O (B, T, H*64). Query t of batch row b sees the first `visible(b, t)` keys:
all of them in the encoder and in cross-attention, `past[b] + t + 1` in the decoder.

One task is a block of 48 queries of one head. It walks over blocks of 256 keys; a strip of `ROWS` queries keeps its
scores in the first-level cache, the block of keys and values stays in the second while the strips pass over it:

            256 keys                     for each block j of keys (FlashAttention-2, algorithm 1):
          +----------+----------+-- -       S_j = Q K_j^T / sqrt(d)
    strip | S -> P   |          |           m_j = max(m_{j-1}, rowmax S_j)
     of Q +----------+----------+-- -       P_j = exp(S_j - m_j)
          |          |          |           l_j = exp(m_{j-1} - m_j) l_{j-1} + rowsum P_j
          +----------+----------+-- -       O_j = exp(m_{j-1} - m_j) O_{j-1} + P_j V_j
                                         at the end O = O_n / l_n

Cost: 4 * B*H*T*S*64 operations and B*H*T*S exponentials; bytes: Q and O once, K and V once per block of 48 queries.
One query per head (decoding) is bound by reading K and V: 2 * B*H*S*64 elements.

Dao, "FlashAttention-2", arXiv:2307.08691; Milakov and Gimelshein, "Online normalizer calculation for softmax",
arXiv:1805.02867.
"""

from std.math import ceildiv
from std.memory import stack_allocation
from std.utils.numerics import neg_inf

from ..cpu.threads import share
from ..cpu.tile import PANEL, ROWS, WIDTH, multiply_tile
from ..data import Data
from ..math import LOG2_E, exp2

comptime HEAD = 64
"""Elements of one head: Whisper's, from tiny to large."""

comptime HEAD_PANELS = HEAD // PANEL

comptime QUERY_BLOCK = 48
"""Queries that share one pass over the keys; a multiple of every CPU's ROWS."""

comptime KEY_BLOCK = 256
"""Keys whose scores a strip holds at a time."""

comptime SCALE = Float32(0.125) * LOG2_E
"""1 / sqrt(HEAD) and the step from powers of e to powers of 2: maxima and exponents are kept times log2(e)."""


@fieldwise_init
struct Attention[dtype: DType, cache_type: DType]:
    """The operands of one attention op."""

    var output: Data[Self.dtype]
    var queries: Data[Self.dtype]
    var query_stride: Int
    var keys: Data[Self.cache_type]
    var values: Data[Self.cache_type]
    var capacity: Int
    var past: Optional[Data[DType.int32]]
    var batch: Int
    var heads: Int
    var length: Int

    def run[causal: Bool](self):
        """Computes all rows and heads on all threads.

        Parameters:
            causal: Whether query t of row b sees `past[b] + t + 1` keys instead of `capacity`.
        """
        var blocks = ceildiv(self.length, QUERY_BLOCK)

        @always_inline
        def some_blocks(begin: Int, end: Int) {imm}:
            for task in range(begin, end):
                var matrix = task // blocks
                var first = task % blocks * QUERY_BLOCK
                self._block[causal](
                    matrix // self.heads, matrix % self.heads, first, min(first + QUERY_BLOCK, self.length)
                )

        share(some_blocks, self.batch * self.heads * blocks)

    def _block[causal: Bool](self, row: Int, head: Int, first: Int, last: Int):
        """Queries `first ..< last` of one head: all blocks of keys, then the division by l."""
        var sums = stack_allocation[QUERY_BLOCK * HEAD, DType.float32, alignment=64]()
        var maxima = stack_allocation[QUERY_BLOCK, DType.float32]()
        var totals = stack_allocation[QUERY_BLOCK, DType.float32]()
        for i in range(last - first):
            maxima[unsafe_offset=i] = neg_inf[DType.float32]()
            totals[unsafe_offset=i] = 0
        for i in range(0, (last - first) * HEAD, WIDTH):
            sums.unsafe_store(i, SIMD[DType.float32, WIDTH](0))

        var offset = 0
        comptime if causal:
            offset = Int(self.past.value()[unsafe_offset=row]) + 1
        var visible = offset + last - 1 if causal else self.capacity
        for key in range(0, visible, KEY_BLOCK):
            var keys = min(KEY_BLOCK, visible - key)
            for query in range(first, last, ROWS):
                var at = query - first
                self._strip[causal](
                    min(ROWS, last - query),
                    row,
                    head,
                    query,
                    key,
                    keys,
                    offset,
                    sums.unsafe_offset(at * HEAD),
                    maxima.unsafe_offset(at),
                    totals.unsafe_offset(at),
                )

        for i in range(last - first):
            var o = self.output.unsafe_offset(((row * self.length + first + i) * self.heads + head) * HEAD)
            var inverse = 1 / totals[unsafe_offset=i]
            for j in range(0, HEAD, WIDTH):
                o.unsafe_store(j, (sums.unsafe_load[width=WIDTH](i * HEAD + j) * inverse).cast[Self.dtype]())

    def _strip[
        causal: Bool
    ](
        self,
        rows: Int,
        row: Int,
        head: Int,
        query: Int,
        key: Int,
        keys: Int,
        offset: Int,
        sums: Data[DType.float32],
        maxima: Data[DType.float32],
        totals: Data[DType.float32],
    ):
        """One step of the online softmax: `rows` queries against `keys` keys from `key` on."""
        var scores = stack_allocation[ROWS * KEY_BLOCK, DType.float32, alignment=64]()
        var added = stack_allocation[ROWS * HEAD, DType.float32, alignment=64]()
        var corrections = stack_allocation[ROWS, DType.float32]()
        var matrix = row * self.heads + head
        var panels = ceildiv(keys, PANEL)
        multiply_tile(
            rows,
            panels,
            self.queries.unsafe_offset((row * self.length + query) * self.query_stride + head * HEAD),
            self.query_stride,
            self.keys.unsafe_offset((matrix * ceildiv(self.capacity, PANEL) + key // PANEL) * HEAD * PANEL),
            HEAD * PANEL,
            PANEL,
            HEAD,
            scores,
            KEY_BLOCK,
        )
        for i in range(rows):
            var seen = min(keys, offset + query + i - key) if causal else keys
            corrections[unsafe_offset=i] = _soften(
                scores.unsafe_offset(i * KEY_BLOCK),
                max(seen, 0),
                panels * PANEL,
                maxima.unsafe_offset(i),
                totals.unsafe_offset(i),
            )
        multiply_tile(
            rows,
            HEAD_PANELS,
            scores,
            KEY_BLOCK,
            self.values.unsafe_offset((matrix * self.capacity + key) * HEAD),
            PANEL,
            HEAD,
            keys,
            added,
            HEAD,
        )
        for i in range(rows):
            var correction = SIMD[DType.float32, WIDTH](corrections[unsafe_offset=i])
            for j in range(i * HEAD, (i + 1) * HEAD, WIDTH):
                var o = sums.unsafe_load[width=WIDTH](j).fma(correction, added.unsafe_load[width=WIDTH](j))
                sums.unsafe_store(j, o)


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
    var top = SIMD[DType.float32, WIDTH](neg_inf[DType.float32]())
    for j in range(0, padded, WIDTH):
        top = max(top, scores.unsafe_load[width=WIDTH](j))
    var old = maximum[]
    var new = max(old, top.reduce_max() * SCALE)
    var sum = SIMD[DType.float32, WIDTH](0)
    for j in range(0, padded, WIDTH):
        var p = exp2(scores.unsafe_load[width=WIDTH](j).fma(SIMD[DType.float32, WIDTH](SCALE), -new))
        scores.unsafe_store(j, p)
        sum += p
    var correction = exp2(old - new)
    maximum[] = new
    total[] = total[] * correction + sum.reduce_add()
    return correction

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

from std.math import ceildiv, exp
from std.memory import stack_allocation
from std.utils.numerics import neg_inf

from ..cpu.threads import share
from ..cpu.tile import PANEL, ROWS, VECTORS, WIDTH, multiply_tile, tile_panels
from ..data import Data

comptime HEAD = 64
"""Elements of one head: Whisper's, from tiny to large."""

comptime HEAD_PANELS = HEAD // PANEL

comptime QUERY_BLOCK = 48
"""Queries that share one pass over the keys; a multiple of every CPU's ROWS."""

comptime KEY_BLOCK = 256
"""Keys whose scores a strip holds at a time."""

comptime SCALE = Float32(0.125)
"""1 / sqrt(HEAD)."""


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
            var whole = first + (last - first) // ROWS * ROWS
            for query in range(first, whole, ROWS):
                var at = query - first
                self._strip[ROWS, causal](
                    row, head, query, key, keys, offset,
                    sums.unsafe_offset(at * HEAD), maxima.unsafe_offset(at), totals.unsafe_offset(at),
                )
            comptime for rest in range(1, ROWS):
                if last - whole == rest:
                    var at = whole - first
                    self._strip[rest, causal](
                        row, head, whole, key, keys, offset,
                        sums.unsafe_offset(at * HEAD), maxima.unsafe_offset(at), totals.unsafe_offset(at),
                    )

        for i in range(last - first):
            var o = self.output.unsafe_offset(((row * self.length + first + i) * self.heads + head) * HEAD)
            var inverse = 1 / totals[unsafe_offset=i]
            for j in range(0, HEAD, WIDTH):
                o.unsafe_store(j, (sums.unsafe_load[width=WIDTH](i * HEAD + j) * inverse).cast[Self.dtype]())

    @always_inline
    def _strip[
        rows: Int, causal: Bool
    ](
        self,
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
        var scores = stack_allocation[rows * KEY_BLOCK, DType.float32, alignment=64]()
        var matrix = row * self.heads + head
        self._scores[rows](row, head, query, key, keys, scores)

        for i in range(rows):
            var s = scores.unsafe_offset(i * KEY_BLOCK)
            var seen = min(keys, offset + query + i - key) if causal else keys
            var padded = ceildiv(keys, PANEL) * PANEL
            for j in range(max(seen, 0), padded):
                s[unsafe_offset=j] = neg_inf[DType.float32]()
            var top = SIMD[DType.float32, WIDTH](neg_inf[DType.float32]())
            for j in range(0, padded, WIDTH):
                top = max(top, s.unsafe_load[width=WIDTH](j))
            var old = maxima[unsafe_offset=i]
            var new = max(old, top.reduce_max() * SCALE)
            var total = SIMD[DType.float32, WIDTH](0)
            for j in range(0, padded, WIDTH):
                var p = exp(s.unsafe_load[width=WIDTH](j).fma(SIMD[DType.float32, WIDTH](SCALE), SIMD[DType.float32, WIDTH](-new)))
                s.unsafe_store(j, p)
                total += p
            var correction = exp(old - new)
            maxima[unsafe_offset=i] = new
            totals[unsafe_offset=i] = totals[unsafe_offset=i] * correction + total.reduce_add()
            var o = sums.unsafe_offset(i * HEAD)
            for j in range(0, HEAD, WIDTH):
                o.unsafe_store(j, o.unsafe_load[width=WIDTH](j) * correction)

        comptime together = min(HEAD_PANELS, tile_panels(rows))
        comptime for panel in range(0, HEAD_PANELS, together):
            var added = multiply_tile[rows, together](
                scores,
                KEY_BLOCK,
                self.values.unsafe_offset((matrix * self.capacity + key) * HEAD + panel * PANEL),
                PANEL,
                HEAD,
                keys,
            )
            comptime for i in range(rows):
                comptime for v in range(together * VECTORS):
                    var at = i * HEAD + panel * PANEL + v * WIDTH
                    sums.unsafe_store(at, sums.unsafe_load[width=WIDTH](at) + added[i * together * VECTORS + v])

    @always_inline
    def _scores[
        rows: Int
    ](self, row: Int, head: Int, query: Int, key: Int, keys: Int, scores: Data[DType.float32]):
        """Stores Q K^T of a strip, `rows x KEY_BLOCK`, in whole panels of keys."""
        comptime together = tile_panels(rows)
        var panels = ceildiv(keys, PANEL)
        var q = self.queries.unsafe_offset((row * self.length + query) * self.query_stride + head * HEAD)
        var matrix = row * self.heads + head
        var k = self.keys.unsafe_offset((matrix * ceildiv(self.capacity, PANEL) + key // PANEL) * HEAD * PANEL)
        var panel = 0
        while panel < panels:
            if panel + together <= panels:
                self._store_scores[rows, together](q, k, panel, scores)
                panel += together
            else:
                self._store_scores[rows, 1](q, k, panel, scores)
                panel += 1

    @always_inline
    def _store_scores[
        rows: Int, panels: Int
    ](self, q: Data[Self.dtype], k: Data[Self.cache_type], panel: Int, scores: Data[DType.float32]):
        var s = multiply_tile[rows, panels](
            q, self.query_stride, k.unsafe_offset(panel * HEAD * PANEL), HEAD * PANEL, PANEL, HEAD
        )
        comptime for i in range(rows):
            comptime for v in range(panels * VECTORS):
                scores.unsafe_store(i * KEY_BLOCK + panel * PANEL + v * WIDTH, s[i * panels * VECTORS + v])

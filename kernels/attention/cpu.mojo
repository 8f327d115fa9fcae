"""Fused attention: O = softmax(Q K^T / sqrt(d)) V, without the matrix of scores in memory.

Shapes: Q (B, T, H*64) rows of any stride; O (B, T, H*64); keys and values packed for the products they take part in
(`heads.mojo`, `pairs.mojo`), C of them for each head. Query t of batch row b sees the first `visible(b, t)` keys: all of
them in the encoder and in cross-attention, `past[b] + t + 1` in the decoder.

One task is a block of queries of one head. It walks over blocks of keys; a strip of queries keeps its scores in the
first-level cache, the block of keys and values stays in the second while the strips pass over it:

            one block                    for each block j of keys (FlashAttention-2, algorithm 1):
          +----------+----------+-- -       S_j = Q K_j^T / sqrt(d)
    strip | S -> P   |          |           m_j = max(m_{j-1}, rowmax S_j)
     of Q +----------+----------+-- -       P_j = exp(S_j - m_j)
          |          |          |           l_j = exp(m_{j-1} - m_j) l_{j-1} + rowsum P_j
          +----------+----------+-- -       O_j = exp(m_{j-1} - m_j) O_{j-1} + P_j V_j
                                         at the end O = O_n / l_n

That step is where bodies differ: `strip_float32.mojo`; for keys and values of bfloat16 `strip_bfloat16.mojo`, or
`strip_split.mojo` where two of them stand for a float32; `strip_int16.mojo` for those of int16; `row_bytes.mojo` for those of
bytes and few queries.

Cost: 4 * B*H*T*S*64 operations and B*H*T*S exponentials; bytes: Q and O once, K and V once per block of queries. One query
per head (decoding) is bound by reading K and V: 2 * B*H*S*64 elements.

Dao, "FlashAttention-2", arXiv:2307.08691; Milakov and Gimelshein, "Online normalizer calculation for softmax",
arXiv:1805.02867.
"""

from std.math import ceildiv

from ..cpu.threads import Workers
from ..cpu.tile import PANEL, WIDTH
from ..data import Data
from .pairs import Pairs, may_pair, pair_cache
from .row_bytes import ByteRow
from .strip import HEAD, StripSoftmax
from .strip_bfloat16 import Bfloat16Strips
from .strip_float32 import Float32Strips


@fieldwise_init
struct Attention[Strips: StripSoftmax]:
    """The operands of one attention op.

    Parameters:
        Strips: The step.
    """

    var output: Data[Self.Strips.dtype]
    var queries: Data[Self.Strips.dtype]
    var query_stride: Int
    var keys: Data[Self.Strips.cache_type]
    var values: Data[Self.Strips.cache_type]
    var capacity: Int
    var past: Optional[Data[DType.int32]]
    var batch: Int
    var heads: Int
    var length: Int

    def run[W: Workers, //, causal: Bool](self, workers: W):
        """Computes all rows and heads on all threads.

        Parameters:
            W: The kind of threads.
            causal: Whether query t of row b sees `past[b] + t + 1` keys instead of `capacity`.

        Args:
            workers: The threads.
        """
        var blocks = ceildiv(self.length, Self.Strips.query_block)

        @always_inline
        def some_blocks(begin: Int, end: Int) {imm}:
            var strips = Self.Strips()
            for task in range(begin, end):
                var matrix = task // blocks
                var first = task % blocks * Self.Strips.query_block
                var count = min(Self.Strips.query_block, self.length - first)
                if task == begin or first == 0:
                    strips.meet(self.head_keys(matrix), self.capacity)
                self.block[causal](strips, matrix // self.heads, matrix % self.heads, first, count)
            strips.end()

        workers.share(some_blocks, self.batch * self.heads * blocks)

    def head_keys(self, matrix: Int) -> Data[Self.Strips.cache_type]:
        """The keys of a head.

        Args:
            matrix: Batch row * H + head.
        """
        return self.keys.unsafe_offset(matrix * ceildiv(self.capacity, PANEL) * Self.Strips.panel_size)

    def block[causal: Bool](self, mut strips: Self.Strips, row: Int, head: Int, first: Int, count: Int):
        """Computes some queries of one head: all blocks of keys, then the division by l.

        Parameters:
            causal: As for `run`.

        Args:
            strips: State of a block of queries.
            row: Batch row.
            head: The head.
            first: First query.
            count: Queries, at most a block of them.
        """
        var query = self.queries.unsafe_offset((row * self.length + first) * self.query_stride + head * HEAD)
        strips.begin(query, self.query_stride, count)
        var matrix = row * self.heads + head
        var keys = self.head_keys(matrix)
        var groups = ceildiv(self.capacity, Self.Strips.value_group)
        var values = self.values.unsafe_offset(matrix * groups * Self.Strips.group_size)

        var seen = 0
        comptime if causal:
            seen = Int(self.past.value()[unsafe_offset=row]) + first + 1
        var visible = seen + count - 1 if causal else self.capacity
        for key in range(0, visible, Self.Strips.key_block):
            var key_count = min(Self.Strips.key_block, visible - key)
            for i in range(0, count, Self.Strips.rows):
                var strip = min(Self.Strips.rows, count - i)
                strips.step[causal](i, strip, keys, values, self.capacity, key, key_count, seen + i - key)
        strips.finish(count)

        for i in range(count):
            var o = self.output.unsafe_offset(((row * self.length + first + i) * self.heads + head) * HEAD)
            var inverse = 1 / strips.total(i)
            for j in range(0, HEAD, WIDTH):
                o.unsafe_store(j, (strips.sums(i).unsafe_load[width=WIDTH](j) * inverse).cast[Self.Strips.dtype]())


def attend[
    dtype: DType, cache_type: DType, W: Workers, //, rounded: Bool
](
    output: Data[dtype],
    queries: Data[dtype],
    query_stride: Int,
    keys: Data[cache_type],
    values: Data[cache_type],
    capacity: Int,
    batch: Int,
    heads: Int,
    length: Int,
    pairs: Pairs,
    workers: W,
):
    """Attention over all keys, by the body that is fastest for the queries there are.

    Parameters:
        dtype: Of queries and output.
        cache_type: Of keys and values.
        W: The kind of threads.
        rounded: Whether they belong to a model whose weights are rounded (`max_whisper/packed.py`): on a CPU that multiplies
            bfloat16, many queries over float16 are then multiplied as pairs of it. Over bytes they are in any case.

    Args:
        output: `batch x length x heads * 64`.
        queries: `batch x length` rows.
        query_stride: Elements from one row to the next.
        keys: (batch, heads, ceil(capacity/16), 64, 16); bytes: `bytes.mojo`.
        values: (batch, heads, capacity, 64); bytes: `bytes.mojo`.
        capacity: Keys of a head.
        batch: B.
        heads: H.
        length: T.
        pairs: Room for these keys and values.
        workers: The threads.
    """
    comptime if dtype == DType.float32 and may_pair[cache_type](rounded):
        if pairs.wanted:
            pair_cache(pairs.keys, pairs.values, keys, values, batch * heads, capacity, workers)
            Attention[Bfloat16Strips](
                output.unsafe_bitcast[Float32](),
                queries.unsafe_bitcast[Float32](),
                query_stride,
                pairs.keys,
                pairs.values,
                capacity,
                None,
                batch,
                heads,
                length,
            ).run[causal=False](workers)
            return
    comptime if cache_type == DType.int8:
        comptime assert dtype == DType.float32, "over bytes, queries are float32"
        Attention[ByteRow](
            output.unsafe_bitcast[Float32](),
            queries.unsafe_bitcast[Float32](),
            query_stride,
            keys.unsafe_bitcast[Int8](),
            values.unsafe_bitcast[Int8](),
            capacity,
            None,
            batch,
            heads,
            length,
        ).run[causal=False](workers)
    else:
        Attention[Float32Strips[dtype, cache_type]](
            output, queries, query_stride, keys, values, capacity, None, batch, heads, length
        ).run[causal=False](workers)

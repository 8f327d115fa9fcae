"""FlashAttention-2 on tensor cores: O = softmax(Q K^T / 8) V for blocks of 96 queries of one head, scores in registers only.

A group of 6 warps walks over blocks of 64 keys. A warp has 16 of the queries; the keys of a block are everybody's:

                      64 keys                       for each block j of keys (algorithm 1 of the paper):
               +------+------+-- -                      S = Q K_j^T                      tensor cores
      warp 0   | S, P |      |                          m' = max(m, rowmax S)            shuffles: 4 lanes share a query
      warp 1   | S, P |      |                          P = exp2((S - m') c)             c = log2(e) / 8
        ...    | S, P |      |                          l = exp2((m - m') c) l + rowsum P
      warp 5   | S, P |      |                          O = exp2((m - m') c) O + P V_j   tensor cores
               +------+------+-- -                      m = m'
        96 queries                                  at the end O / l, rounded once

Where there are no more blocks of queries than multiprocessors, a block of threads has two such groups: the same queries, every
other block of keys each. A warp alone cannot hide how long a product takes to arrive, and three share a scheduler then. At
the end the second group leaves m, l and O in shared memory, and the first adds them, both weighted by exp2((m - max m) c).

Fragments (`mma.m16n8k16`): lane l holds, of 16 x 8 accumulators, rows l/4 and l/4 + 8, columns 2 (l % 4) and the next.
Two neighbours of S, rounded, are the left operand of the next product as they stand: P never leaves its registers.
`ldmatrix` brings fragments of Q and K as they are (16 bytes along the depth of 64) and of V transposed.

Shared memory: two stages a group of a tile of keys and a tile of values, each (64, 64) of 16 bits. `cp.async` fills one stage
while the products read the other; one barrier per block of keys. Q passes through the second stage before its first use. A row
has 8 chunks of 16 bytes, chunk c of row r lies at c ^ (r % 8): 8 lanes that copy a row and 8 rows that `ldmatrix` reads
both touch all 32 banks once.

         chunk    0 1 2 3 4 5 6 7
        row 0     0 1 2 3 4 5 6 7
        row 1     1 0 3 2 5 4 7 6
        row 2     2 3 0 1 6 7 4 5 ...

Keys that a query does not see get the lowest score; only blocks at an edge are masked. Behind the last key the copies
write zeros: whatever memory holds there, NaN too, does not reach a product.

Cost: 4 * T*S*64 operations per head, rounded up to 96 queries and 64 keys, 64 tensor-core instructions per warp and block
of keys; bytes: Q and O once, keys and values once per block of 96 queries (from the second on, from the second-level cache).

Occupancy: at most 168 registers; 32 KB of shared memory a group. 12 warps a multiprocessor, as one block of two groups or as two
blocks of one, on every GPU from sm_80 on.

Measured on an H200 (float16, 6 heads, 1500 x 1500, launch included): 20.7 us, 5 windows 71 us (242 TFLOP/s), 8 windows 106 us
(261). Blocks of 64 queries of one group, 4 a multiprocessor with 128 registers each, took 30.4, 76 and 113 us. Tried and
not kept: operands brought to registers one instruction ahead (23.9 us for one window: registers are too few), maxima
that are followed only when they have risen by much (20.8 us), 32 queries a warp (27.6, 68 and 109 us).

Dao, "FlashAttention-2", arXiv:2307.08691; Milakov and Gimelshein, "Online normalizer calculation for softmax",
arXiv:1805.02867.
"""

from max.gpu import barrier, thread_idx
from max.gpu.memory import AddressSpace, external_memory

from ...data import Data
from ...gpu.memory import (
    TILE_ROW,
    Shared,
    commit_copies,
    copy_chunk,
    swizzled,
    wait_copies,
)
from ...gpu.tensor_core import MMA_K, MMA_M, load_matrices, multiply_add
from ..strip import HEAD
from .fragments import GIVEN, Four, OnlineSoftmax, for_rows, hide, round_to
from .key_values import KeyBlock, KeyValues

comptime QUERIES = 96
"""Queries of a block."""

comptime THREADS = QUERIES // 16 * 32
"""Threads of a group: a warp for 16 queries."""

comptime KEYS = 64
"""Keys of one step of the online softmax."""

comptime TILE = KEYS * HEAD
"""Elements of a tile of keys, or of values."""

comptime STAGE = 2 * TILE
"""Elements of a stage: keys, then values."""

comptime GROUP_BYTES = 2 * STAGE * 2
"""Shared memory of a group: two stages."""

comptime PASS = Int32(16 * HEAD)
"""Elements of 16 rows of a tile."""

comptime COPYING = 128
"""Threads of a group that copy: they reach 16 rows at once, as is convenient."""


@always_inline
def attend[
    dtype: DType, groups: Int
](
    output: Data[dtype],
    output_stride: Int32,
    queries: Data[dtype],
    query_stride: Int32,
    source: KeyValues[dtype],
    first: Int32,
    last: Int32,
    end: Int32,
    causal: Bool,
):
    """Attention of some queries of one head, by the `groups * THREADS` threads of a block.

    Parameters:
        dtype: Float16 or bfloat16.
        groups: Groups of warps, which have the same queries and take blocks of keys in turn.

    Args:
        output: Columns of this head and batch row: (T, 64), rows at a distance of `output_stride`.
        output_stride: H * 64.
        queries: Columns of this head and batch row: (T, 64), rows at a distance of `query_stride`.
        query_stride: N.
        source: Keys and values.
        first: The first query.
        last: One behind the last, at most `QUERIES` more.
        end: One behind the last key that any of them sees.
        causal: Whether query t sees keys up to `stored + t` only.
    """
    var group = Int32(thread_idx.x) // Int32(THREADS)
    var thread = Int32(thread_idx.x) % Int32(THREADS)
    var lane = thread % 32
    var memory = external_memory[
        Scalar[dtype], address_space=AddressSpace.SHARED, alignment=TILE_ROW
    ]().unsafe_origin_cast[MutUntrackedOrigin]()
    var tiles = memory.unsafe_offset(group * Int32(2 * STAGE))

    # Copying: a thread has one chunk of 16 bytes in every 16th row.
    var copies = thread < Int32(COPYING)
    var row = thread // 8
    var column = thread % 8 * 8
    var mine = tiles.unsafe_offset(swizzled[dtype](Int(row), Int(thread % 8)))
    if group == 0 and copies:
        comptime for i in range(QUERIES // 16):
            var number = first + Int32(16 * i) + row
            copy_chunk[STAGE * 2 + i * 16 * TILE_ROW](
                queries.unsafe_offset(number * query_stride + column), mine, number < last
            )
    var blocks = source.blocks[KEYS](end)
    if copies and group < blocks:
        _copy_block(mine, source.block[KEYS](group, end), row, column)
    commit_copies()
    wait_copies()
    barrier()

    # Reading: where this lane's 16 bytes lie, in 16 rows by two chunks, and in two chunks by 16 rows.
    var warp_row = thread // 32 * Int32(MMA_M)
    var rows_first = Int32(swizzled[dtype](Int(lane % 16), Int(lane // 16)))
    var chunks_first = Int32(swizzled[dtype](Int(lane // 16 * 8 + lane % 8), Int(lane // 8 % 2)))

    var q = Array[SIMD[dtype, 8], HEAD // MMA_K](fill=0)
    comptime for k in range(HEAD // MMA_K):
        q[k] = load_matrices(
            memory.unsafe_offset(Int32(STAGE) + warp_row * Int32(HEAD) + (rows_first ^ Int32(k * MMA_K)))
        )

    var o = Array[Four, HEAD // 8](fill=0)
    var softmax = OnlineSoftmax()

    # Lane l holds queries l/4 and l/4 + 8 of its warp's 16. Which key is the first that they do not see?
    var query = first + warp_row + lane // 4
    var horizon = source.stored + query + 1 if causal else end
    var horizon_of_next = horizon + 8 if causal else end

    for round in range((blocks + Int32(groups - 1)) // Int32(groups)):
        var index = round * Int32(groups) + group
        var stage = tiles.unsafe_offset(round % 2 * Int32(STAGE))
        wait_copies()
        barrier()  # The block is there; nobody reads the other stage any more.
        if copies and index + Int32(groups) < blocks:
            var next = source.block[KEYS](index + Int32(groups), end)
            _copy_block(mine.unsafe_offset((round + 1) % 2 * Int32(STAGE)), next, row, column)
            commit_copies()
        if groups > 1 and index >= blocks:
            break

        var s = Array[Four, KEYS // 8](fill=0)
        comptime for k in range(HEAD // MMA_K):
            comptime for n in range(KEYS // 16):
                var b = load_matrices(
                    stage.unsafe_offset(chunks_first ^ Int32(k * MMA_K)).unsafe_offset(Int32(n) * PASS)
                )
                multiply_add(s[2 * n], q[k], b.slice[2](), b.slice[2, offset=2]())
                multiply_add(s[2 * n + 1], q[k], b.slice[2, offset=4](), b.slice[2, offset=6]())

        var block = source.block[KEYS](index, end)
        var seen = min(block.count, horizon - block.first)
        if seen < Int32(KEYS):
            hide(s, seen, min(block.count, horizon_of_next - block.first), lane)
        var correction = softmax.follow(s)
        comptime for n in range(HEAD // 8):
            o[n] *= for_rows(correction)

        comptime for k in range(KEYS // MMA_K):
            var p = round_to[dtype](s[2 * k]).join(round_to[dtype](s[2 * k + 1]))
            comptime for n in range(HEAD // 16):
                var b = load_matrices[transpose=True](
                    stage.unsafe_offset(rows_first ^ Int32(n * MMA_K)).unsafe_offset(Int32(TILE) + Int32(k) * PASS)
                )
                multiply_add(o[2 * n], p, b.slice[2](), b.slice[2, offset=2]())
                multiply_add(o[2 * n + 1], p, b.slice[2, offset=4](), b.slice[2, offset=6]())

    comptime if groups > 1:
        barrier()  # Nobody reads keys any more: the first group takes over what the others have, through shared memory.
        var places = memory.unsafe_bitcast[Float32]().unsafe_offset(4 * thread)
        if group > 0:
            softmax.give[THREADS](o, places.unsafe_offset((group - 1) * Int32(GIVEN[THREADS])))
        barrier()
        if group > 0:
            return
        comptime for other in range(groups - 1):
            softmax.take[THREADS](o, places.unsafe_offset(other * GIVEN[THREADS]))
    softmax.store(o, output, output_stride, query, last, lane)


@always_inline
def _copy_block[dtype: DType](target: Shared[dtype], block: KeyBlock[dtype], row: Int32, column: Int32):
    """Starts the copy of a block of keys and, behind it, of their values; zeros follow the last one."""
    comptime for i in range(KEYS // 16):
        var number = row + Int32(16 * i)
        var at = number * block.stride + column
        var valid = number < block.count
        copy_chunk[i * 16 * TILE_ROW](block.keys.unsafe_offset(at), target, valid)
        copy_chunk[TILE * 2 + i * 16 * TILE_ROW](block.values.unsafe_offset(at), target, valid)

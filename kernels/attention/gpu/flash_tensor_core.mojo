"""FlashAttention-2 on tensor cores: O = softmax(Q K^T / 8) V for blocks of 64 queries of one head, scores in registers only.

A block of 128 threads walks over blocks of 64 keys. A warp has 16 of the queries; the keys of a block are everybody's:

                      64 keys                       for each block j of keys (algorithm 1 of the paper):
               +------+------+-- -                      S = Q K_j^T                      tensor cores
      warp 0   | S, P |      |                          m' = max(m, rowmax S)            shuffles: 4 lanes share a query
      warp 1   | S, P |      |                          P = exp2((S - m') c)             c = log2(e) / 8
      warp 2   | S, P |      |                          l = exp2((m - m') c) l + rowsum P
      warp 3   | S, P |      |                          O = exp2((m - m') c) O + P V_j   tensor cores
               +------+------+-- -                      m = m'
        64 queries                                  at the end O / l, rounded once

Fragments (`mma.m16n8k16`): lane l holds, of 16 x 8 accumulators, rows l/4 and l/4 + 8, columns 2 (l % 4) and the next.
Two neighbours of S, rounded, are the left operand of the next product as they stand: P never leaves its registers.
`ldmatrix` brings fragments of Q and K as they are (16 bytes along the depth of 64) and of V transposed.

Shared memory: two stages of a tile of keys and a tile of values, each (64, 64) of 16 bits. `cp.async` fills one stage while
the products read the other; one barrier per block of keys. Q passes through the second stage before its first use. A row
has 8 chunks of 16 bytes, chunk c of row r lies at c ^ (r % 8): 8 lanes that copy a row and 8 rows that `ldmatrix` reads
both touch all 32 banks once.

         chunk    0 1 2 3 4 5 6 7
        row 0     0 1 2 3 4 5 6 7
        row 1     1 0 3 2 5 4 7 6
        row 2     2 3 0 1 6 7 4 5 ...

Keys that a query does not see get the lowest score; only blocks at an edge are masked. Behind the last key the copies
write zeros: whatever memory holds there, NaN too, does not reach a product.

Cost: 4 * T*S*64 operations per head, rounded up to 64 queries and 64 keys, 64 tensor-core instructions per warp and block
of keys; bytes: Q and O once, keys and values once per block of 64 queries (from the second on, from the second-level cache).

Occupancy: 128 registers, 32 KB of shared memory and 128 threads: 4 blocks or 16 warps per multiprocessor on sm_80 and
sm_90, 3 blocks on sm_86 and sm_89 (100 KB of shared memory).

Dao, "FlashAttention-2", arXiv:2307.08691; Milakov and Gimelshein, "Online normalizer calculation for softmax",
arXiv:1805.02867.
"""

from max.gpu import barrier, thread_idx
from max.gpu.primitives import warp
from std.math import exp2
from std.memory import bitcast
from std.sys import inlined_assembly

from ...data import Data
from ...gpu.memory import Shared, chunk, commit_copies, copy_chunk, shared_memory, store_chunk, swizzled, wait_copies
from ...gpu.tensor_core import MMA_K, load_matrices, multiply_add
from ..cpu import HEAD
from .key_values import EXPONENT, KEYS, LOWEST, QUERIES, KeyBlock, KeyValues

comptime Two = SIMD[DType.float32, 2]
comptime Four = SIMD[DType.float32, 4]

comptime TILE = KEYS * HEAD
"""Elements of a tile of keys, of values, or of queries."""

comptime STAGE = Int32(2 * TILE)
"""Elements of a stage: keys, then values."""

comptime PASS = Int32(16 * HEAD)
"""Elements that 128 threads copy with one instruction each: 16 rows."""


@always_inline
def flash_tensor_core[
    dtype: DType
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
    """Attention of some queries of one head, by the `THREADS` threads of a block.

    Parameters:
        dtype: Float16 or bfloat16.

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
    var thread = Int32(thread_idx.x)
    var lane = thread % 32
    var tiles = shared_memory[dtype, 4 * TILE]()

    # Copying: each thread has one chunk of 16 bytes in every 16th row.
    var row = thread // 8
    var column = thread % 8 * 8
    var mine = tiles.unsafe_offset(swizzled[dtype](Int(row), Int(thread % 8)))
    comptime for i in range(QUERIES // 16):
        var number = first + Int32(16 * i) + row
        copy_chunk(
            queries.unsafe_offset(number * query_stride + column),
            mine.unsafe_offset(STAGE + Int32(i) * PASS),
            number < last,
        )
    _copy_block(mine, source.block[KEYS](0, end), row, column)
    commit_copies()
    wait_copies()
    barrier()

    # Reading: where this lane's 16 bytes lie, in 16 rows by two chunks, and in two chunks by 16 rows.
    var warp_row = thread // 32 * Int32(MMA_K)
    var rows_first = Int32(swizzled[dtype](Int(lane % 16), Int(lane // 16)))
    var chunks_first = Int32(swizzled[dtype](Int(lane // 16 * 8 + lane % 8), Int(lane // 8 % 2)))

    var q = Array[SIMD[dtype, 8], HEAD // MMA_K](fill=0)
    comptime for k in range(HEAD // MMA_K):
        q[k] = load_matrices(tiles.unsafe_offset(STAGE + warp_row * Int32(HEAD) + (rows_first ^ Int32(k * MMA_K))))

    var o = Array[Four, HEAD // 8](fill=0)
    var maximum = Two(LOWEST)
    var total = Two(0)

    # Lane l holds queries l/4 and l/4 + 8 of its warp's 16. Which key is the first that they, and the warp, do not see?
    var query = first + warp_row + lane // 4
    var horizon = source.stored + query + 1 if causal else end
    var horizon_of_next = horizon + 8 if causal else end
    var horizon_of_warp = horizon - lane // 4 if causal else end

    var blocks = source.blocks[KEYS](end)
    for index in range(blocks):
        var stage = tiles.unsafe_offset(index % 2 * STAGE)
        wait_copies()
        barrier()  # The block is there; nobody reads the other stage any more.
        if index + 1 < blocks:
            _copy_block(mine.unsafe_offset((index + 1) % 2 * STAGE), source.block[KEYS](index + 1, end), row, column)
            commit_copies()

        var s = Array[Four, KEYS // 8](fill=0)
        comptime for k in range(HEAD // MMA_K):
            comptime for n in range(KEYS // 16):
                var b = load_matrices(
                    stage.unsafe_offset(chunks_first ^ Int32(k * MMA_K)).unsafe_offset(Int32(n) * PASS)
                )
                multiply_add(s[2 * n], q[k], b.slice[2](), b.slice[2, offset=2]())
                multiply_add(s[2 * n + 1], q[k], b.slice[2, offset=4](), b.slice[2, offset=6]())

        var block = source.block[KEYS](index, end)
        if min(block.count, horizon_of_warp - block.first) < Int32(KEYS):
            var column = lane % 4 * 2
            var seen = min(block.count, horizon - block.first) - column
            var seen_by_next = min(block.count, horizon_of_next - block.first) - column
            comptime for n in range(KEYS // 8):
                comptime for e in range(2):
                    if Int32(8 * n + e) >= seen:
                        s[n][e] = LOWEST
                    if Int32(8 * n + e) >= seen_by_next:
                        s[n][2 + e] = LOWEST

        var new = maximum
        comptime for n in range(KEYS // 8):
            new = max(new, max(s[n].deinterleave()[0], s[n].deinterleave()[1]))
        comptime for distance in [1, 2]:
            new = max(new, _from_lane(new, distance))
        var correction = exp2((maximum - new) * EXPONENT)
        maximum = new
        var shift = _for_rows(new * -EXPONENT)
        total *= correction
        comptime for n in range(KEYS // 8):
            s[n] = exp2(s[n].fma(Four(EXPONENT), shift))
            total += s[n].deinterleave()[0] + s[n].deinterleave()[1]
        comptime for n in range(HEAD // 8):
            o[n] *= _for_rows(correction)

        comptime for k in range(KEYS // MMA_K):
            var p = _round[dtype](s[2 * k]).join(_round[dtype](s[2 * k + 1]))
            comptime for n in range(HEAD // 16):
                var b = load_matrices[transpose=True](
                    stage.unsafe_offset(rows_first ^ Int32(n * MMA_K)).unsafe_offset(Int32(TILE) + Int32(k) * PASS)
                )
                multiply_add(o[2 * n], p, b.slice[2](), b.slice[2, offset=2]())
                multiply_add(o[2 * n + 1], p, b.slice[2, offset=4](), b.slice[2, offset=6]())

    comptime for distance in [1, 2]:
        total += _from_lane(total, distance)
    var inverse = _for_rows(1 / total)
    comptime for half in range(2):
        var upper = SIMD[DType.uint32, 4](0)
        var lower = SIMD[DType.uint32, 4](0)
        comptime for n in range(4):
            var pairs = bitcast[DType.uint32, 2](_round[dtype](o[4 * half + n] * inverse))
            upper[n] = pairs[0]
            lower[n] = pairs[1]
        var column = Int32(32 * half) + lane % 4 * 8
        upper = _transpose(upper, lane % 4)
        lower = _transpose(lower, lane % 4)
        if query < last:
            store_chunk(output, Int(query * output_stride + column), bitcast[dtype, chunk[dtype]()](upper))
        if query + 8 < last:
            store_chunk(output, Int((query + 8) * output_stride + column), bitcast[dtype, chunk[dtype]()](lower))


@always_inline
def _copy_block[dtype: DType](target: Shared[dtype], block: KeyBlock[dtype], row: Int32, column: Int32):
    """Starts the copy of a block of keys and, behind it, of their values; zeros follow the last one."""
    comptime for i in range(KEYS // 16):
        var number = row + Int32(16 * i)
        var at = number * block.stride + column
        var place = target.unsafe_offset(Int32(i) * PASS)
        copy_chunk(block.keys.unsafe_offset(at), place, number < block.count)
        copy_chunk(block.values.unsafe_offset(at), place.unsafe_offset(TILE), number < block.count)


@always_inline
def _from_lane(x: Two, distance: Int) -> Two:
    """The numbers of the lane whose number differs in one bit."""
    return Two(warp.shuffle_xor(x[0], UInt32(distance)), warp.shuffle_xor(x[1], UInt32(distance)))


@always_inline
def _for_rows(x: Two) -> Four:
    """One number per query, for each element of an accumulator: two of the first query, two of the second."""
    return Four(x[0], x[0], x[1], x[1])


@always_inline
def _round[dtype: DType](x: Four) -> SIMD[dtype, 4]:
    """An accumulator in 16 bits. LLVM would convert numbers one by one."""
    comptime convert = "cvt.rn." + ("bf16x2" if dtype == DType.bfloat16 else "f16x2") + ".f32 $0, $1, $2;"
    var first = inlined_assembly[convert, UInt32, constraints="=r,f,f", has_side_effect=False](x[1], x[0])
    var second = inlined_assembly[convert, UInt32, constraints="=r,f,f", has_side_effect=False](x[3], x[2])
    return bitcast[dtype, 4](SIMD[DType.uint32, 2](first, second))


@always_inline
def _transpose(x: SIMD[DType.uint32, 4], lane: Int32) -> SIMD[DType.uint32, 4]:
    """Transposes the 4 x 4 pairs that 4 lanes hold: lane t has pair t of four times 8 columns and gets all pairs of the
    t-th 8, 16 bytes that lie together.

    Args:
        x: This lane's pairs.
        lane: Number of the lane among the four.
    """
    var y = x
    comptime for distance in [1, 2]:
        var keeps_upper = lane & Int32(distance) != 0
        comptime for i in range(2):
            comptime low = 2 * i if distance == 1 else i
            comptime high = low + distance
            var given = y[low] if keeps_upper else y[high]
            var got = warp.shuffle_xor(given, UInt32(distance))
            if keeps_upper:
                y[low] = got
            else:
                y[high] = got
    return y

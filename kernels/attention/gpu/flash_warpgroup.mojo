"""FlashAttention on Hopper's tensor cores, which work while their threads do something else (`../../gpu/warpgroup.mojo`).

What is computed, and what fragments look like, is as in `flash_tensor_core.mojo`; a warpgroup has 64 queries in place of a
warp's 16, and walks over blocks of 64 keys. Scores of block j and the output of block j - 1 are two products that run together,
and the softmax of block j runs while the second is on its way (FlashAttention-3, section 3.2):

    tensor cores   | Q K_j^T | P_j-1 V_j-1 |            | Q K_j+1^T | P_j V_j |
    threads                  | softmax of S_j  O *= ... |             | softmax of S_j+1 ...

Other warpgroups of the multiprocessor, four in all, fill what gaps are left: blocks of one warpgroup need not keep in step with
each other. Q and K lie in shared memory as tensor cores read them; V does too, transposed on the way, which 16 bits allow; P is in
registers.

Shared memory: Q, and for each group of keys three stages of a tile of keys and a tile of values, 64 rows of 128 bytes, swizzled.
The values of block j - 1 are read until the output of block j begins; so copies of block j + 1 take the stage of block j - 2.

| blocks of 64 queries             | a block of threads has                          | of shared memory |
| -------------------------------- | ----------------------------------------------- | ---------------- |
| at most 2 for a multiprocessor   | two groups of keys, a warpgroup each            | 104 KB           |
| more                             | one warpgroup; 4 such blocks a multiprocessor   | 56 KB            |

Groups of keys take blocks of keys in turn, and meet at the end (`flash_tensor_core.mojo`).

Cost: 4*T*S*64 operations per head, rounded up to 64 queries and 64 keys; bytes: Q and O once, keys and values once per block of 64
queries (from the second on, from the level-2 cache). At most 108 registers, nothing spilled.

Measured on an H200 (float16, 6 heads, 1500 x 1500, launches back to back, overlapping where that is faster, microseconds):

| queries a block, groups of keys                             | 1 window | 5    | 8     |
| ----------------------------------------------------------- | -------: | ---: | ----: |
| 64, one                                                     |     22.6 | 52.2 |  78.6 |
| 64, two                                                     |     20.2 | 57.0 |  85.7 |
| 128 (two warpgroups), one                                   |     23.9 | 54.4 |  86.7 |
| 128, two                                                    |     22.1 | 62.8 | 102.5 |
| 64, one; two blocks of keys from one barrier to the next    |     21.3 | 61.6 |  95.9 |
| 64, one, 3 a multiprocessor; the wait before the softmax    |     22.2 | 55.2 |  83.9 |
| `flash_tensor_core.mojo`                                    |     20.9 | 70.2 | 104.8 |
| torch 2.11, cuDNN                                           |     19.9 | 52.1 |  84.1 |

With 8 windows, blocks of 64 queries ask the level-2 cache for 5.7 TB/s, which is what it gives. With one, 144 blocks are dealt to
132 multiprocessors: twelve have two, and the others wait for them.

Shah et al., "FlashAttention-3", arXiv:2407.08608; Dao, "FlashAttention-2", arXiv:2307.08691.
"""

from max.gpu import barrier, thread_idx
from max.gpu.memory import AddressSpace, external_memory
from max.gpu.primitives import warp
from std.collections import Array
from std.math import ceildiv

from ...data import Data
from ...gpu.memory import TILE_ROW, Shared, commit_copies, copy_chunk, swizzled, wait_copies
from ...gpu.tensor_core import MMA_K
from ...gpu.warpgroup import (
    GROUP,
    GROUP_M,
    SWIZZLE_ROWS,
    Sums,
    add_product,
    add_product_of_registers,
    begin_products,
    commit_products,
    compute_now,
    describe,
    publish_copies,
    settle,
    wait_products,
)
from ..strip import HEAD
from .fragments import GIVEN, Four, Fragments, OnlineSoftmax, for_rows, hide, round_to
from .key_values import KeyBlock, KeyValues

comptime KEYS = 64
"""Keys of one step of the online softmax."""

comptime TILE = KEYS * HEAD
"""Elements of a tile of keys, or of values."""

comptime TILE_CHUNKS = UInt64(TILE * 2 // 16)
"""A tile, as descriptors count."""

comptime STAGES = 3

comptime GROUP_BYTES = STAGES * 2 * TILE * 2
"""Shared memory of a group of keys."""

comptime QUERY_BYTES = GROUP_M * HEAD * 2
"""Shared memory of the queries."""

comptime AT_ONCE = GROUP // 8
"""Rows that a group copies at once, 16 bytes a thread."""


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
    """Attention of some queries of one head, by the threads of a block; arguments as in `flash_tensor_core`.

    Parameters:
        dtype: Float16 or bfloat16.
        groups: Groups of keys, a warpgroup each: they have the same queries and take blocks of keys in turn.

    Args:
        output: Columns of this head and batch row: (T, 64), rows at a distance of `output_stride`.
        output_stride: H * 64.
        queries: Columns of this head and batch row: (T, 64), rows at a distance of `query_stride`.
        query_stride: N.
        source: Keys and values.
        first: The first query.
        last: One behind the last, at most 64 more.
        end: One behind the last key that any of them sees.
        causal: Whether query t sees keys up to `stored + t` only.
    """
    var group = warp.broadcast(Int32(thread_idx.x) // Int32(GROUP)) if groups > 1 else 0
    var thread = Int(thread_idx.x) % GROUP
    var lane = Int32(thread % 32)
    var memory = external_memory[
        Scalar[dtype], address_space=AddressSpace.SHARED, alignment=SWIZZLE_ROWS
    ]().unsafe_origin_cast[MutUntrackedOrigin]()
    var tiles = memory.unsafe_offset(Int32(GROUP_M * HEAD) + group * Int32(STAGES * 2 * TILE))

    var row = Int32(thread // 8)
    var column = Int32(thread % 8 * 8)
    var mine = tiles.unsafe_offset(swizzled[dtype](thread // 8, thread % 8))
    if group == 0:
        var place = memory.unsafe_offset(swizzled[dtype](thread // 8, thread % 8))
        comptime for i in range(GROUP_M // AT_ONCE):
            var number = first + Int32(AT_ONCE * i) + row
            copy_chunk[i * AT_ONCE * TILE_ROW](
                queries.unsafe_offset(number * query_stride + column), place, number < last
            )
    var blocks = source.blocks[KEYS](end)
    if group < blocks:
        _copy_block(mine, source.block[KEYS](group, end), row, column)
    commit_copies()

    var q_at = describe(memory)
    var tiles_at = describe(tiles)
    var o = Sums[HEAD](fill=0)
    var s = Sums[KEYS](fill=0)
    var p = Array[SIMD[dtype, 8], KEYS // MMA_K](fill=0)
    var softmax = OnlineSoftmax()

    # A lane holds queries l/4 and l/4 + 8 of its warp's 16. Which key is the first that they do not see?
    var query = first + Int32(thread // 32 * 16) + lane // 4
    var horizon = source.stored + query + 1 if causal else end
    var horizon_of_next = horizon + 8 if causal else end

    var values_before = UInt64(0)
    var stage = Int32(0)
    for round in range(ceildiv(blocks, Int32(groups))):
        var index = round * Int32(groups) + group
        wait_copies()
        publish_copies()
        barrier()  # The block is there; nobody reads the stage of two rounds ago any more.
        var next = stage + 1 if stage + 1 < Int32(STAGES) else 0
        if index + Int32(groups) < blocks:
            var block = source.block[KEYS](index + Int32(groups), end)
            _copy_block(mine.unsafe_offset(next * Int32(2 * TILE)), block, row, column)
        commit_copies()
        if groups > 1 and index >= blocks:
            break

        var keys_at = tiles_at + UInt64(stage) * 2 * TILE_CHUNKS
        begin_products()
        comptime for k in range(HEAD // MMA_K):
            add_product[dtype, KEYS, keep=k > 0](s, q_at + UInt64(2 * k), keys_at + UInt64(2 * k))
        commit_products()
        if round > 0:
            _add_values(o, p, values_before)
            commit_products()
            wait_products[1]()
        else:
            wait_products()
        settle[KEYS](s)
        values_before = keys_at + TILE_CHUNKS
        stage = next

        var scores = _fragments(s)
        var block = source.block[KEYS](index, end)
        var seen = min(block.count, horizon - block.first)
        if seen < Int32(KEYS):
            hide(scores, seen, min(block.count, horizon_of_next - block.first), lane)
        var correction = for_rows(softmax.follow(scores))
        compute_now(softmax.total[0] + softmax.total[1], memory)
        wait_products()
        settle[HEAD](o)
        comptime for i in range(HEAD // 2):
            o[i] *= correction[i % 4]
        comptime for k in range(KEYS // MMA_K):
            p[k] = round_to[dtype](scores[2 * k]).join(round_to[dtype](scores[2 * k + 1]))

    if group < blocks:
        begin_products()
        _add_values(o, p, values_before)
        commit_products()
        wait_products()
        settle[HEAD](o)
    var sums = _fragments(o)
    comptime if groups > 1:
        barrier()  # Nobody reads keys any more: the first group takes over what the others have, through shared memory.
        var places = memory.unsafe_bitcast[Float32]().unsafe_offset(4 * thread)
        if group > 0:
            softmax.give[GROUP](sums, places.unsafe_offset((group - 1) * Int32(GIVEN[GROUP])))
        barrier()
        if group > 0:
            return
        comptime for other in range(groups - 1):
            softmax.take[GROUP](sums, places.unsafe_offset(other * GIVEN[GROUP]))
    softmax.store(sums, output, output_stride, query, last, lane)


@always_inline
def _add_values[dtype: DType, //](mut o: Sums[HEAD], p: Array[SIMD[dtype, 8], KEYS // MMA_K], values: UInt64):
    """Starts to add weighted values."""
    comptime for k in range(KEYS // MMA_K):
        add_product_of_registers(o, p[k], values + UInt64(k * MMA_K * TILE_ROW // 16))


@always_inline
def _fragments(sums: Sums[HEAD]) -> Fragments:
    var parts = Fragments(fill=0)
    comptime for n in range(HEAD // 8):
        parts[n] = Four(sums[4 * n], sums[4 * n + 1], sums[4 * n + 2], sums[4 * n + 3])
    return parts^


@always_inline
def _copy_block[dtype: DType](target: Shared[dtype], block: KeyBlock[dtype], row: Int32, column: Int32):
    """Starts the copy of a block of keys and, behind it, of their values; zeros follow the last one."""
    comptime for i in range(KEYS // AT_ONCE):
        var number = row + Int32(AT_ONCE * i)
        var at = number * block.stride + column
        var valid = number < block.count
        copy_chunk[i * AT_ONCE * TILE_ROW](block.keys.unsafe_offset(at), target, valid)
        copy_chunk[TILE * 2 + i * AT_ONCE * TILE_ROW](block.values.unsafe_offset(at), target, valid)

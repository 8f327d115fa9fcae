"""Attention of many queries: the kernel's entry, and the one place that chooses its body.

| body                     | for                               | queries of a block | threads of a block |
| ------------------------ | --------------------------------- | ------------------ | ------------------ |
| `flash_tensor_core.mojo` | NVIDIA; float16, bfloat16         | 96                 | 192 or 384         |
| `flash_simd.mojo`        | float32; AMD's processors so far  | 64                 | 128                |

Both follow FlashAttention-2. Block (x, y) has the x-th so many queries of head y % H of batch row y / H.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, block_idx
from std.utils import StaticTuple

from ...data import Data
from ..cpu import HEAD
from . import flash_simd, flash_tensor_core
from .key_values import find_key_values

comptime PLAIN = 0
"""In place of a number of groups: the body of plain multiplications."""

comptime QUERIES[groups: Int] = flash_simd.QUERIES if groups == PLAIN else flash_tensor_core.QUERIES
"""Queries of a block."""

comptime THREADS[groups: Int] = flash_simd.THREADS if groups == PLAIN else groups * flash_tensor_core.THREADS
"""Threads of a block."""


@__llvm_metadata(
    MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](
        Int32(flash_simd.THREADS if groups == PLAIN else 2 * flash_tensor_core.THREADS)  # bounds their registers
    )
)
def flash_kernel[
    dtype: DType, groups: Int
](
    output: Data[dtype],
    queries: Data[dtype],
    query_stride: Int32,
    keys: Data[dtype],
    values: Data[dtype],
    capacity: Int32,
    rows: Data[dtype],
    row_stride: Int32,
    added: Int32,
    past: Data[DType.int32],
    stored: Int32,
    heads: Int32,
    length: Int32,
):
    """Attention of some queries of one head; causal, and new keys go to the cache as well, if `stored` is negative.

    Parameters:
        dtype: Of all operands.
        groups: Groups of warps that take blocks of keys in turn, or PLAIN.

    Args:
        output: (B, T, H*64).
        queries: (B, T, query_stride), of which the first H*64 columns are read.
        query_stride: N.
        keys: (B, H, capacity, 64).
        values: (B, H, capacity, 64).
        capacity: C.
        rows: (B, added, row_stride), from the first key column on.
        row_stride: N.
        added: Keys of each batch row that lie in `rows`.
        past: (B), read if `stored` is negative.
        stored: Keys of each batch row that lie in the cache; negative if `past[b]` tells.
        heads: H.
        length: T.
    """
    var batch_row = Int32(block_idx.y) // heads
    var head = Int32(block_idx.y) - batch_row * heads
    var causal = stored < 0
    var source = find_key_values(batch_row, head, heads, keys, values, capacity, rows, row_stride, added, past, stored)
    var first = Int32(block_idx.x) * Int32(QUERIES[groups])
    var last = min(first + Int32(QUERIES[groups]), length)
    var end = source.stored + last if causal else source.total
    var q = queries.unsafe_offset(Int(batch_row) * Int(length) * Int(query_stride) + Int(head) * HEAD)
    var o = output.unsafe_offset((Int(batch_row) * Int(length) * Int(heads) + Int(head)) * HEAD)
    comptime if groups > PLAIN:
        flash_tensor_core.attend[dtype, groups](
            o, heads * Int32(HEAD), q, query_stride, source, first, last, end, causal
        )
    else:
        flash_simd.attend(o, heads * Int32(HEAD), q, query_stride, source, first, last, end, causal)
    if causal:
        source.append[THREADS[groups]](first, last)

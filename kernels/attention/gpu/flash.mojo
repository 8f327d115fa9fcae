"""Attention of many queries: the kernel's entry, and the one place that chooses its body.

    grid (ceil(T/64), B*H), 128 threads a block      queries 64 x .. 64 x + 63 of head y % H of batch row y / H

NVIDIA's tensor cores serve 16-bit numbers (`flash_tensor_core.mojo`); float32, and AMD's processors so far, take the body of
plain multiplications (`flash_simd.mojo`). Both follow FlashAttention-2 and use the same blocks, so that a launch does not
need to know.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, block_idx
from std.sys import is_nvidia_gpu
from std.utils import StaticTuple

from ...data import Data
from ..cpu import HEAD
from .flash_simd import flash_simd
from .flash_tensor_core import flash_tensor_core
from .key_values import QUERIES, THREADS, find_key_values

comptime TENSOR_CORE_BLOCKS = 4
"""Blocks that a multiprocessor shall hold at once. Told as a block of so many times the threads, it bounds their registers."""


@__llvm_metadata(
    MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](
        Int32(THREADS * TENSOR_CORE_BLOCKS if dtype.is_half_float() else THREADS)
    )
)
def flash_kernel[
    dtype: DType
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
    """Attention of 64 queries of one head; causal, and new keys go to the cache as well, if `stored` is negative.

    Parameters:
        dtype: Of all operands.

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
    var first = Int32(block_idx.x) * QUERIES
    var last = min(first + QUERIES, length)
    var end = source.stored + last if causal else source.total
    var q = queries.unsafe_offset(Int(batch_row) * Int(length) * Int(query_stride) + Int(head) * HEAD)
    var o = output.unsafe_offset((Int(batch_row) * Int(length) * Int(heads) + Int(head)) * HEAD)
    comptime if is_nvidia_gpu() and dtype.is_half_float():
        flash_tensor_core(o, heads * Int32(HEAD), q, query_stride, source, first, last, end, causal)
    else:
        flash_simd(o, heads * Int32(HEAD), q, query_stride, source, first, last, end, causal)
    if causal:
        source.append(first, last)

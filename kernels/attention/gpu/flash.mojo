"""Attention of many queries: the kernel's entry, whose body `launch.mojo` chooses.

| body                     | for                               | queries of a block | threads of a block |
| ------------------------ | --------------------------------- | ------------------ | ------------------ |
| `flash_warpgroup.mojo`   | Hopper; float16, bfloat16         | 64                 | 128 or 256         |
| `flash_tensor_core.mojo` | NVIDIA; float16, bfloat16         | 96                 | 192 or 384         |
| `flash_simd.mojo`        | float32; AMD's processors so far  | 64                 | 128                |

All follow FlashAttention-2, the first FlashAttention-3, too. Block (x, y) has the x-th so many queries of head y % H of batch
row y / H.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, block_idx
from std.utils import StaticTuple

from ...data import Data
from ...gpu.overlap import start_next, wait_for_previous
from ...gpu.warpgroup import GROUP, GROUP_M
from ..strip import HEAD
from . import flash_simd, flash_tensor_core, flash_warpgroup
from .key_values import find_key_values


comptime _PLAIN = 0
comptime _TENSOR_CORE = 1
comptime _WARPGROUP = 2


@fieldwise_init
struct Body(Equatable, TrivialRegisterPassable):
    """Which body serves a launch, and in how many groups its threads take blocks of keys in turn."""

    var kind: Int
    var groups: Int

    comptime PLAIN = Self(_PLAIN, 1)
    comptime TENSOR_CORE[groups: Int] = Self(_TENSOR_CORE, groups)
    comptime WARPGROUP[groups: Int] = Self(_WARPGROUP, groups)

    def overlaps(self) -> Bool:
        """Whether its launches begin while the one before ends (`../../gpu/overlap.mojo`)."""
        return self.kind == _WARPGROUP

    def queries(self) -> Int:
        """Queries of a block."""
        if self.kind == _PLAIN:
            return flash_simd.QUERIES
        return flash_tensor_core.QUERIES if self.kind == _TENSOR_CORE else GROUP_M

    def threads(self) -> Int:
        """Threads of a block."""
        if self.kind == _PLAIN:
            return flash_simd.THREADS
        return self.groups * (flash_tensor_core.THREADS if self.kind == _TENSOR_CORE else GROUP)

    def shared_bytes(self) -> Int:
        """Shared memory that a launch has to ask for."""
        if self.kind == _PLAIN:
            return 0
        if self.kind == _TENSOR_CORE:
            return self.groups * flash_tensor_core.GROUP_BYTES
        return flash_warpgroup.QUERY_BYTES + self.groups * flash_warpgroup.GROUP_BYTES

    def resident_threads(self) -> Int:
        """Threads that a multiprocessor shall have registers for."""
        if self.kind == _PLAIN:
            return flash_simd.THREADS
        return 2 * flash_tensor_core.THREADS if self.kind == _TENSOR_CORE else 4 * GROUP


@__llvm_metadata(
    MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(body.resident_threads()))  # bounds their registers
)
def flash_kernel[
    dtype: DType, body: Body
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
        body: What computes it.

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
    comptime if body.overlaps():
        start_next()
        wait_for_previous()
    var batch_row = Int32(block_idx.y) // heads
    var head = Int32(block_idx.y) - batch_row * heads
    var causal = stored < 0
    var source = find_key_values(batch_row, head, heads, keys, values, capacity, rows, row_stride, added, past, stored)
    var first = Int32(block_idx.x) * Int32(body.queries())
    var last = min(first + Int32(body.queries()), length)
    var end = source.stored + last if causal else source.total
    var q = queries.unsafe_offset(Int(batch_row) * Int(length) * Int(query_stride) + Int(head) * HEAD)
    var o = output.unsafe_offset((Int(batch_row) * Int(length) * Int(heads) + Int(head)) * HEAD)
    comptime if body.kind == _WARPGROUP:
        flash_warpgroup.attend[dtype, body.groups](
            o, heads * Int32(HEAD), q, query_stride, source, first, last, end, causal
        )
    elif body.kind == _TENSOR_CORE:
        flash_tensor_core.attend[dtype, body.groups](
            o, heads * Int32(HEAD), q, query_stride, source, first, last, end, causal
        )
    else:
        flash_simd.attend(o, heads * Int32(HEAD), q, query_stride, source, first, last, end, causal)
    if causal:
        source.append[body.threads()](first, last)

"""Keys and values as attention on a GPU reads them, from the rows that a linear layer wrote.

    rows (B, T, N): the last 2*H*64 columns are [ key of head 0 .. H-1 | value of head 0 .. H-1 ]

    keys, values (B, H, T, 64)      the T keys (values) of a head lie one behind the other

Only cross-attention needs this, once per window: one query reads all keys of a head again and again, and finds them in
one piece. Self-attention reads keys and values from the rows themselves.

A thread moves 16 bytes: thread i of all B*H*T*64/width threads writes chunk i of the keys and chunk i of the values, so
that stores are contiguous; loads are pieces of 64 elements, whole sectors. Cost: 2*B*T*H*64 elements read and written.
"""

from max.gpu import global_idx

from ...data import Data
from ...gpu.memory import chunk, load_chunk, store_chunk
from ..strip import HEAD

comptime PACK_THREADS = 256
"""Threads of one block."""


def pack_heads_kernel[
    dtype: DType
](
    keys: Data[dtype],
    values: Data[dtype],
    rows: Data[dtype],
    row_stride: Int32,
    heads: Int32,
    length: Int32,
    chunks: Int32,
):
    """Moves chunk `global_idx.x` of the keys and of the values.

    Args:
        keys: (B, H, T, 64).
        values: (B, H, T, 64).
        rows: (B, T, N), from the first key column on.
        row_stride: N.
        heads: H.
        length: T.
        chunks: Chunks of 16 bytes in `keys`.
    """
    comptime in_key = Int32(HEAD // chunk[dtype]())
    var number = Int32(global_idx.x)
    if number >= chunks:
        return
    var column = number % in_key * Int32(chunk[dtype]())
    var key = number // in_key
    var matrix = key // length
    var batch_row = matrix // heads
    var head = matrix - batch_row * heads
    var row = batch_row * length + key - matrix * length
    var at = Int(row) * Int(row_stride) + Int(head * Int32(HEAD) + column)
    var k = load_chunk(rows, at)
    var v = load_chunk(rows, at + Int(heads) * HEAD)
    store_chunk(keys, Int(number) * chunk[dtype](), k)
    store_chunk(values, Int(number) * chunk[dtype](), v)

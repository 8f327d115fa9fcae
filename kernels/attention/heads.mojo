"""Keys and values as attention reads them, from the rows that a linear layer wrote.

    rows (B, T, N): the last 2*H*64 columns are [ key of head 0 .. H-1 | value of head 0 .. H-1 ]

    keys   (B, H, ceil(C/16), 64, 16)   key s of a head is column s % 16 of panel s / 16: a transposed, packed matrix
    values (B, H, C, 64)                value s of a head is row s

Row t of batch row b becomes key and value number `past[b] + t`. Cost: no arithmetic; 2*B*T*H*64 elements read and written.
"""

from std.collections import Array
from std.math import ceildiv

from ..cpu.threads import Workers
from ..cpu.tile import PANEL, WIDTH
from ..cpu.transpose import transpose
from ..data import Data
from .strip import HEAD


def head_column(row_stride: Int, heads: Int, head: Int) -> Int:
    """Where the key of a head begins in a row; its value is H * 64 columns further on.

    Args:
        row_stride: N.
        heads: H.
        head: Which head.
    """
    return row_stride - (2 * heads - head) * HEAD


def store_heads[
    dtype: DType, cache_type: DType, W: Workers, //
](
    keys: Data[cache_type],
    values: Data[cache_type],
    capacity: Int,
    rows: Data[dtype],
    row_stride: Int,
    past: Optional[Data[DType.int32]],
    batch: Int,
    heads: Int,
    length: Int,
    workers: W,
):
    """Scatters `length` rows per batch row into keys and values.

    Args:
        keys: (batch, heads, ceil(capacity/16), 64, 16); with no past, the columns behind the last key become zero.
        values: (batch, heads, capacity, 64).
        capacity: Keys per head.
        rows: (batch, length, row_stride).
        row_stride: N.
        past: Where each batch row's new keys begin; None is the beginning.
        batch: B.
        heads: H.
        length: T.
        workers: The threads.
    """
    var width = heads * HEAD

    @always_inline
    def some_heads(begin: Int, end: Int) {imm}:
        for matrix in range(begin, end):
            var b = matrix // heads
            var h = matrix % heads
            var start = Int(past.value()[unsafe_offset=b]) if past else 0
            var k = keys.unsafe_offset(matrix * ceildiv(capacity, PANEL) * HEAD * PANEL)
            var v = values.unsafe_offset((matrix * capacity + start) * HEAD)
            var row = rows.unsafe_offset(b * length * row_stride + head_column(row_stride, heads, h))
            for t in range(length):
                v.unsafe_store(t * HEAD, row.unsafe_load[width=HEAD](t * row_stride + width).cast[cache_type]())
            var t = 0
            while t < length:
                var s = start + t
                var column = k.unsafe_offset(s // PANEL * HEAD * PANEL + s % PANEL)
                if s % WIDTH == 0 and length - t >= WIDTH:
                    _store_keys(column, row.unsafe_offset(t * row_stride), row_stride)
                    t += WIDTH
                else:
                    comptime for j in range(HEAD):
                        column[unsafe_offset=j * PANEL] = row[unsafe_offset=t * row_stride + j].cast[cache_type]()
                    t += 1
            if not past:
                for s in range(length, ceildiv(length, PANEL) * PANEL):
                    for j in range(HEAD):
                        k[unsafe_offset=(s // PANEL * HEAD + j) * PANEL + s % PANEL] = 0

    workers.share(some_heads, batch * heads)


@no_inline
def _store_keys[dtype: DType, cache_type: DType, //](columns: Data[cache_type], rows: Data[dtype], stride: Int):
    """Writes WIDTH keys, side by side in a panel: squares of as many elements are transposed in registers."""
    for j in range(0, HEAD, WIDTH):
        var square = Array[SIMD[DType.float32, WIDTH], WIDTH](uninitialized=True)
        comptime for i in range(WIDTH):
            square[i] = rows.unsafe_load[width=WIDTH](i * stride + j).cast[DType.float32]()
        transpose[DType.float32, WIDTH](square)
        comptime for i in range(WIDTH):
            columns.unsafe_store((j + i) * PANEL, square[i].cast[cache_type]())

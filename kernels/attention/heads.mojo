"""Keys and values as attention reads them, from the rows that a linear layer wrote.

    rows (B, T, N): the last 2*H*64 columns are [ key of head 0 .. H-1 | value of head 0 .. H-1 ]

    keys   (B, H, ceil(C/16), 64, 16)   key s of a head is column s % 16 of panel s / 16: a transposed, packed matrix
    values (B, H, C, 64)                value s of a head is row s

Row t of batch row b becomes key and value number `past[b] + t`. Cost: no arithmetic; 2*B*T*H*64 elements read and written.
"""

from std.math import ceildiv

from ..cpu.threads import Workers
from ..cpu.tile import PANEL
from ..data import Data
from .strip import HEAD


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
            var row = rows.unsafe_offset(b * length * row_stride + row_stride - 2 * width + h * HEAD)
            for t in range(length):
                var s = start + t
                var column = k.unsafe_offset(s // PANEL * HEAD * PANEL + s % PANEL)
                comptime for j in range(HEAD):
                    column[unsafe_offset=j * PANEL] = row[unsafe_offset=j].cast[cache_type]()
                v.unsafe_store(t * HEAD, row.unsafe_load[width=HEAD](width).cast[cache_type]())
                row = row.unsafe_offset(row_stride)
            if not past:
                for s in range(length, ceildiv(length, PANEL) * PANEL):
                    for j in range(HEAD):
                        k[unsafe_offset=(s // PANEL * HEAD + j) * PANEL + s % PANEL] = 0

    workers.share(some_heads, batch * heads)

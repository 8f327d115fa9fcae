"""Keys and values as attention reads them, from the rows that a linear layer wrote.

    rows (B, T, N): the last 2*H*64 columns are [ key of head 0 .. H-1 | value of head 0 .. H-1 ]

    keys   (B, H, ceil(C/16), 64, 16)   key s of a head is column s % 16 of panel s / 16: a transposed, packed matrix
    values (B, H, C, 64)                value s of a head is row s

Row t of batch row b becomes key and value number `past[b] + t`.

In bfloat16, for products of pairs (`strip_bfloat16.mojo`), there is no past, and the layout is that of packed weights:

    keys   (B, H, ceil(S/16), 32, 32)      row r of a panel: elements 2r and 2r + 1 of 16 keys, in pairs
    values (B, H, 4, 16*ceil(S/32), 32)    row r of panel p: columns 16p .. 16p + 15 of the values 32*(r/16) + r%16 and of those
                                           16 further on, in pairs; zeros behind the last value

Cost: no arithmetic; 2*B*T*H*64 elements read and written.
"""

from std.math import ceildiv
from std.memory import bitcast

from ..cpu.operand import round_bfloat16
from ..cpu.threads import share
from ..cpu.tile import PANEL
from ..data import Data
from .strip import HEAD


def store_heads[
    dtype: DType, cache_type: DType, //
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

    share(some_heads, batch * heads)


comptime KEY_GROUP = 2 * PANEL
"""Keys and values that are paired with each other in bfloat16."""


def store_bfloat16_heads(
    keys: Data[DType.bfloat16],
    values: Data[DType.bfloat16],
    rows: Data[DType.float32],
    row_stride: Int,
    batch: Int,
    heads: Int,
    length: Int,
):
    """Rounds rows to keys and values for products of pairs, on all threads.

    Args:
        keys: (batch, heads, ceil(length/16), 32, 32).
        values: (batch, heads, 4, 16*ceil(length/32), 32).
        rows: (batch, length, row_stride).
        row_stride: N.
        batch: B.
        heads: H.
        length: T.
    """
    var groups = ceildiv(length, KEY_GROUP)

    @always_inline
    def some_groups(begin: Int, end: Int) {imm}:
        for task in range(begin, end):
            store_bfloat16_group(keys, values, rows, row_stride, heads, length, task // groups, task % groups)

    share(some_groups, batch * heads * groups)


def store_bfloat16_group(
    keys: Data[DType.bfloat16],
    values: Data[DType.bfloat16],
    rows: Data[DType.float32],
    row_stride: Int,
    heads: Int,
    length: Int,
    matrix: Int,
    group: Int,
):
    """Rounds 32 rows of one head; arguments as for `store_bfloat16_heads`.

    Args:
        keys: All keys.
        values: All values.
        rows: All rows.
        row_stride: N.
        heads: H.
        length: T.
        matrix: Batch row times H, plus head.
        group: Which 32 rows.
    """
    var panels = ceildiv(length, PANEL)
    var groups = ceildiv(length, KEY_GROUP)
    var first = group * KEY_GROUP
    var columns = row_stride - (2 * heads - matrix % heads) * HEAD
    var head = rows.unsafe_offset((matrix // heads * length + first) * row_stride + columns)
    var k = keys.unsafe_bitcast[Int32]().unsafe_offset((matrix * panels + 2 * group) * PANEL * HEAD // 2)
    for panel in range(min(2, panels - 2 * group)):
        var at = panel * PANEL
        _store_keys(
            k.unsafe_offset(at * HEAD // 2),
            head.unsafe_offset(at * row_stride),
            row_stride,
            min(PANEL, length - first - at),
        )
    var v = values.unsafe_bitcast[Int32]().unsafe_offset((matrix * HEAD // PANEL * groups + group) * PANEL * PANEL)
    _store_values(v, groups * PANEL * PANEL, head.unsafe_offset(heads * HEAD), row_stride, length - first)


@no_inline
def _store_keys(panel: Data[DType.int32], rows: Data[DType.float32], stride: Int, count: Int):
    """Writes a panel of 16 keys, of which `count` exist."""
    for key in range(PANEL):
        comptime for j in range(0, HEAD, PANEL):
            var x = SIMD[DType.float32, PANEL](0)
            if key < count:
                x = rows.unsafe_load[width=PANEL](key * stride + j)
            var words = bitcast[DType.int32, PANEL // 2](round_bfloat16(x).cast[DType.int16]())
            comptime for i in range(PANEL // 2):
                panel[unsafe_offset=(j // 2 + i) * PANEL + key] = words[i]


@no_inline
def _store_values(panels: Data[DType.int32], panel_stride: Int, rows: Data[DType.float32], stride: Int, count: Int):
    """Writes 16 rows of the four panels: 32 values, of which `count` exist."""
    for row in range(PANEL):
        comptime for j in range(0, HEAD, PANEL):
            var x = SIMD[DType.float32, PANEL](0)
            var y = SIMD[DType.float32, PANEL](0)
            if row < count:
                x = rows.unsafe_load[width=PANEL](row * stride + j)
            if row + PANEL < count:
                y = rows.unsafe_load[width=PANEL]((row + PANEL) * stride + j)
            var words = (round_bfloat16(x) & 0xFFFF) | (round_bfloat16(y) << 16)
            panels.unsafe_store(j // PANEL * panel_stride + row * PANEL, words)

"""Products of a few rows with packed panels of bfloat16 or int8 on the tile unit (`amx.mojo`), as exact as in SIMD registers.

A register has 16 rows and a decoding step fewer, so that each row comes in parts, which meet the same panels at no cost:

    int8       x = 16 h + l          12 bits by row, as everywhere for few rows (`operand.mojo`); h and l are bytes
    bfloat16   x = x1 + x2 + x3      exactly, 8 + 8 + 8 bits: what is rounded are the sums, as where panels are widened

               panel  panel
              +------+------+
      h  row 0|      |      |        C[row] = 16 C[h] + C[l]            int32: the same bits as `narrow.mojo`
         row 1|  C   |  C   |        C[row] = C[x1] + (C[x2] + C[x3])   float32
      l  row 0|      |      |
         row 1|      |      |
              +------+------+

Cost of 1 KB of a panel: one tile product, 16 cycles, for up to 8 rows of int8 or 5 of bfloat16, two for up to 10; reading it from
the second cache takes 18, from the third about 50. Dot products in SIMD registers take 32 for every row.
"""

from std.math import ceildiv
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc

from ..data import Data
from .amx import REGISTERS, TILE_ROWS, Tiles, multiply_tiles
from .beside import Apart
from .epilogue import Epilogue, finish
from .narrow import scale_sums
from .narrow_amx import SUMS, WORDS, pad
from .operand import HARDWARE_AMX, integers, reciprocal, row_scale
from .tile import PANEL, group, panel_rows, scale_rows

comptime parts[b_type: DType]: Int = 2 if b_type == DType.int8 else 3
"""Parts of a row."""

comptime most_rows[b_type: DType]: Int = 2 * TILE_ROWS // parts[b_type] if b_type == DType.bfloat16 else TILE_ROWS // 2
"""Rows whose parts fit into one strip of registers, or two."""


@no_inline
def _pack_parts[
    b_type: DType
](
    x: Data[DType.float32],
    stride: Int,
    rows: Int,
    depth: Int,
    words: Int,
    packed: Data[DType.int32],
    scales: Data[DType.float32],
):
    """Lays the parts of rows out as the tile unit takes them.

    Parameters:
        b_type: What they will meet.

    Args:
        x: First element of the first row.
        stride: Elements from one row to the next.
        rows: Rows.
        depth: Elements of a row.
        words: Times 4 bytes of a packed row, a multiple of 16.
        packed: Receives strips of `16 * words` words; part p of row i is row `p * rows + i` of them. Zeros where there is none.
        scales: Receives the scale of each row; untouched for bfloat16.
    """
    comptime size = 16 // group[b_type]  # words of 16 elements
    for i in range(ceildiv(parts[b_type] * rows, TILE_ROWS) * TILE_ROWS * words):
        packed[unsafe_offset=i] = 0
    for row in range(rows):
        var line = x.unsafe_offset(row * stride)
        var inverse = Float32(0)
        comptime if b_type == DType.int8:
            var scale = row_scale[DType.int16](line, depth)
            scales[unsafe_offset=row] = scale
            inverse = reciprocal(scale)
        for k in range(0, depth, 16):
            var values = SIMD[DType.float32, 16](0)
            if k + 16 <= depth:
                values = line.unsafe_load[width=16](k)
            else:
                for i in range(depth - k):
                    values[i] = line[unsafe_offset=k + i]
            var word = k // group[b_type]
            comptime for part in range(parts[b_type]):
                var at = part * rows + row
                var place = at // TILE_ROWS * TILE_ROWS * words
                place += (word // PANEL * TILE_ROWS + at % TILE_ROWS) * PANEL + word % PANEL
                comptime if b_type == DType.int8:
                    var n = integers(values, inverse)
                    var bytes = (n >> 4 if part == 0 else n & 15).cast[DType.int8]()
                    packed.unsafe_store(place, bitcast[DType.int32, size](bytes))
                else:
                    var upper = bitcast[DType.int32, 16](values) & -65536
                    values -= bitcast[DType.float32, 16](upper)
                    packed.unsafe_store(place, bitcast[DType.int32, size]((upper >> 16).cast[DType.int16]()))


@no_inline
def _join_parts[b_type: DType](sums: Data[DType.int32], rows: Int, panels: Int):
    """Adds the sums of the parts of each row, in place.

    Parameters:
        b_type: What they have met.

    Args:
        sums: For every part of every row, SUMS elements.
        rows: Rows.
        panels: Panels.
    """
    for row in range(rows):
        for column in range(0, panels * PANEL, PANEL):
            var first = sums.unsafe_offset(row * SUMS + column)
            var total = first.unsafe_load[width=PANEL](rows * SUMS)
            comptime if b_type == DType.int8:
                total += first.unsafe_load[width=PANEL](0) << 4
            else:
                var small = bitcast[DType.float32, PANEL](total)
                small += bitcast[DType.float32, PANEL](first.unsafe_load[width=PANEL](2 * rows * SUMS))
                var large = bitcast[DType.float32, PANEL](first.unsafe_load[width=PANEL](0))
                total = bitcast[DType.int32, PANEL](large + small)
            first.unsafe_store(0, total)


def multiply_few[
    b_type: DType, E: Epilogue, //
](
    a: Data[DType.float32],
    a_stride: Int,
    b: Data[b_type],
    depth: Int,
    row_begin: Int,
    row_end: Int,
    panel_begin: Int,
    panel_end: Int,
    columns: Int,
    epilogue: E,
):
    """Computes the rows and panels given with the tile unit, on the calling thread; arguments as for `multiply_dots`.
    """
    var count = ceildiv(depth, group[b_type])
    var whole = count // PANEL
    var words = ceildiv(count, PANEL) * PANEL
    var b_words = b.unsafe_bitcast[Int32]()
    var stride = panel_rows[b_type](depth) * PANEL

    var packed = unsafe_alloc[Int32](2 * TILE_ROWS * words, alignment=64)
    var scales = unsafe_alloc[Float32](TILE_ROWS)
    var tails = unsafe_alloc[Int32](2 * WORDS, alignment=64)
    var registers = unsafe_alloc[Int32](0 if HARDWARE_AMX else REGISTERS * WORDS, alignment=64)
    var sums = unsafe_alloc[Int32](2 * TILE_ROWS * SUMS, alignment=64)
    var tiles = Tiles(registers)
    tiles.begin()
    var apart = Apart()
    for first in range(row_begin, row_end, most_rows[b_type]):
        var rows = min(most_rows[b_type], row_end - first)
        _pack_parts[b_type](a.unsafe_offset(first * a_stride), a_stride, rows, depth, words, packed, scales)
        for panel in range(panel_begin, panel_end, 2):
            var panels = min(2, panel_end - panel)
            var values = b_words.unsafe_offset(panel * stride + scale_rows[b_type] * PANEL)
            for i in range(panels):
                pad(
                    values.unsafe_offset(i * stride + whole * WORDS),
                    count - whole * PANEL,
                    tails.unsafe_offset(i * WORDS),
                )
            comptime for s in range(1, 3):
                comptime for p in range(1, 3):
                    if ceildiv(parts[b_type] * rows, TILE_ROWS) == s and panels == p:
                        multiply_tiles[b_type, s, p, keep_a=True](
                            tiles, packed, TILE_ROWS * words, values, stride, tails, whole, sums, SUMS, apart
                        )
            _join_parts[b_type](sums, rows, panels)
            comptime if b_type == DType.int8:
                scale_sums[b_type](
                    sums,
                    SUMS,
                    rows,
                    panels,
                    scales,
                    b_words.unsafe_offset(panel * stride).unsafe_bitcast[Int8](),
                    stride * 4,
                    sums,
                )
            var end = min((panel + panels) * PANEL, columns)
            finish(rows, first, panel * PANEL, end, sums.unsafe_bitcast[Float32](), SUMS, epilogue)
    tiles.end()
    packed.unsafe_free()
    scales.unsafe_free()
    tails.unsafe_free()
    registers.unsafe_free()
    sums.unsafe_free()

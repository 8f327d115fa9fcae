"""Products of many rows with packed panels of bfloat16 or int8 on the tile unit (`amx.mojo`).

As `narrow.mojo`, with strips of 16 rows and tiles of two strips by two panels:

               panel  panel                   B: 16 rows of a panel, where they lie: 1 KB
              +------+------+                 A: 64 bytes of each of 16 rows, packed: 1 KB
    strip     |  C   |  C   |                 4 loads of 1 KB for 4 products
    strip     |  C   |  C   |
              +------+------+                 What a panel has behind its last whole KB is copied beside it, padded
                                              with zeros: no register is loaded from behind a matrix.
"""

from std.math import ceildiv
from std.memory import stack_allocation
from std.memory.alloc import unsafe_alloc

from ..data import Data
from .amx import REGISTERS, TILE_BYTES, TILE_ROWS, Tiles, multiply_tiles
from .epilogue import Epilogue, finish
from .narrow import BLOCK_BYTES, finish_pair, scale_sums
from .operand import HARDWARE_AMX, pack_strip
from .tile import PANEL, group, panel_rows, scale_rows

comptime WORDS = TILE_BYTES // 4
"""Times 4 bytes of a register."""

comptime SUMS = 2 * PANEL
"""Elements from one row of a tile's sums to the next."""


@no_inline
def pad(b: Data[DType.int32], rows: Int, output: Data[DType.int32]):
    """Copies fewer than 16 rows of a panel and fills the register up with zeros."""
    for row in range(PANEL):
        var words = SIMD[DType.int32, PANEL](0)
        if row < rows:
            words = b.unsafe_load[width=PANEL](row * PANEL)
        output.unsafe_store(row * PANEL, words)


def multiply_amx[
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
    var strip_words = TILE_ROWS * words
    var block = max(1, BLOCK_BYTES // (8 * strip_words)) * 2 * TILE_ROWS
    var strips = ceildiv(min(block, row_end - row_begin), TILE_ROWS)

    # On the heap: what inlined code writes to a stack allocation, the optimiser thinks no call reads (Mojo 1.2.0).
    var packed = unsafe_alloc[Int32](strips * strip_words, alignment=64)
    var a_scales = unsafe_alloc[Float32](strips * TILE_ROWS)
    var tails = unsafe_alloc[Int32](2 * WORDS, alignment=64)
    var registers = unsafe_alloc[Int32](0 if HARDWARE_AMX else REGISTERS * WORDS, alignment=64)
    var sums = stack_allocation[2 * TILE_ROWS * SUMS, DType.int32, alignment=64]()
    var tiles = Tiles(registers)
    tiles.begin()
    for first in range(row_begin, row_end, block):
        var last = min(first + block, row_end)
        for row in range(first, last, TILE_ROWS):
            pack_strip[b_type](
                a.unsafe_offset(row * a_stride),
                a_stride,
                min(TILE_ROWS, last - row),
                TILE_ROWS,
                PANEL,
                depth,
                words,
                packed.unsafe_offset((row - first) * words),
                a_scales.unsafe_offset(row - first),
            )
        for panel in range(panel_begin, panel_end, 2):
            var panels = min(2, panel_end - panel)
            var values = b_words.unsafe_offset(panel * stride + scale_rows[b_type] * PANEL)
            for i in range(panels):
                pad(
                    values.unsafe_offset(i * stride + whole * WORDS),
                    count - whole * PANEL,
                    tails.unsafe_offset(i * WORDS),
                )
            for row in range(first, last, 2 * TILE_ROWS):
                var rows = min(2 * TILE_ROWS, last - row)
                comptime for s in range(1, 3):
                    comptime for p in range(1, 3):
                        if ceildiv(rows, TILE_ROWS) == s and panels == p:
                            multiply_tiles[b_type, s, p](
                                tiles,
                                packed.unsafe_offset((row - first) * words),
                                strip_words,
                                values,
                                stride,
                                tails,
                                whole,
                                sums,
                                SUMS,
                            )
                var end = min((panel + panels) * PANEL, columns)
                comptime if b_type == DType.int8:
                    if end - panel * PANEL == SUMS:
                        finish_pair(
                            sums,
                            SUMS,
                            rows,
                            row,
                            panel * PANEL,
                            a_scales.unsafe_offset(row - first),
                            b_words.unsafe_offset(panel * stride).unsafe_bitcast[Int8](),
                            stride * 4,
                            epilogue,
                        )
                        continue
                    scale_sums[b_type](
                        sums,
                        SUMS,
                        rows,
                        panels,
                        a_scales.unsafe_offset(row - first),
                        b_words.unsafe_offset(panel * stride).unsafe_bitcast[Int8](),
                        stride * 4,
                        sums,
                    )
                finish(rows, row, panel * PANEL, end, sums.unsafe_bitcast[Float32](), SUMS, epilogue)
    tiles.end()
    packed.unsafe_free()
    a_scales.unsafe_free()
    tails.unsafe_free()
    registers.unsafe_free()

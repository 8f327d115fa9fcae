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
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc

from ..data import Data
from .amx import REGISTERS, TILE_BYTES, TILE_ROWS, Tiles, multiply_tiles
from .beside import Apart, Beside, keep_apart
from .epilogue import Epilogue, finish
from .narrow import BLOCK_BYTES, scale_sums
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


struct _Finishing[b_type: DType, E: Epilogue](Beside):
    """Hands the sums of a tile of two whole panels to the epilogue, those of bytes scaled: 16 columns a piece."""

    comptime phases = 2

    var sums: Data[DType.int32]
    var a_scales: Data[DType.float32]
    var b_scales: Data[DType.float32]
    var b_panel_stride: Int
    """Elements from the scales of one panel to those of the next."""
    var epilogue: Self.E
    var row: Int
    """The next of the tile."""
    var rows: Int
    """Rows of the tile."""
    var first: Int
    """The first of them in the product."""
    var column: Int
    """Its first column."""

    def __init__(
        out self,
        sums: Data[DType.int32],
        a_scales: Data[DType.float32],
        b_scales: Data[DType.float32],
        b_panel_stride: Int,
        epilogue: Self.E,
        rows: Int,
        first: Int,
        column: Int,
    ):
        """Begins with the first row."""
        self.sums = sums
        self.a_scales = a_scales
        self.b_scales = b_scales
        self.b_panel_stride = b_panel_stride
        self.epilogue = epilogue
        self.row = 0
        self.rows = rows
        self.first = first
        self.column = column

    @always_inline
    def piece[phase: Int](mut self):
        """Finishes half of a row."""
        if self.row >= self.rows:
            keep_apart()
            return
        self._store[phase](self._scales[phase]())
        comptime if phase == 1:
            self.row += 1

    def finish(mut self):
        """Does what is left."""
        var low = self._scales[0]()
        var high = self._scales[1]()
        for _ in range(self.row, self.rows):
            self._store[0](low)
            self._store[1](high)
            self.row += 1

    @always_inline
    def _scales[phase: Int](self) -> SIMD[DType.float32, PANEL]:
        """Those of a panel."""
        comptime if Self.b_type == DType.int8:
            return self.b_scales.unsafe_load[width=PANEL](phase * self.b_panel_stride)
        else:
            return SIMD[DType.float32, PANEL](1)

    @always_inline
    def _store[phase: Int](self, b_scales: SIMD[DType.float32, PANEL]):
        var words = self.sums.unsafe_load[width=PANEL](self.row * SUMS + phase * PANEL)
        var sums: SIMD[DType.float32, PANEL]
        comptime if Self.b_type == DType.int8:
            sums = words.cast[DType.float32]() * (self.a_scales[unsafe_offset=self.row] * b_scales)
        else:
            sums = bitcast[DType.float32, PANEL](words)
        self.epilogue.store[PANEL](self.first + self.row, self.column + phase * PANEL, sums)


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
    var both_sums = unsafe_alloc[Int32](2 * 2 * TILE_ROWS * SUMS, alignment=64)
    var sums = both_sums
    var finishing = _Finishing[b_type](both_sums, a_scales, a_scales, stride, epilogue, 0, 0, 0)
    var apart = Apart()
    var tiles = Tiles(registers)
    tiles.begin()
    for first in range(row_begin, row_end, block):
        var last = min(first + block, row_end)
        finishing.finish()  # before its scales are replaced
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
                var packed_rows = packed.unsafe_offset((row - first) * words)
                comptime for s in range(1, 3):
                    comptime for p in range(1, 3):
                        if ceildiv(rows, TILE_ROWS) == s and panels == p:
                            comptime if E.heavy:
                                multiply_tiles[b_type, s, p](
                                    tiles, packed_rows, strip_words, values, stride, tails, whole, sums, SUMS, finishing
                                )
                            else:
                                multiply_tiles[b_type, s, p](
                                    tiles, packed_rows, strip_words, values, stride, tails, whole, sums, SUMS, apart
                                )
                finishing.finish()
                var end = min((panel + panels) * PANEL, columns)
                if end - panel * PANEL == SUMS:
                    finishing = _Finishing[b_type](
                        sums,
                        a_scales.unsafe_offset(row - first),
                        b_words.unsafe_offset(panel * stride).unsafe_bitcast[Float32](),
                        stride,
                        epilogue,
                        rows,
                        row,
                        panel * PANEL,
                    )
                    comptime if E.heavy:
                        sums = both_sums.unsafe_offset(2 * TILE_ROWS * SUMS if sums == both_sums else 0)
                    else:
                        finishing.finish()
                    continue
                comptime if b_type == DType.int8:
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
    finishing.finish()
    tiles.end()
    packed.unsafe_free()
    a_scales.unsafe_free()
    tails.unsafe_free()
    registers.unsafe_free()
    both_sums.unsafe_free()

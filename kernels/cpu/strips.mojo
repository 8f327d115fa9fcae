"""Products of rows that lie in memory as dot products of bfloat16 take them, with panels that do: on tiles, or in SIMD.

    C (rows x 16 P) = or += A (rows x 2 W) B (2 W x 16 P)        W words: pairs of bfloat16

                    panel   panel                A: strips of rows, laid out as in `operand.mojo`
                  +-------+-------+              B: panels of W words by 16 columns, as in `tile.mojo`
    A: +---+---+  |   C   |   C   |              which two of the 2 W values of k share a word is up to the caller:
       | strip |  |   C   |   C   |              the sum is the same if A and B agree
       +---+---+  +-------+-------+

| unit     | rows of a strip     | at a time         | loads for a product of 16 x 16 x 32 | its multiplications |
| -------- | ------------------- | ----------------- | ----------------------------------- | ------------------- |
| AMX      | 2 of 16             | 2 x 2 registers   | 1 of 1 KB                           | 1 tdpbf16ps         |
| AVX-512  | 12                  | 12 rows, 2 panels | 19 of 64 bytes, 14 / 24 a product   | 256 vdpbf16ps       |
| others   | 6 or 3              | as in `tile.mojo` |                                     | two halves, widened |
"""

from std.math import ceildiv
from std.memory.alloc import unsafe_alloc

from ..data import Data
from .amx import REGISTERS, TILE_BYTES, TILE_ROWS, Tiles, multiply_resident
from .beside import Beside
from .narrow import dot_tiles
from .operand import AMX, HARDWARE_AMX, pack_strip
from .tile import PANEL, ROWS, tile_panels


trait StripProduct(TrivialRegisterPassable):
    """What multiplies strips with panels."""

    comptime rows: Int
    """Rows of a strip."""

    def __init__(out self):
        """Makes ready to multiply, on the thread that calls."""
        ...

    def end(self):
        """Gives back what `__init__` took."""
        ...

    @staticmethod
    def place(row: Int, word: Int, words: Int) -> Int:
        """Where in a strip a word lies; 16 words from a multiple of 16 on lie together.

        Args:
            row: Row of the strip.
            word: Word of the row.
            words: Words of a row, a multiple of 16.
        """
        ...

    @staticmethod
    def pack(x: Data[DType.float32], stride: Int, rows: Int, depth: Int, packed: Data[DType.int32]):
        """Rounds rows to bfloat16 and lays them out as a strip; the rows that are missing become zeros.

        Args:
            x: First element of the first row.
            stride: Elements from one row to the next.
            rows: Rows there are.
            depth: Elements of a row, a multiple of 32.
            packed: Receives `rows of a strip * depth / 2` words.
        """
        ...

    def multiply[
        B: Beside, //, accumulate: Bool
    ](
        self,
        rows: Int,
        panels: Int,
        a: Data[DType.int32],
        words: Int,
        b: Data[DType.int32],
        b_panel_stride: Int,
        c: Data[DType.float32],
        c_stride: Int,
        mut beside: B,
    ):
        """Multiplies a strip with panels.

        Parameters:
            B: Kind of the work beside.
            accumulate: Whether to add to c.

        Args:
            rows: Rows that count; others of the strip may be computed, too: c has room for them.
            panels: Panels.
            a: The strip.
            words: W, 16 or 32.
            b: First word of the first panel.
            b_panel_stride: Words from one panel to the next.
            c: Receives the sums.
            c_stride: Elements from one row of c to the next.
            beside: What vector units may do meanwhile, or some of it.
        """
        ...


struct TileStrips(StripProduct):
    """On the tile unit: a strip is two registers high."""

    comptime rows = 2 * TILE_ROWS

    var registers: Data[DType.int32]
    var tiles: Tiles

    def __init__(out self):
        """Configures the tile unit of this thread."""
        self.registers = unsafe_alloc[Int32](0 if HARDWARE_AMX else REGISTERS * TILE_BYTES // 4, alignment=64)
        self.tiles = Tiles(self.registers)
        self.tiles.begin()

    def end(self):
        """Releases the tile unit."""
        self.tiles.end()
        self.registers.unsafe_free()

    @staticmethod
    @always_inline
    def place(row: Int, word: Int, words: Int) -> Int:
        """A register of 16 rows by 16 words after another, then those of the next 16 rows."""
        comptime last = TILE_ROWS - 1
        return (row & ~last) * words + (row & last) * PANEL + (word & ~last) * TILE_ROWS + (word & last)

    @staticmethod
    def pack(x: Data[DType.float32], stride: Int, rows: Int, depth: Int, packed: Data[DType.int32]):
        """Packs 16 rows, then 16 more."""
        for row in range(0, Self.rows, TILE_ROWS):
            pack_strip[DType.bfloat16](
                x.unsafe_offset(row * stride),
                stride,
                min(TILE_ROWS, rows - row),
                TILE_ROWS,
                PANEL,
                depth,
                depth // 2,
                packed.unsafe_offset(row * depth // 2),
                x,  # there are no scales
            )

    def multiply[
        B: Beside, //, accumulate: Bool
    ](
        self,
        rows: Int,
        panels: Int,
        a: Data[DType.int32],
        words: Int,
        b: Data[DType.int32],
        b_panel_stride: Int,
        c: Data[DType.float32],
        c_stride: Int,
        mut beside: B,
    ):
        """Multiplies 16 or 32 rows, which stay in registers."""
        comptime for steps in range(1, 3):
            comptime for s in range(1, 3):
                if words == steps * PANEL and ceildiv(rows, TILE_ROWS) == s:
                    multiply_resident[DType.bfloat16, s, steps, accumulate](
                        self.tiles, a, b, b_panel_stride, panels, c.unsafe_bitcast[Int32](), c_stride, beside
                    )


struct DotStrips(StripProduct):
    """With dot products in SIMD registers: a strip has the rows of a register tile."""

    comptime rows = ROWS

    def __init__(out self):
        """Needs nothing."""
        pass

    def end(self):
        """Nothing is to be given back."""
        pass

    @staticmethod
    @always_inline
    def place(row: Int, word: Int, words: Int) -> Int:
        """Row after row."""
        return row * words + word

    @staticmethod
    def pack(x: Data[DType.float32], stride: Int, rows: Int, depth: Int, packed: Data[DType.int32]):
        """Packs row after row."""
        pack_strip[DType.bfloat16](x, stride, rows, ROWS, depth // 2, depth, depth // 2, packed, x)

    def multiply[
        B: Beside, //, accumulate: Bool
    ](
        self,
        rows: Int,
        panels: Int,
        a: Data[DType.int32],
        words: Int,
        b: Data[DType.int32],
        b_panel_stride: Int,
        c: Data[DType.float32],
        c_stride: Int,
        mut beside: B,
    ):
        """Multiplies all rows of the strip, as many panels at a time as the registers hold."""
        for panel in range(0, panels, tile_panels(ROWS)):
            dot_tiles[DType.bfloat16, accumulate](
                ROWS,
                min(tile_panels(ROWS), panels - panel),
                a,
                words,
                b.unsafe_offset(panel * b_panel_stride),
                b_panel_stride,
                words,
                c.unsafe_offset(panel * PANEL).unsafe_bitcast[Int32](),
                c_stride,
            )


comptime Strips = TileStrips if AMX else DotStrips
"""What this CPU multiplies bfloat16 with."""

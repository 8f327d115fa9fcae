"""What happens to the sums of a tile once they are complete."""

from ..data import Data
from .tile import PANEL, WIDTH


trait Epilogue(TrivialRegisterPassable):
    """What happens to a finished sum before it is stored."""

    comptime heavy: Bool = False
    """Whether it computes so much that tile units do products beside it; else what a tile's sums need is done at once."""

    def store[width: Int](self, row: Int, column: Int, sums: SIMD[DType.float32, width]):
        """Stores `sums`, the product's elements `[row, column ..< column + width]`."""
        ...


@no_inline  # inlined, a plain copy of the sums is dropped by the optimiser (Mojo 1.2.0)
def finish[
    E: Epilogue, //
](rows: Int, row: Int, begin: Int, end: Int, sums: Data[DType.float32], stride: Int, epilogue: E):
    """Hands the sums of a tile to the epilogue: columns `begin ..< end` of `rows` rows from `row` on.

    Args:
        rows: Rows of the tile.
        row: The first of them in the product.
        begin: First column.
        end: Column behind the last one.
        sums: The tile's sums, row by row.
        stride: Elements from one row of the sums to the next.
        epilogue: Receives every sum once.
    """
    comptime for panels in range(1, 3):  # what tiles have: a panel at a time, several registers of it side by side
        if end - begin == panels * PANEL:
            for i in range(rows):
                var line = sums.unsafe_offset(i * stride)
                comptime for column in range(0, panels * PANEL, PANEL):
                    epilogue.store[PANEL](row + i, begin + column, line.unsafe_load[width=PANEL](column))
            return
    var whole = begin + (end - begin) // WIDTH * WIDTH
    for i in range(rows):
        var line = sums.unsafe_offset(i * stride)
        for column in range(begin, whole, WIDTH):
            epilogue.store(row + i, column, line.unsafe_load[width=WIDTH](column - begin))
        for column in range(whole, end):
            epilogue.store[1](row + i, column, line[unsafe_offset=column - begin])

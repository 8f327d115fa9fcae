"""The blocked matrix product around the register tile.

    C[m, n] = epilogue( sum over k of A[m, k] * B[k, n] )

A is row-major with any row stride; B is packed in panels of 16 columns (see `tile.mojo`).

            N: panels of 16                     threads share rows of A when there are many (encoder),
        +----+----+----+----+                   panels of B when there are few (a decoding step)
        |    |    |    |    |  B, L3 or memory
        +----+----+----+----+
    +---+----+----+----+----+
    | A |tile|    |    |    |  a block of A rows stays in L2,
    |   +----+                 one panel of B in L1 while the tiles run down the block
    +---+

Floor: 2*M*N*K operations; bytes (M*K + K*N + M*N) * 4 once each when the blocks fit.
"""

from std.math import ceildiv

from ..data import Data
from .threads import share, worker_count
from .tile import PANEL, ROWS, VECTORS, WIDTH, multiply_tile, tile_panels

comptime BLOCK_BYTES = 192 * 1024
"""Bytes of A kept in the second-level cache while B's panels pass by."""


trait Epilogue(TrivialRegisterPassable):
    """What happens to a finished sum before it is stored."""

    def store[width: Int](self, row: Int, column: Int, sums: SIMD[DType.float32, width]):
        """Stores `sums`, the product's elements `[row, column ..< column + width]`."""
        ...


@always_inline
def _tile[
    a_type: DType, b_type: DType, E: Epilogue, //, rows: Int, panels: Int
](
    a: Data[a_type],
    a_stride: Int,
    b: Data[b_type],
    depth: Int,
    row: Int,
    panel: Int,
    columns: Int,
    epilogue: E,
):
    var sums = multiply_tile[rows, panels](
        a.unsafe_offset(row * a_stride), a_stride, b.unsafe_offset(panel * depth * PANEL), depth * PANEL, PANEL, depth
    )
    comptime for i in range(rows):
        comptime for p in range(panels):
            var first = (panel + p) * PANEL
            if first + PANEL <= columns:
                comptime for v in range(VECTORS):
                    epilogue.store(row + i, first + v * WIDTH, sums[(i * panels + p) * VECTORS + v])
            else:
                comptime for v in range(VECTORS):
                    comptime for lane in range(WIDTH):
                        if first + v * WIDTH + lane < columns:
                            epilogue.store[1](
                                row + i,
                                first + v * WIDTH + lane,
                                sums[(i * panels + p) * VECTORS + v][lane],
                            )


@always_inline
def _strip[
    a_type: DType, b_type: DType, E: Epilogue, //, rows: Int
](
    a: Data[a_type],
    a_stride: Int,
    b: Data[b_type],
    depth: Int,
    row: Int,
    panel_begin: Int,
    panel_end: Int,
    columns: Int,
    epilogue: E,
):
    """`rows` rows times a range of panels."""
    comptime together = tile_panels(rows)
    var panel = panel_begin
    while panel + together <= panel_end:
        _tile[rows, together](a, a_stride, b, depth, row, panel, columns, epilogue)
        panel += together
    comptime if together > 1:
        while panel < panel_end:
            _tile[rows, 1](a, a_stride, b, depth, row, panel, columns, epilogue)
            panel += 1


def multiply_block[
    a_type: DType, b_type: DType, E: Epilogue, //
](
    a: Data[a_type],
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
    """Computes the rows and panels given, on the calling thread.

    Args:
        a: First element of row 0 of A.
        a_stride: Elements from one row of A to the next.
        b: First element of panel 0 of B.
        depth: Length of the sum over k.
        row_begin: First row.
        row_end: Row behind the last one.
        panel_begin: First panel.
        panel_end: Panel behind the last one.
        columns: Columns of C that exist; a last panel may reach beyond them.
        epilogue: Receives every sum once.
    """
    comptime together = tile_panels(ROWS)
    var block = max(1, BLOCK_BYTES // (depth * 4 * ROWS + 1)) * ROWS
    var first = row_begin
    while first < row_end:
        var last = min(first + block, row_end)
        var whole = first + (last - first) // ROWS * ROWS
        for panel in range(panel_begin, panel_end, together):
            for row in range(first, whole, ROWS):
                _strip[ROWS](a, a_stride, b, depth, row, panel, min(panel + together, panel_end), columns, epilogue)
        comptime for rest in range(1, ROWS):
            if last - whole == rest:
                _strip[rest](a, a_stride, b, depth, whole, panel_begin, panel_end, columns, epilogue)
        first = last


def multiply[
    a_type: DType, b_type: DType, E: Epilogue, //
](
    a: Data[a_type],
    a_stride: Int,
    b: Data[b_type],
    rows: Int,
    columns: Int,
    depth: Int,
    epilogue: E,
):
    """Computes the whole product on all threads.

    Args:
        a: `rows x depth`, row-major.
        a_stride: Elements from one row of A to the next.
        b: `ceil(columns / 16)` panels of `depth x 16`.
        rows: M.
        columns: N.
        depth: K.
        epilogue: Receives every sum once.
    """
    var panels = ceildiv(columns, PANEL)
    if rows >= 8 * ROWS * worker_count():

        @always_inline
        def some_rows(begin: Int, end: Int) {imm}:
            multiply_block(
                a, a_stride, b, depth, begin * ROWS, min(end * ROWS, rows), 0, panels, columns, epilogue
            )

        share(some_rows, ceildiv(rows, ROWS))
    else:

        @always_inline
        def some_panels(begin: Int, end: Int) {imm}:
            multiply_block(a, a_stride, b, depth, 0, rows, begin, end, columns, epilogue)

        share(some_panels, panels)

"""The blocked matrix product around the register tile.

    C[m, n] = epilogue( sum over k of A[m, k] * B[k, n] )

A is row-major with any row stride; B is packed in panels of 16 columns, in float32, float16, bfloat16 or int8 (see
`tile.mojo`).
Narrow panels are multiplied as they are where the CPU has dot products for them (`operand.mojo` says which); the others are
widened to float32, once for all tiles that read them, or split for the tile unit (`split_amx.mojo`).

            N: panels of 16                     threads take pieces: rows of A and groups of panels when
        +----+----+----+----+                   there are many rows (encoder), panels when there are few
        |    |    |    |    |  B, L3 or memory
        +----+----+----+----+
    +---+----+----+----+----+
    | A |tile|    |    |    |  one panel of B stays in L1 or L2 while the tiles run down a block of A's rows, which
    |   +----+                 stream from L2 or L3: a tile uses what it reads of them PANEL times
    +---+

A sum that is longer than DEEP comes about in passes, so that a panel and the rows it meets stay in their caches; between two
of them the sums of a block of rows wait in memory.

Floor: 2*M*N*K operations; bytes M*K, K*N and M*N elements once each when the blocks fit.
"""

from std.math import ceildiv, clamp
from std.memory.alloc import unsafe_alloc
from std.sys import size_of

from ..data import Data
from .amx import TILE_ROWS
from .epilogue import Epilogue, finish
from .few_amx import multiply_few
from .narrow import multiply_dots
from .narrow_amx import multiply_amx
from .operand import AMX, DEEPEST, operand_type
from .split_amx import multiply_split, split_rows
from .threads import TURNS, Workers, grain, worker_count
from .tile import (
    MOST_PANELS,
    PANEL,
    ROWS,
    group,
    is_rounded,
    multiply_tile,
    panel_rows,
    row_size,
    scale_rows,
    tile_panels,
    widen_panel,
)

comptime BLOCK_BYTES = 768 * 1024
"""Bytes of A's rows that meet a panel of B before the next one is read, and widened if it is narrow. Four times what the
second cache keeps well: reading and widening every panel four times as often cost float16 a fifth, float32 a twentieth."""


def _block_rows(depth: Int) -> Int:
    """Rows of A that meet a panel before the next one is read."""
    return max(1, BLOCK_BYTES // (depth * 4 * ROWS + 1)) * ROWS


comptime DEEP = 1536
"""Longest sum that one pass over a block of rows takes. A panel this deep, widened, stays in the second cache; twice as deep,
none of it is left when the next tile reads it: 1500 rows of 3072 and 5120 took 3 to 20 % longer."""


def _pass_depth[b_type: DType](depth: Int) -> Int:
    """Length of the sums of one pass: passes are equally long, about, and begin with a row of a panel."""
    comptime if scale_rows[b_type] > 0:
        return depth  # its sums are scaled at the end: it has one pass
    return ceildiv(ceildiv(depth, ceildiv(depth, DEEP)), PANEL) * PANEL if depth > DEEP else depth


comptime _splits[a_type: DType, b_type: DType]: Bool = (
    AMX and a_type == DType.float32 and (b_type == DType.float32 or b_type == DType.float16)
)
"""Whether many rows are multiplied on the tile unit as sums of bfloat16."""


def _rounds_rows[a_type: DType, b_type: DType](depth: Int) -> Bool:
    """Whether many rows of A are rounded to operands of dot products."""
    comptime dots = a_type == DType.float32 and operand_type(b_type, many=True) != DType.float32
    return dots and depth <= DEEPEST


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
    comptime if a_type == DType.float32:
        var rows = row_end - row_begin
        var x = a.unsafe_bitcast[Float32]()
        comptime if AMX and is_rounded[b_type]:
            if 1 < rows and rows <= ROWS and depth <= DEEPEST:
                multiply_few(x, a_stride, b, depth, row_begin, row_end, panel_begin, panel_end, columns, epilogue)
                return
        comptime for few in range(2):
            comptime many = few == 0
            comptime operand = operand_type(b_type, many=many)
            comptime if operand != DType.float32:
                if many == (rows > ROWS) and 0 < rows and depth <= DEEPEST:
                    comptime if many and AMX:
                        multiply_amx(
                            x, a_stride, b, depth, row_begin, row_end, panel_begin, panel_end, columns, epilogue
                        )
                    else:
                        multiply_dots[operand](
                            x, a_stride, b, depth, row_begin, row_end, panel_begin, panel_end, columns, epilogue
                        )
                    return
    comptime if _splits[a_type, b_type]:
        if row_end - row_begin > ROWS:
            var x = a.unsafe_bitcast[Float32]()
            multiply_split(x, a_stride, b, depth, row_begin, row_end, panel_begin, panel_end, columns, epilogue)
            return
    var pass_depth = _pass_depth[b_type](depth) if row_end - row_begin > ROWS else depth
    var block = _block_rows(pass_depth)
    var panel_stride = panel_rows[b_type](depth) * row_size[b_type]
    var wide_stride = ceildiv(pass_depth, group[b_type]) * group[b_type] * PANEL
    var wide = Optional[Data[DType.float32]]()
    comptime if b_type != DType.float32:
        if row_end - row_begin > ROWS:
            wide = unsafe_alloc[Float32](tile_panels(ROWS) * wide_stride, alignment=64)
    # The sums of a tile, or between passes those of all tiles of a block.
    var passes = pass_depth < depth
    var width = (panel_end - panel_begin) * PANEL if passes else MOST_PANELS * PANEL
    var sums = unsafe_alloc[Float32]((min(block, row_end - row_begin) if passes else ROWS) * width, alignment=64)
    for first in range(row_begin, row_end, block):
        var last = min(first + block, row_end)
        var together = tile_panels(min(ROWS, last - first))
        for k in range(0, depth, pass_depth):
            var k_count = min(pass_depth, depth - k)
            for panel in range(panel_begin, panel_end, together):
                var panels = min(together, panel_end - panel)
                var narrow = b.unsafe_offset(panel * panel_stride + k // group[b_type] * row_size[b_type])
                comptime if b_type != DType.float32:
                    if last - first > ROWS:
                        for i in range(panels):
                            widen_panel(
                                narrow.unsafe_offset(i * panel_stride),
                                k_count,
                                wide.value().unsafe_offset(i * wide_stride),
                            )
                for row in range(first, last, ROWS):
                    var rows = min(ROWS, last - row)
                    var a_rows = a.unsafe_offset(row * a_stride + k)
                    var c = sums.unsafe_offset((row - first) * width + (panel - panel_begin) * PANEL if passes else 0)
                    if wide and last - first > ROWS:
                        multiply_tile(
                            rows, panels, a_rows, a_stride, wide.value(), wide_stride, PANEL, k_count, c, width, k > 0
                        )
                    else:
                        multiply_tile(
                            rows,
                            panels,
                            a_rows,
                            a_stride,
                            narrow,
                            panel_stride,
                            row_size[b_type],
                            k_count,
                            c,
                            width,
                            k > 0,
                        )
                    if k + k_count == depth:
                        finish(
                            rows,
                            row,
                            panel * PANEL,
                            min((panel + panels) * PANEL, columns),
                            c,
                            width,
                            epilogue,
                        )
    sums.unsafe_free()
    if wide:
        wide.value().unsafe_free()


def multiply[
    a_type: DType, b_type: DType, E: Epilogue, W: Workers, //
](a: Data[a_type], a_stride: Int, b: Data[b_type], rows: Int, columns: Int, depth: Int, epilogue: E, workers: W):
    """Computes the whole product on all threads.

    Args:
        a: `rows x depth`, row-major.
        a_stride: Elements from one row of A to the next.
        b: `ceil(columns / 16)` packed panels.
        rows: M.
        columns: N.
        depth: K.
        epilogue: Receives every sum once.
        workers: The threads.
    """
    var panels = ceildiv(columns, PANEL)
    if rows >= 8 * ROWS * worker_count():
        # Where rows are rounded to operands or split first, a piece has all panels, so that it happens once, and enough rows
        # to count as many; where panels are widened or split, as many rows as that is worth.
        comptime unit = 2 * TILE_ROWS if AMX else ROWS  # rows of a tile
        var heights = min(worker_count() * TURNS, rows // (3 * unit if AMX else 4 * unit))
        var widths = 1
        comptime if _splits[a_type, b_type]:
            heights = ceildiv(rows, split_rows(depth))
        else:
            if not _rounds_rows[a_type, b_type](depth):
                heights = ceildiv(rows, _block_rows(_pass_depth[b_type](depth)))
                widths = min(panels, ceildiv(worker_count() * TURNS, heights))
        var strips = ceildiv(rows, unit)
        heights = clamp(ceildiv(heights, worker_count()) * worker_count(), 1, strips)  # as many for each thread

        @always_inline
        def some_pieces(begin: Int, end: Int) {imm}:
            for piece in range(begin, end):
                var height = piece // widths
                var width = piece % widths
                multiply_block(
                    a,
                    a_stride,
                    b,
                    depth,
                    strips * height // heights * unit,
                    min(strips * (height + 1) // heights * unit, rows),
                    panels * width // widths,
                    panels * (width + 1) // widths,
                    columns,
                    epilogue,
                )

        workers.share(some_pieces, heights * widths, turns=heights * widths)
    else:

        @always_inline
        def some_panels(begin: Int, end: Int) {imm}:
            multiply_block(a, a_stride, b, depth, 0, rows, begin, end, columns, epilogue)

        # One row is done in 20 us, or is rounded anew for every range.
        workers.share(
            some_panels, panels, grain(panel_rows[b_type](depth) * row_size[b_type] * size_of[b_type]() * rows), turns=1
        )

"""Products with packed panels of bfloat16 or int8 by dot products of narrow operands (see `operand.mojo`).

    C[m, n] = epilogue( a_scale[m] * b_scale[n] * sum over k of a[m, k] * b[k, n] )        both scales are 1 in bfloat16

             panels, read where they lie        for a block of rows that fits the second cache:
            +----+----+----+----+                 round it to operands, once, in strips
            |    |    |    |    |                 for a tile's width of panels:
            +----+----+----+----+                   int16 and many rows: widen their bytes
    +-----+ +----+----+                             for every strip: the tile's sums, their scales, the epilogue
    |strip| |tile|    |
    +-----+ +----+----+

Cost: 2*M*N*K operations, at the rate of the table in `operand.mojo`; M*K roundings, by each thread that shares columns.
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import bitcast, stack_allocation
from std.memory.alloc import unsafe_alloc
from std.sys import CompilationTarget, inlined_assembly

from ..data import Data
from .epilogue import Epilogue, finish
from .operand import BYTE_OFFSET, dot, lanes, operand_type, pack_strip
from .prefetch import ask_for
from .tile import MOST_PANELS, PANEL, ROWS, UNROLLED, VECTORS, WIDTH, group, panel_rows, panel_scales, scale_rows
from .tile import tile_panels

comptime BLOCK_BYTES = 192 * 1024
"""Bytes of rounded rows kept in the second cache while panels pass by."""

comptime _AHEAD = 20
"""Rows of a panel, 1.3 KB in each of those side by side, between the one that is multiplied and the one asked for:
more push out of the first cache what is not read yet, fewer come late (docs/kernels/decoder.md)."""

comptime SUMS = MOST_PANELS * PANEL
"""Elements from one row of a tile's sums to the next."""


@always_inline
def _settled(x: SIMD[DType.int32, WIDTH]) -> SIMD[DType.int32, WIDTH]:
    """The same value, and for the compiler a new one: sums of both halves of a word, which it would otherwise add in
    another order, need more registers than there are; it also loads b a second time, from the first cache."""
    comptime if CompilationTarget.is_x86():
        return inlined_assembly["", SIMD[DType.int32, WIDTH], constraints="=v,0,~{memory}"](x)
    else:
        return x


@always_inline
def _halves[part: Int](word: SIMD[DType.int32, WIDTH]) -> SIMD[DType.int32, WIDTH]:
    """Two of the four bytes of each word as int16: a and c, or b and d."""
    var bytes = bitcast[DType.int16, 2 * WIDTH](word)
    return bitcast[DType.int32, WIDTH](bytes << 8 >> 8 if part == 0 else bytes >> 8)


def _widen_panel(panel: Data[DType.int32], count: Int, output: Data[DType.int32]):
    """Writes a panel of int8 as one of int16: two rows for each of its `count`.

    Worth it when many tiles read the panel.
    """
    for k in range(count):
        comptime for v in range(VECTORS):
            var word = panel.unsafe_load[width=WIDTH](k * PANEL + v * WIDTH)
            comptime for part in range(2):
                output.unsafe_store((2 * k + part) * PANEL + v * WIDTH, _halves[part](word))


@always_inline
def add_dots[
    rows: Int, panels: Int, //, operand: DType, widened: Bool
](
    mut totals: Array[SIMD[DType.int32, WIDTH], rows * panels * VECTORS],
    a: Data[DType.int32],
    a_stride: Int,
    b: Data[DType.int32],
    b_panel_stride: Int,
    count: Int,
):
    """Adds the dot products of a strip and some panels to sums in registers.

    Parameters:
        rows: Rows of the strip.
        panels: Panels.
        operand: Type of a's values.
        widened: Whether b holds int16, not int8; for int16 only.

    Args:
        totals: The sums, row by row: the bits of float32 for bfloat16, else int32.
        a: The strip.
        a_stride: Times 4 bytes from one row of it to the next.
        b: First row of values of the first panel.
        b_panel_stride: Times 4 bytes from one panel to the next.
        count: Rows of a panel.
    """
    comptime columns = panels * VECTORS
    comptime parts = 2 if operand == DType.int16 and not widened else 1  # operands in 4 bytes of b

    @always_inline
    def add_row(k: Int) {imm a, imm a_stride, imm b, imm b_panel_stride, imm count, mut totals}:
        # In float32 and bfloat16, where twice and four times as many lines come for the same arithmetic, this does not pay.
        comptime if rows == 1:
            var ahead = _AHEAD * PANEL if k + _AHEAD < count else panels * b_panel_stride - (count - _AHEAD) * PANEL
            comptime for p in range(panels):
                ask_for(b.unsafe_offset(p * b_panel_stride + k * PANEL + ahead))
        comptime for part in range(parts):
            var b_k = Array[SIMD[DType.int32, WIDTH], columns](uninitialized=True)
            comptime for j in range(columns):
                b_k[j] = b.unsafe_load[width=WIDTH](j // VECTORS * b_panel_stride + k * PANEL + j % VECTORS * WIDTH)
                comptime if parts == 2:
                    b_k[j] = _halves[part](b_k[j])
            comptime for i in range(rows):
                var a_k = SIMD[DType.int32, WIDTH](a[unsafe_offset=i * a_stride + k * parts + part])
                comptime for j in range(columns):
                    totals[i * columns + j] = dot[operand](totals[i * columns + j], a_k, b_k[j])
            comptime if widened or part + 1 < parts:
                comptime for i in range(rows * columns):
                    totals[i] = _settled(totals[i])

    comptime step = UNROLLED // 2 if widened else 1  # more of them spill: the compiler begins sums early
    var whole = count // step * step
    for begin in range(0, whole, step):
        comptime for k in range(step):
            add_row(begin + k)
    comptime if step > 1:
        for k in range(whole, count):
            add_row(k)


@no_inline
def _dot_tile[
    operand: DType, accumulate: Bool, widened: Bool, rows: Int, panels: Int
](
    a: Data[DType.int32],
    a_stride: Int,
    b: Data[DType.int32],
    b_panel_stride: Int,
    count: Int,
    sums: Data[DType.int32],
    sums_stride: Int,
):
    """Stores the sums of one strip of `rows` rows and `panels` panels; arguments as for `add_dots` and `dot_tiles`."""
    comptime columns = panels * VECTORS
    var totals = Array[SIMD[DType.int32, WIDTH], rows * panels * VECTORS](fill=SIMD[DType.int32, WIDTH](0))
    comptime if accumulate:
        comptime for i in range(rows):
            comptime for j in range(columns):
                totals[i * columns + j] = sums.unsafe_load[width=WIDTH](i * sums_stride + j * WIDTH)
    add_dots[operand, widened](totals, a, a_stride, b, b_panel_stride, count)
    comptime for i in range(rows):
        comptime for j in range(columns):
            sums.unsafe_store(i * sums_stride + j * WIDTH, totals[i * columns + j])


def dot_tiles[
    operand: DType, accumulate: Bool = False, widened: Bool = False
](
    rows: Int,
    panels: Int,
    a: Data[DType.int32],
    a_stride: Int,
    b: Data[DType.int32],
    b_panel_stride: Int,
    count: Int,
    sums: Data[DType.int32],
    sums_stride: Int,
):
    """Stores the sums of one strip and some panels, up to `tile_panels(rows)`.

    Parameters:
        operand: Type of a's values. Only int16, against bytes, comes in strips of less than ROWS rows.
        accumulate: Whether to add to the sums that are there.
        widened: Whether b holds int16, not int8; for int16 only.

    Args:
        rows: Rows of the strip.
        panels: Panels.
        a: The strip.
        a_stride: Times 4 bytes from one row of it to the next.
        b: First row of values of the first panel.
        b_panel_stride: Times 4 bytes from one panel to the next.
        count: Rows of a panel.
        sums: Receives int32, or float32 for bfloat16.
        sums_stride: Elements from one row of the sums to the next.
    """
    comptime for r in range(1 if operand == DType.int16 and not widened else ROWS, ROWS + 1):
        if rows == r:
            comptime together = tile_panels(r)
            if panels == together:
                _dot_tile[operand, accumulate, widened, r, together](
                    a, a_stride, b, b_panel_stride, count, sums, sums_stride
                )
                return
            comptime if together > 1:
                for p in range(panels):
                    _dot_tile[operand, accumulate, widened, r, 1](
                        a,
                        a_stride,
                        b.unsafe_offset(p * b_panel_stride),
                        0,
                        count,
                        sums.unsafe_offset(p * PANEL),
                        sums_stride,
                    )


@no_inline
def _offset_sums(b: Data[DType.int32], count: Int, output: Data[DType.int32]):
    """What BYTE_OFFSET on every activation adds to the sums of a panel's 16 columns."""
    comptime half = Int32(0x01010101 * (BYTE_OFFSET // 2))  # 128 twice is more than a byte's sign leaves room for
    comptime for v in range(VECTORS):
        var total = SIMD[DType.int32, WIDTH](0)
        for k in range(count):
            var b_k = b.unsafe_load[width=WIDTH](k * PANEL + v * WIDTH)
            total = dot[DType.uint8](total, SIMD[DType.int32, WIDTH](half), b_k)
        output.unsafe_store(v * WIDTH, 2 * total)


@no_inline
def scale_sums[
    operand: DType
](
    sums: Data[DType.int32],
    stride: Int,
    rows: Int,
    panels: Int,
    a_scales: Data[DType.float32],
    b: Data[DType.int8],
    b_panel_stride: Int,
    offsets: Data[DType.int32],
):
    """Turns sums of integers into float32, in place.

    Parameters:
        operand: What was multiplied; uint8 has offsets.

    Args:
        sums: The tile's sums.
        stride: Elements from one row of them to the next.
        rows: Rows of the tile.
        panels: Panels of the tile.
        a_scales: Scale of each row.
        b: The first panel, with its scales in front.
        b_panel_stride: Elements from one panel to the next.
        offsets: For each column what BYTE_OFFSET added.
    """
    for panel in range(panels):
        var b_scales = panel_scales(b.unsafe_offset(panel * b_panel_stride))
        for i in range(rows):
            var a_scale = SIMD[DType.float32, WIDTH](a_scales[unsafe_offset=i])
            comptime for v in range(VECTORS):
                var at = i * stride + panel * PANEL + v * WIDTH
                var total = sums.unsafe_load[width=WIDTH](at)
                comptime if operand == DType.uint8:
                    total -= offsets.unsafe_load[width=WIDTH](panel * PANEL + v * WIDTH)
                var scale = a_scale * b_scales.unsafe_load[width=WIDTH](v * WIDTH)
                sums.unsafe_store(at, bitcast[DType.int32, WIDTH](total.cast[DType.float32]() * scale))


def multiply_dots[
    b_type: DType, E: Epilogue, //, operand: DType
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
    """Computes the rows and panels given with SIMD dot products, on the calling thread.

    Parameters:
        b_type: Element type of b.
        E: The epilogue.
        operand: What rows of a are rounded to.

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
    var strip = min(ROWS, row_end - row_begin)
    var together = tile_panels(strip)
    var count = ceildiv(depth, group[b_type])
    var words = count * group[b_type] // lanes[operand]
    var b_words = b.unsafe_bitcast[Int32]()
    var stride = panel_rows[b_type](depth) * PANEL
    var block = max(1, BLOCK_BYTES // (4 * words * strip))
    var strips = min(block, ceildiv(row_end - row_begin, strip))

    # Where rows are many, a panel of bytes is widened once for all of them.
    comptime may_widen = operand == DType.int16 and operand_type(b_type, many=True) == DType.int16
    var widens = may_widen and row_end - row_begin > ROWS
    var wide = unsafe_alloc[Int32](together * words * PANEL if widens else 0, alignment=64)

    var packed = unsafe_alloc[Int32](strips * strip * words, alignment=64)
    var a_scales = unsafe_alloc[Float32](strips * strip)
    var sums = stack_allocation[ROWS * SUMS, DType.int32, alignment=64]()
    var offsets = stack_allocation[SUMS, DType.int32, alignment=64]()
    for first in range(row_begin, row_end, block * strip):
        var last = min(first + block * strip, row_end)
        for row in range(first, last, strip):
            pack_strip[operand](
                a.unsafe_offset(row * a_stride),
                a_stride,
                min(strip, last - row),
                strip,
                words,
                depth,
                words,
                packed.unsafe_offset((row - first) * words),
                a_scales.unsafe_offset(row - first),
            )
        for panel in range(panel_begin, panel_end, together):
            var panels = min(together, panel_end - panel)
            var values = b_words.unsafe_offset(panel * stride + scale_rows[b_type] * PANEL)
            comptime if operand == DType.uint8:
                for i in range(panels):
                    _offset_sums(values.unsafe_offset(i * stride), count, offsets.unsafe_offset(i * PANEL))
            if widens:
                for i in range(panels):
                    _widen_panel(values.unsafe_offset(i * stride), count, wide.unsafe_offset(i * words * PANEL))
            for row in range(first, last, strip):
                var rows = min(strip, last - row)
                var a_strip = packed.unsafe_offset((row - first) * words)
                comptime if may_widen:
                    if widens:
                        dot_tiles[operand, widened=True](
                            strip, panels, a_strip, words, wide, words * PANEL, words, sums, SUMS
                        )
                if not widens:
                    dot_tiles[operand](strip, panels, a_strip, words, values, stride, count, sums, SUMS)
                comptime if operand != DType.bfloat16:
                    scale_sums[operand](
                        sums,
                        SUMS,
                        rows,
                        panels,
                        a_scales.unsafe_offset(row - first),
                        b_words.unsafe_offset(panel * stride).unsafe_bitcast[Int8](),
                        stride * 4,
                        offsets,
                    )
                var end = min((panel + panels) * PANEL, columns)
                finish(rows, row, panel * PANEL, end, sums.unsafe_bitcast[Float32](), SUMS, epilogue)
    wide.unsafe_free()
    packed.unsafe_free()
    a_scales.unsafe_free()

"""Products of float32 on the tile unit of bfloat16 (`amx.mojo`): operands become sums of bfloat16, products sums of products.

    a = a1 + a2 + a3              exactly: 24 bits are 8 + 8 + 8; a1 is a without its lower 16 bits, a2 the same of a - a1
    w = w1 + w2 (+ w3)            exactly: float16 has 11 bits, 8 + 3, float32 three terms as a

    a w = a1 w1 + (a1 w2 + a2 w1) + (a2 w2 + a3 w1 + a1 w3) + ...            sums in float32

             w1   w2   w3         5 products for float16, 6 for float32: those in brackets are left out
    a1        x    x    x
    a2        x    x   ( )        terms after the first are less than 2^-7 and 2^-15 of the whole, so what is left out is less
    a3        x   ( )  ( )        than 2^-22 |a w| for float16, 2^-21 |a w| for float32

A sum of K products in float32 may be off by K 2^-24 sum |a w|: from K = 8 on by more than what is left out. Nothing is lost
where all terms but the first are zero: weights of float16 give the same bits whether they come as float16 or as float32.
The tile unit takes what is below 2^-126 for zero.

From one product to the next only one factor changes, so that 2 x 2 registers of C need 12 loads for 20 products (float16), or 14 for
24; all terms of 32 k of a strip or panel lie together.

Cost of 16 rows, 16 columns and 32 k: 5 or 6 tile products, 80 or 96 cycles, where AVX-512 takes 256. Splitting 16 elements of A
takes about 6 cycles, once for all columns, and 32 of B 7 to 9, once for the rows of a block: with 384 columns and 192 rows
that is 17 or 19 more.
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import bitcast, stack_allocation
from std.memory.alloc import unsafe_alloc

from ..data import Data
from .amx import REGISTERS, TILE_BYTES, TILE_ROWS, TileUnit, Tiles
from .epilogue import Epilogue, finish
from .operand import HARDWARE_AMX
from .tile import PANEL, panel_rows, row_size

comptime BLOCK_BYTES = 1024 * 1024
"""Bytes of split rows kept in the second cache while panels pass by."""

comptime WORDS = TILE_BYTES // 4
"""Times 4 bytes of a register."""

comptime SUMS = 2 * PANEL
"""Elements from one row of a tile's sums to the next."""

comptime A_TERMS = 3
"""Terms of an activation."""

comptime weight_terms[b_type: DType]: Int = 2 if b_type == DType.float16 else 3
"""Terms of a weight."""

comptime _ROUTE: Array[Array[Int, 2], 6] = [[2, 0], [1, 0], [1, 1], [0, 1], [0, 2], [0, 0]]
"""Which terms of A and B are multiplied, one after the other; a product is left out where B has no such term."""


@always_inline
def _split[terms: Int](x: SIMD[DType.float32, 16]) -> Array[SIMD[DType.int32, 16], terms]:
    """Splits 16 numbers into bfloat16, in the upper halves of words whose lower halves are zero."""
    var parts = Array[SIMD[DType.int32, 16], terms](uninitialized=True)
    var rest = x
    comptime for t in range(terms):
        parts[t] = bitcast[DType.int32, 16](rest) & -65536
        rest -= bitcast[DType.float32, 16](parts[t])
    return parts^


@no_inline
def _split_strip(
    x: Data[DType.float32],
    stride: Int,
    rows: Int,
    depth: Int,
    words: Int,
    packed: Data[DType.int32],
):
    """Lays 16 rows of A out for registers: the terms of 32 k one after another, then those of the next.

    Args:
        x: First element of the first row.
        stride: Elements from one row to the next.
        rows: Rows there are; the others become zeros.
        depth: Elements of a row.
        words: Pairs of a row of one term, a multiple of 16.
        packed: Receives `3 * 16 * words` words.
    """
    for row in range(TILE_ROWS):
        for first in range(0, words, 8):
            var k = 2 * first
            var values = SIMD[DType.float32, 16](0)
            if row < rows:
                if k + 16 <= depth:
                    values = x.unsafe_load[width=16](row * stride + k)
                else:
                    for i in range(depth - k):
                        values[i] = x[unsafe_offset=row * stride + k + i]
            var parts = _split[A_TERMS](values)
            var place = (first >> 4) * A_TERMS * WORDS + row * PANEL + (first & 15)  # PANEL is 16
            comptime for t in range(A_TERMS):
                var pairs = bitcast[DType.int32, 8]((parts[t] >> 16).cast[DType.int16]())
                packed.unsafe_store(t * WORDS + place, pairs)


@no_inline
def _split_panel[b_type: DType, //](panel: Data[b_type], depth: Int, words: Int, output: Data[DType.int32]):
    """Writes a panel of B as pairs: the terms of 32 k one after another, then those of the next.

    Args:
        panel: A packed panel of float32 or float16.
        depth: Values of k.
        words: Rows of pairs, a multiple of 16; those behind the last value become zeros.
        output: Receives `words` rows of 16 words for every term.
    """
    comptime terms = weight_terms[b_type]
    for row in range(words):
        var x = SIMD[DType.float32, 16](0)
        var y = SIMD[DType.float32, 16](0)
        if 2 * row < depth:
            x = panel.unsafe_load[width=PANEL](2 * row * PANEL).cast[DType.float32]()
        if 2 * row + 1 < depth:
            y = panel.unsafe_load[width=PANEL]((2 * row + 1) * PANEL).cast[DType.float32]()
        var lower = _split[terms](x)
        var upper = _split[terms](y)
        comptime for t in range(terms):
            var place = (row // PANEL * terms + t) * WORDS + row % PANEL * PANEL
            output.unsafe_store(place, ((lower[t] >> 16) & 0xFFFF) | upper[t])


@no_inline
def _multiply_terms[
    T: TileUnit, //, b_terms: Int, strips: Int, panels: Int
](tiles: T, a: Data[DType.int32], b: Data[DType.int32], count: Int, sums: Data[DType.int32]):
    """Stores the sums of one or two strips and one or two panels, over all products of terms that count.

    Parameters:
        T: The tile unit.
        b_terms: Terms of b.
        strips: Strips of a.
        panels: Panels of b.

    Args:
        tiles: The tile unit, after `begin`.
        a: The strips one after another, each of them `3 * count` KB.
        b: The panels one after another, each of them `b_terms * count` KB.
        count: Times 32 k.
        sums: Receives float32, SUMS elements from row to row.
    """
    comptime for c in range(strips * panels):
        tiles.clear[c]()
    for i in range(count):

        @always_inline
        def load_a[term: Int]() {imm}:
            comptime for s in range(strips):
                tiles.load[4 + s](a.unsafe_offset(((s * count + i) * A_TERMS + term) * WORDS))

        @always_inline
        def load_b[term: Int]() {imm}:
            comptime for p in range(panels):
                tiles.load[6 + p](b.unsafe_offset(((p * count + i) * b_terms + term) * WORDS))

        load_a[_ROUTE[0][0]]()
        load_b[_ROUTE[0][1]]()
        comptime for step in range(6):
            comptime a_term = _ROUTE[step][0]
            comptime b_term = _ROUTE[step][1]
            comptime if b_term < b_terms:
                comptime if step > 0 and a_term != _ROUTE[step - 1][0]:
                    load_a[a_term]()
                comptime if step > 0 and b_term != _ROUTE[step - 1][1]:
                    load_b[b_term]()
                comptime for s in range(strips):
                    comptime for p in range(panels):
                        tiles.multiply[DType.bfloat16, s * panels + p, 4 + s, 6 + p]()
    comptime for s in range(strips):
        comptime for p in range(panels):
            tiles.store[s * panels + p](sums.unsafe_offset(s * TILE_ROWS * SUMS + p * PANEL), SUMS)


def multiply_split[
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
    """Computes the rows and panels given with the tile unit, on the calling thread; arguments as for `multiply_block`.
    """
    comptime b_terms = weight_terms[b_type]
    var count = ceildiv(depth, 2 * PANEL)
    var words = count * PANEL
    var stride = panel_rows[b_type](depth) * row_size[b_type]
    var strip_words = TILE_ROWS * words
    var block = max(1, BLOCK_BYTES // (2 * A_TERMS * 4 * strip_words)) * 2 * TILE_ROWS
    var strips = ceildiv(min(block, row_end - row_begin), TILE_ROWS)

    # On the heap: what inlined code writes to a stack allocation, the optimiser thinks no call reads (Mojo 1.2.0).
    var packed = unsafe_alloc[Int32](A_TERMS * strips * strip_words, alignment=64)
    var split = unsafe_alloc[Int32](2 * b_terms * count * WORDS, alignment=64)
    var registers = unsafe_alloc[Int32](0 if HARDWARE_AMX else REGISTERS * WORDS, alignment=64)
    var sums = stack_allocation[2 * TILE_ROWS * SUMS, DType.int32, alignment=64]()
    var tiles = Tiles(registers)
    tiles.begin()
    for first in range(row_begin, row_end, block):
        var last = min(first + block, row_end)
        for row in range(first, last, TILE_ROWS):
            _split_strip(
                a.unsafe_offset(row * a_stride),
                a_stride,
                min(TILE_ROWS, last - row),
                depth,
                words,
                packed.unsafe_offset(A_TERMS * (row - first) * words),
            )
        for panel in range(panel_begin, panel_end, 2):
            var panels = min(2, panel_end - panel)
            for p in range(panels):
                _split_panel(
                    b.unsafe_offset((panel + p) * stride),
                    depth,
                    words,
                    split.unsafe_offset(p * b_terms * count * WORDS),
                )
            for row in range(first, last, 2 * TILE_ROWS):
                var rows = min(2 * TILE_ROWS, last - row)
                comptime for s in range(1, 3):
                    comptime for p in range(1, 3):
                        if ceildiv(rows, TILE_ROWS) == s and panels == p:
                            _multiply_terms[b_terms, s, p](
                                tiles,
                                packed.unsafe_offset(A_TERMS * (row - first) * words),
                                split,
                                count,
                                sums,
                            )
                var end = min((panel + panels) * PANEL, columns)
                finish(rows, row, panel * PANEL, end, sums.unsafe_bitcast[Float32](), SUMS, epilogue)
    tiles.end()
    packed.unsafe_free()
    split.unsafe_free()
    registers.unsafe_free()

"""Products of float32 on the tile unit of bfloat16 (`amx.mojo`): operands become sums of two bfloat16, products sums of three.

    a = a1 + a2 + r      a1 the bfloat16 nearest to a, a2 the one nearest to a - a1:  |a2| <= 2^-8 |a|,  |r| <= 2^-16 |a|
    w = w1 + w2          exactly where w is a float16, whose 11 bits are 8 + 3; else as a

    a w ~ a1 w1 + a1 w2 + a2 w1                     sums in float32

What is left out, a2 w2 and r w (and a r' for w of float32), is at most 2^-15 |a w| (3 * 2^-16 |a w| for float32), as often
too much as too little, and 2^-18 |a w| in the mean square: of a sum of K products about 2^-18 of a product times sqrt(K), where float32
itself loses up to 2^-24 K sum |a w|, and in the mean some 2^-21 of a product times sqrt(K), K = 384. Weights of float16 give the same
bits whether they come as float16 or as float32. The tile unit takes what is below 2^-126 for zero.

From one product to the next only one factor changes, so that 2 x 2 registers of C need 8 loads for 12 products; both terms of 32 k of a
strip or panel lie together.

Cost of 16 rows, 16 columns and 32 k: 3 tile products, 48 cycles, where AVX-512 takes 256. Splitting 16 elements of A
takes about 6 cycles, once for all columns, and 32 of B 7, once for the rows of a block: with 384 columns and 375 rows
that is 13 more.

Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations",
arXiv:1904.06376.
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import bitcast, stack_allocation
from std.memory.alloc import unsafe_alloc

from ..data import Data
from .amx import REGISTERS, TILE_BYTES, TILE_ROWS, TileUnit, Tiles
from .beside import keep_apart
from .epilogue import Epilogue, finish
from .operand import HARDWARE_AMX, round_bfloat16
from .tile import PANEL, panel_rows, row_size

comptime BLOCK_BYTES = 1024 * 1024
"""Bytes of split rows kept in the second cache while panels pass by."""

comptime WORDS = TILE_BYTES // 4
"""Times 4 bytes of a register."""

comptime SUMS = 2 * PANEL
"""Elements from one row of a tile's sums to the next."""

comptime TERMS = 2
"""Terms of a number."""

comptime _ROUTE: Array[Array[Int, 2], 3] = [[1, 0], [0, 0], [0, 1]]
"""Which terms of A and B are multiplied, one after the other."""


@always_inline
def split[terms: Int = TERMS](x: SIMD[DType.float32, 16]) -> Array[SIMD[DType.int32, 16], terms]:
    """Splits 16 numbers into terms of bfloat16, in the lower halves of words whose upper halves do not count.

    Parameters:
        terms: The first two, or 1: then numbers are rounded.
    """
    var parts = Array[SIMD[DType.int32, 16], terms](uninitialized=True)
    var rest = x
    comptime for t in range(terms):
        parts[t] = round_bfloat16(rest)
        comptime if t + 1 < terms:
            rest -= bitcast[DType.float32, 16](parts[t] << 16)
    return parts^


@always_inline
def split_pairs(x: SIMD[DType.float32, 16], y: SIMD[DType.float32, 16]) -> Array[SIMD[DType.int32, 16], TERMS]:
    """Splits finite numbers, those of x into the lower halves of words and those of y into the upper: in fewer instructions
    than `split` twice, as nothing is widened. Ties go away from zero."""
    var x_first = bitcast[DType.int32, 16](x) + 0x8000
    var y_first = (bitcast[DType.int32, 16](y) + 0x8000) & -65536
    var x_rest = bitcast[DType.int32, 16](x - bitcast[DType.float32, 16](x_first & -65536)) + 0x8000
    var y_rest = (bitcast[DType.int32, 16](y - bitcast[DType.float32, 16](y_first)) + 0x8000) & -65536
    return [_upper_half(x_first) | y_first, _upper_half(x_rest) | y_rest]


@always_inline
def _upper_half(words: SIMD[DType.int32, 16]) -> SIMD[DType.int32, 16]:
    """The upper halves of words, in the lower ones; the upper become 0."""
    return bitcast[DType.int32, 16](bitcast[DType.uint32, 16](words) >> 16)


@no_inline
def split_strip(
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
        packed: Receives `2 * 16 * words` words.
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
            var parts = split(values)
            var place = (first >> 4) * TERMS * WORDS + row * PANEL + (first & 15)  # PANEL is 16
            comptime for t in range(TERMS):
                var pairs = bitcast[DType.int32, 8](parts[t].cast[DType.int16]())
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
    for row in range(words):
        var x = SIMD[DType.float32, 16](0)
        var y = SIMD[DType.float32, 16](0)
        if 2 * row < depth:
            x = panel.unsafe_load[width=PANEL](2 * row * PANEL).cast[DType.float32]()
        if 2 * row + 1 < depth:
            y = panel.unsafe_load[width=PANEL]((2 * row + 1) * PANEL).cast[DType.float32]()
        var pairs = split_pairs(x, y)
        comptime for t in range(TERMS):
            var place = (row // PANEL * TERMS + t) * WORDS + row % PANEL * PANEL
            output.unsafe_store(place, pairs[t])


@no_inline
def multiply_terms[
    T: TileUnit, //, strips: Int, panels: Int, accumulate: Bool = False
](
    tiles: T,
    a: Data[DType.int32],
    b: Data[DType.int32],
    b_panel_stride: Int,
    count: Int,
    sums: Data[DType.int32],
    sums_stride: Int,
):
    """Stores the sums of one or two strips and one or two panels, over all products of terms that count.

    Parameters:
        T: The tile unit.
        strips: Strips of a.
        panels: Panels of b.
        accumulate: Whether to add to the sums that are there.

    Args:
        tiles: The tile unit, after `begin`.
        a: The strips one after another, each of them `2 * count` KB.
        b: First of `2 * count` KB of the first panel.
        b_panel_stride: Times 4 bytes from one panel to the next.
        count: Times 32 k.
        sums: Receives float32.
        sums_stride: From one row of the sums to the next.
    """

    @always_inline
    def place(s: Int, p: Int) {imm sums, imm sums_stride} -> Data[DType.int32]:
        return sums.unsafe_offset(s * TILE_ROWS * sums_stride + p * PANEL)

    comptime for s in range(strips):
        comptime for p in range(panels):
            comptime if accumulate:
                tiles.load[s * panels + p](place(s, p), sums_stride)
            else:
                tiles.clear[s * panels + p]()
            keep_apart()
    for i in range(count):

        @always_inline
        def load_a[term: Int]() {imm}:
            comptime for s in range(strips):
                tiles.load[4 + s](a.unsafe_offset(((s * count + i) * TERMS + term) * WORDS))
                keep_apart()

        @always_inline
        def load_b[term: Int]() {imm}:
            comptime for p in range(panels):
                tiles.load[6 + p](b.unsafe_offset(p * b_panel_stride + (i * TERMS + term) * WORDS))
                keep_apart()

        load_a[_ROUTE[0][0]]()
        load_b[_ROUTE[0][1]]()
        comptime for step in range(len(_ROUTE)):
            comptime a_term = _ROUTE[step][0]
            comptime b_term = _ROUTE[step][1]
            comptime if step > 0 and a_term != _ROUTE[step - 1][0]:
                load_a[a_term]()
            comptime if step > 0 and b_term != _ROUTE[step - 1][1]:
                load_b[b_term]()
            comptime for s in range(strips):
                comptime for p in range(panels):
                    tiles.multiply[DType.bfloat16, s * panels + p, 4 + s, 6 + p]()
                    keep_apart()
    comptime for s in range(strips):
        comptime for p in range(panels):
            tiles.store[s * panels + p](place(s, p), sums_stride)
            keep_apart()


def split_rows(depth: Int) -> Int:
    """Rows of A that stay in the second cache while panels, split for them, pass by: of whole tiles."""
    return max(1, BLOCK_BYTES // (2 * TILE_ROWS * TERMS * 2 * depth)) * 2 * TILE_ROWS


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
    var count = ceildiv(depth, 2 * PANEL)
    var words = count * PANEL
    var stride = panel_rows[b_type](depth) * row_size[b_type]
    var strip_words = TILE_ROWS * words
    var block = split_rows(depth)
    var strips = ceildiv(min(block, row_end - row_begin), TILE_ROWS)

    # On the heap: what inlined code writes to a stack allocation, the optimiser thinks no call reads (Mojo 1.2.0).
    var packed = unsafe_alloc[Int32](TERMS * strips * strip_words, alignment=64)
    var split = unsafe_alloc[Int32](2 * TERMS * count * WORDS, alignment=64)
    var registers = unsafe_alloc[Int32](0 if HARDWARE_AMX else REGISTERS * WORDS, alignment=64)
    var sums = stack_allocation[2 * TILE_ROWS * SUMS, DType.int32, alignment=64]()
    var tiles = Tiles(registers)
    tiles.begin()
    for first in range(row_begin, row_end, block):
        var last = min(first + block, row_end)
        for row in range(first, last, TILE_ROWS):
            split_strip(
                a.unsafe_offset(row * a_stride),
                a_stride,
                min(TILE_ROWS, last - row),
                depth,
                words,
                packed.unsafe_offset(TERMS * (row - first) * words),
            )
        for panel in range(panel_begin, panel_end, 2):
            var panels = min(2, panel_end - panel)
            for p in range(panels):
                _split_panel(
                    b.unsafe_offset((panel + p) * stride),
                    depth,
                    words,
                    split.unsafe_offset(p * TERMS * count * WORDS),
                )
            for row in range(first, last, 2 * TILE_ROWS):
                var rows = min(2 * TILE_ROWS, last - row)
                comptime for s in range(1, 3):
                    comptime for p in range(1, 3):
                        if ceildiv(rows, TILE_ROWS) == s and panels == p:
                            multiply_terms[s, p](
                                tiles,
                                packed.unsafe_offset(TERMS * (row - first) * words),
                                split,
                                TERMS * count * WORDS,
                                count,
                                sums,
                                SUMS,
                            )
                var end = min((panel + panels) * PANEL, columns)
                finish(rows, row, panel * PANEL, end, sums.unsafe_bitcast[Float32](), SUMS, epilogue)
    tiles.end()
    packed.unsafe_free()
    split.unsafe_free()
    registers.unsafe_free()

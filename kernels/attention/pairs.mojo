"""Keys and values in pairs of bfloat16, as products of pairs take them (`strip_bfloat16.mojo`): like packed weights.

Or in pairs of two terms (`strip_split.mojo`): then each 16 rows, those of a tile register, are followed by 16 of what was rounded off.

    keys   (B, H, ceil(S/16), 32, 32)      row r of a panel: elements 2r and 2r + 1 of 16 keys, in pairs
    values (B, H, 4, 16*ceil(S/32), 32)    row r of panel p: columns 16p .. 16p + 15 of the values 32*(r/16) + r%16 and of those
                                           16 further on, in pairs; zeros behind the last value

They are made of the rows that a linear layer wrote, or of a cache of float16 or bytes, for as many queries as that is worth.
Cost: no arithmetic but rounding; 4 or 2 bytes read and 2 written for each of 2*B*S*H*64 elements.
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc

from ..cpu.operand import MULTIPLIES_BFLOAT16, pair_words, round_bfloat16
from ..cpu.split_amx import split
from ..cpu.threads import ForkJoin, Workers
from ..cpu.tile import PANEL
from ..cpu.transpose import transpose
from ..data import Data
from .bytes import VALUE_GROUP, pair_bytes_of_group
from .heads import head_column
from .strip import HEAD, HEAD_PANELS


comptime KEY_GROUP = 2 * PANEL
"""Keys and values that are made together."""


def pair_rows[
    terms: Int = 1
](
    keys: Data[DType.bfloat16],
    values: Data[DType.bfloat16],
    rows: Data[DType.float32],
    row_stride: Int,
    batch: Int,
    heads: Int,
    length: Int,
):
    """Rounds rows to keys and values in pairs, or splits them, on all threads.

    Parameters:
        terms: How many bfloat16 numbers stand for one: 1 or 2.

    Args:
        keys: (batch, heads, ceil(length/16), 32 * terms, 32).
        values: (batch, heads, 4, 16 * ceil(length/32) * terms, 32).
        rows: (batch, length, row_stride).
        row_stride: N.
        batch: B.
        heads: H.
        length: T.
    """
    var groups = ceildiv(length, KEY_GROUP)

    @always_inline
    def some_groups(begin: Int, end: Int) {imm}:
        for task in range(begin, end):
            pair_rows_of_group[terms](keys, values, rows, row_stride, heads, length, task // groups, task % groups)

    ForkJoin().share(some_groups, batch * heads * groups)


def pair_rows_of_group[
    terms: Int = 1
](
    keys: Data[DType.bfloat16],
    values: Data[DType.bfloat16],
    rows: Data[DType.float32],
    row_stride: Int,
    heads: Int,
    length: Int,
    matrix: Int,
    group: Int,
):
    """Rounds or splits 32 rows of one head; arguments as for `pair_rows`.

    Parameters:
        terms: As for `pair_rows`.

    Args:
        keys: All keys.
        values: All values.
        rows: All rows.
        row_stride: N.
        heads: H.
        length: T.
        matrix: Batch row times H, plus head.
        group: Which 32 rows.
    """
    var panels = ceildiv(length, PANEL)
    var groups = ceildiv(length, KEY_GROUP)
    var first = group * KEY_GROUP
    var column = head_column(row_stride, heads, matrix % heads)
    var head = rows.unsafe_offset((matrix // heads * length + first) * row_stride + column)
    var k = keys.unsafe_bitcast[Int32]().unsafe_offset((matrix * panels + 2 * group) * terms * PANEL * HEAD // 2)
    for panel in range(min(2, panels - 2 * group)):
        var at = panel * PANEL
        _store_keys[terms](
            k.unsafe_offset(at * terms * HEAD // 2),
            head.unsafe_offset(at * row_stride),
            row_stride,
            min(PANEL, length - first - at),
        )
    comptime words = terms * PANEL * PANEL
    var v = values.unsafe_bitcast[Int32]().unsafe_offset((matrix * HEAD_PANELS * groups + group) * words)
    _store_values[terms](v, groups * words, head.unsafe_offset(heads * HEAD), row_stride, length - first)


@no_inline
def _store_keys[terms: Int](panel: Data[DType.int32], rows: Data[DType.float32], stride: Int, count: Int):
    """Writes a panel of 16 keys, of which `count` exist: the terms of 32 elements one after another, then the others'.
    """
    comptime for j in range(0, HEAD, KEY_GROUP):
        var pairs = Array[Array[SIMD[DType.int32, PANEL], PANEL], terms](uninitialized=True)
        comptime for key in range(PANEL):
            var x = SIMD[DType.float32, PANEL](0)
            var y = SIMD[DType.float32, PANEL](0)
            if key < count:
                x = rows.unsafe_load[width=PANEL](key * stride + j)
                y = rows.unsafe_load[width=PANEL](key * stride + j + PANEL)
            var x_parts = split[terms](x)
            var y_parts = split[terms](y)
            comptime for t in range(terms):
                pairs[t][key] = bitcast[DType.int32, PANEL](
                    x_parts[t].cast[DType.int16]().join(y_parts[t].cast[DType.int16]())
                )
        comptime for t in range(terms):
            transpose[DType.int32, PANEL](pairs[t])
            comptime for row in range(PANEL):
                panel.unsafe_store(((j // KEY_GROUP * terms + t) * PANEL + row) * PANEL, pairs[t][row])


@no_inline
def _store_values[
    dtype: DType, //, terms: Int
](panels: Data[DType.int32], panel_stride: Int, rows: Data[dtype], stride: Int, count: Int):
    """Writes 16 rows of the four panels: 32 values, of which `count` exist."""
    for row in range(PANEL):
        comptime for j in range(0, HEAD, PANEL):
            var x = SIMD[DType.float32, PANEL](0)
            var y = SIMD[DType.float32, PANEL](0)
            if row < count:
                x = rows.unsafe_load[width=PANEL](row * stride + j).cast[DType.float32]()
            if row + PANEL < count:
                y = rows.unsafe_load[width=PANEL]((row + PANEL) * stride + j).cast[DType.float32]()
            var x_parts = split[terms](x)
            var y_parts = split[terms](y)
            comptime for t in range(terms):
                var words = pair_words(x_parts[t], y_parts[t])
                panels.unsafe_store(j // PANEL * panel_stride + (t * PANEL + row) * PANEL, words)


comptime MANY_QUERIES = 64
"""Queries from which on keys and values of float16 or bytes, which were rounded once, are rounded to pairs of bfloat16: their products
then take a tenth of the time, and rounding that of a few queries."""


def may_pair[cache_type: DType](rounded: Bool) -> Bool:
    """Whether a cache's keys and values may be rounded to bfloat16.

    Parameters:
        cache_type: Their element type.

    Args:
        rounded: Whether they belong to a model whose weights are rounded.
    """
    return cache_type == DType.int8 or (rounded and cache_type == DType.float16)


struct Pairs(TrivialRegisterPassable):
    """Room for a cache's keys and values in pairs, where they are worth it: on a CPU that multiplies bfloat16."""

    var keys: Data[DType.bfloat16]
    """(matrices, ceil(length/16), 32, 32)."""
    var values: Data[DType.bfloat16]
    """(matrices, 4, 16*ceil(length/32), 32)."""
    var wanted: Bool
    """Whether there is any."""

    def __init__(out self, rounded: Bool, matrices: Int, capacity: Int, queries: Int):
        """Takes room; `free` is to be called.

        Args:
            rounded: Whether keys and values may be rounded to bfloat16.
            matrices: Batch rows times heads.
            capacity: Keys and values of each.
            queries: Of each.
        """
        self.wanted = MULTIPLIES_BFLOAT16 and rounded and queries >= MANY_QUERIES
        var size = matrices * ceildiv(capacity, KEY_GROUP) * KEY_GROUP * HEAD if self.wanted else 0
        self.keys = unsafe_alloc[BFloat16](size, alignment=64)
        self.values = unsafe_alloc[BFloat16](size, alignment=64)

    def free(self):
        """Gives it back."""
        self.keys.unsafe_free()
        self.values.unsafe_free()


def pair_cache[
    cache_type: DType, W: Workers, //
](
    keys: Data[DType.bfloat16],
    values: Data[DType.bfloat16],
    cached_keys: Data[cache_type],
    cached_values: Data[cache_type],
    matrices: Int,
    length: Int,
    workers: W,
):
    """Makes pairs of keys and values of float16, or of bytes (`bytes.mojo`), on all threads.

    Args:
        keys: (matrices, ceil(length/16), 32, 32).
        values: (matrices, 4, 16*ceil(length/32), 32).
        cached_keys: (matrices, ceil(length/16), 64, 16), zeros behind the last key; or (.., 17, 64) bytes.
        cached_values: (matrices, length, 64); or (matrices, ceil(length/64), 68, 64) bytes.
        matrices: Batch rows times heads.
        length: Keys and values of each.
        workers: The threads.
    """
    comptime size = VALUE_GROUP if cache_type == DType.int8 else KEY_GROUP
    var groups = ceildiv(length, size)

    @always_inline
    def some_groups(begin: Int, end: Int) {imm}:
        for task in range(begin, end):
            comptime if cache_type == DType.int8:
                pair_bytes_of_group(
                    keys,
                    values,
                    cached_keys.unsafe_bitcast[Int8](),
                    cached_values.unsafe_bitcast[Int8](),
                    length,
                    task // groups,
                    task % groups,
                )
            else:
                pair_cache_of_group(
                    keys,
                    values,
                    cached_keys.unsafe_bitcast[Float16](),
                    cached_values.unsafe_bitcast[Float16](),
                    length,
                    task // groups,
                    task % groups,
                )

    workers.share(some_groups, matrices * groups)


def pair_cache_of_group(
    keys: Data[DType.bfloat16],
    values: Data[DType.bfloat16],
    cached_keys: Data[DType.float16],
    cached_values: Data[DType.float16],
    length: Int,
    matrix: Int,
    group: Int,
):
    """Rounds 32 keys and values of one head; arguments as for `pair_cache`.

    Args:
        keys: All keys.
        values: All values.
        cached_keys: All keys, in float16.
        cached_values: All values, in float16.
        length: Keys and values of a head.
        matrix: Batch row times H, plus head.
        group: Which 32 of them.
    """
    var panels = ceildiv(length, PANEL)
    var groups = ceildiv(length, KEY_GROUP)
    var first = (matrix * panels + 2 * group) * PANEL * HEAD
    for panel in range(min(2, panels - 2 * group)):
        var at = first + panel * PANEL * HEAD
        _pair_panel(keys.unsafe_bitcast[Int32]().unsafe_offset(at // 2), cached_keys.unsafe_offset(at))
    var v = values.unsafe_bitcast[Int32]().unsafe_offset((matrix * HEAD_PANELS * groups + group) * PANEL * PANEL)
    var row = cached_values.unsafe_offset((matrix * length + group * KEY_GROUP) * HEAD)
    _store_values[1](v, groups * PANEL * PANEL, row, HEAD, length - group * KEY_GROUP)


@no_inline
def _pair_panel(output: Data[DType.int32], panel: Data[DType.float16]):
    """Writes a panel of 16 keys whose elements are rows of 16 already."""
    for row in range(HEAD // 2):
        var x = panel.unsafe_load[width=PANEL](2 * row * PANEL).cast[DType.float32]()
        var y = panel.unsafe_load[width=PANEL]((2 * row + 1) * PANEL).cast[DType.float32]()
        output.unsafe_store(row * PANEL, pair_words(round_bfloat16(x), round_bfloat16(y)))

"""Keys of 12 and values of 11 bits, as products of int16 take them (`strip_int16.mojo`): like packed weights, scales and all.

    k ~ scale n    |n| <= 4095, a scale for each key
    v ~ scale n    |n| <= 2047, a scale for each column of 64 values

A panel is 16 columns of 64 numbers each: 16 keys, or one column of four of 64 values. In front lie its scales in float32, then

    row 16 g + r, place 2 c + h   number 32 g + 16 h + r of column c, for g and h of 0 and 1: pairs whose numbers are 16 apart

    keys   (B, H, ceil(S/16), 33, 32)       values (B, H, 4 * ceil(S/64), 33, 32)      what pads the last panel is 0

Cost: no arithmetic but rounding; 4 bytes read and 2 written for each of 2*B*S*H*64 elements.
"""

from std.collections import Array
from std.math import ceildiv

from ..cpu.operand import integers, largest_magnitude, pair_words, reciprocal
from ..cpu.threads import ForkJoin
from ..cpu.tile import PANEL
from ..cpu.transpose import transpose
from ..data import Data
from ..math import larger, multiply_add
from .heads import head_column
from .strip import HEAD, HEAD_PANELS

comptime VALUE_GROUP = 64
"""Values of a group: the sum of as many products fits into int32."""

comptime WORDS = HEAD // 2
"""Rows of a panel, but for its scales; and words of a query."""

comptime PANEL_WORDS = (1 + WORDS) * PANEL
"""Times 4 bytes of a panel."""

comptime KEY_STEPS = Float32(4095)
"""Largest n of a key."""

comptime VALUE_STEPS = Float32(2047)
"""Largest n of a value."""

comptime _PAIRED = 2 * PANEL
"""Numbers that become pairs together."""

comptime _Vector = SIMD[DType.float32, PANEL]


def integer_rows(
    keys: Data[DType.int16],
    values: Data[DType.int16],
    rows: Data[DType.float32],
    row_stride: Int,
    batch: Int,
    heads: Int,
    length: Int,
):
    """Rounds the keys and values of rows to integers, on all threads.

    Args:
        keys: (batch, heads, ceil(length/16), 33, 32).
        values: (batch, heads, 4 * ceil(length/64), 33, 32).
        rows: (batch, length, row_stride), the last 2*H*64 columns of which are keys and values.
        row_stride: N.
        batch: B.
        heads: H.
        length: S.
    """
    var groups = ceildiv(length, VALUE_GROUP)

    @always_inline
    def some_groups(begin: Int, end: Int) {imm}:
        for task in range(begin, end):
            integer_rows_of_group(keys, values, rows, row_stride, heads, length, task // groups, task % groups)

    ForkJoin().share(some_groups, batch * heads * groups)


def integer_rows_of_group(
    keys: Data[DType.int16],
    values: Data[DType.int16],
    rows: Data[DType.float32],
    row_stride: Int,
    heads: Int,
    length: Int,
    matrix: Int,
    group: Int,
):
    """Rounds 64 rows of one head; arguments as for `integer_rows`.

    Args:
        keys: All keys.
        values: All values.
        rows: All rows.
        row_stride: N.
        heads: H.
        length: S.
        matrix: Batch row times H, plus head.
        group: Which 64 rows.
    """
    var first = group * VALUE_GROUP
    var column = head_column(row_stride, heads, matrix % heads)
    var head = rows.unsafe_offset((matrix // heads * length + first) * row_stride + column)
    var panels = ceildiv(length, PANEL)
    var k = keys.unsafe_bitcast[Int32]().unsafe_offset((matrix * panels + first // PANEL) * PANEL_WORDS)
    for at in range(0, min(VALUE_GROUP, length - first), PANEL):
        _store_keys(
            k.unsafe_offset(at // PANEL * PANEL_WORDS),
            head.unsafe_offset(at * row_stride),
            row_stride,
            min(PANEL, length - first - at),
        )
    var v = values.unsafe_bitcast[Int32]().unsafe_offset(
        (matrix * ceildiv(length, VALUE_GROUP) + group) * HEAD_PANELS * PANEL_WORDS
    )
    for panel in range(HEAD_PANELS):
        _store_values(
            v.unsafe_offset(panel * PANEL_WORDS),
            head.unsafe_offset(heads * HEAD + panel * PANEL),
            row_stride,
            min(VALUE_GROUP, length - first),
        )


@always_inline
def paired(low: _Vector, high: _Vector, inverse: _Vector) -> SIMD[DType.int32, PANEL]:
    """16 pairs of integers: of the nearest to low * inverse, and to high * inverse."""
    return pair_words(integers(low, inverse), integers(high, inverse))


@no_inline
def _store_keys(panel: Data[DType.int32], rows: Data[DType.float32], stride: Int, count: Int):
    """Writes a panel of 16 keys, of which `count` exist."""
    var scales = panel.unsafe_bitcast[Float32]()
    scales.unsafe_store(0, _Vector(0))
    for group in range(HEAD // _PAIRED):
        var words = Array[SIMD[DType.int32, PANEL], PANEL](fill=SIMD[DType.int32, PANEL](0))
        comptime for key in range(PANEL):
            if key < count:
                var row = rows.unsafe_offset(key * stride)
                if group == 0:
                    scales[unsafe_offset=key] = largest_magnitude(row, HEAD) / KEY_STEPS
                words[key] = paired(
                    row.unsafe_load[width=PANEL](group * _PAIRED),
                    row.unsafe_load[width=PANEL](group * _PAIRED + PANEL),
                    reciprocal(scales[unsafe_offset=key]),
                )
        transpose[DType.int32, PANEL](words)
        comptime for row in range(PANEL):
            panel.unsafe_store((1 + group * PANEL + row) * PANEL, words[row])


@no_inline
def _store_values(panel: Data[DType.int32], rows: Data[DType.float32], stride: Int, count: Int):
    """Writes one panel of 64 values, of which `count` exist."""
    var largest = _Vector(0)
    var poison = _Vector(0)
    for row in range(count):
        var value = rows.unsafe_load[width=PANEL](row * stride)
        largest = larger(largest, abs(value))
        poison = multiply_add(value, _Vector(0), poison)
    var scales = (largest + poison) / VALUE_STEPS
    panel.unsafe_bitcast[Float32]().unsafe_store(0, scales)
    var inverse = scales.gt(0).select(1 / scales, _Vector(0))
    for row in range(WORDS):
        var number = row // PANEL * _PAIRED + row % PANEL
        var low = _Vector(0)
        var high = _Vector(0)
        if number < count:
            low = rows.unsafe_load[width=PANEL](number * stride)
        if number + PANEL < count:
            high = rows.unsafe_load[width=PANEL]((number + PANEL) * stride)
        panel.unsafe_store((1 + row) * PANEL, paired(low, high, inverse))

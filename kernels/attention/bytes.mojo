"""Keys and values in bytes, as products of bytes take them (`row_bytes.mojo`): half of what float16 takes.

    k ~ mean + scale n      |n| <= 127; the mean of all keys adds the same to every score of a query, and softmax does not
    v ~ scale n             see it: it is left out. A scale for each key and value

    keys   (B, H, ceil(S/16), 17, 64)    a panel of 16 keys: their scales in float32, then row r: n + 128 of elements
                                         4r .. 4r + 3, key by key
    values (B, H, ceil(S/64), 68, 64)    64 values: their scales in float32, then row 16 p + r: n of the values r, r + 16, r + 32
                                         and r + 48, column by column, for the columns 16 p .. 16 p + 15

What pads the last panel and the last group is 0, and so are its scales. Cost: keys are read twice, the second time from the second
cache, values once; 1 byte is written for each of 2*B*S*H*64 elements.

Zhang et al., "SageAttention: Accurate 8-Bit Attention for Plug-and-Play Inference Acceleration", arXiv:2410.02367 (on
subtracting the mean of the keys).
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import bitcast

from ..cpu.operand import integers, pair_words, reciprocal, round_bfloat16, steps
from ..cpu.threads import Workers
from ..cpu.tile import PANEL
from ..cpu.transpose import transpose
from ..data import Data
from ..math import larger, multiply_add
from .heads import head_column
from .strip import HEAD, HEAD_PANELS

comptime VALUE_GROUP = 4 * PANEL
"""Values of a group."""

comptime KEY_PANEL = PANEL * (4 + HEAD)
"""Bytes of 16 keys and their scales."""

comptime VALUES = VALUE_GROUP * (4 + HEAD)
"""Bytes of 64 values and their scales."""

comptime _OFFSET = Int32(128)
"""What is added to keys: the instruction takes one of its factors without sign."""

comptime _NO_OFFSET = Int32(-2139062144)
"""0x80808080: takes the offset off four bytes."""

comptime _Vector = SIMD[DType.float32, PANEL]


def byte_rows[
    W: Workers, //
](
    keys: Data[DType.int8],
    values: Data[DType.int8],
    rows: Data[DType.float32],
    row_stride: Int,
    batch: Int,
    heads: Int,
    length: Int,
    workers: W,
):
    """Rounds the keys and values of rows to bytes, on all threads.

    Args:
        keys: (batch, heads, ceil(length/16), 17, 64).
        values: (batch, heads, ceil(length/64), 68, 64).
        rows: (batch, length, row_stride), the last 2*H*64 columns of which are keys and values.
        row_stride: N.
        batch: B.
        heads: H.
        length: S.
        workers: The threads.
    """

    @always_inline
    def some_heads(begin: Int, end: Int) {imm}:
        for matrix in range(begin, end):
            var column = head_column(row_stride, heads, matrix % heads)
            var head = rows.unsafe_offset(matrix // heads * length * row_stride + column)
            var mean = _mean(head, row_stride, length)
            var k = keys.unsafe_offset(matrix * ceildiv(length, PANEL) * KEY_PANEL)
            for first in range(0, length, PANEL):
                var panel = k.unsafe_offset(first // PANEL * KEY_PANEL)
                _store_keys(panel, head.unsafe_offset(first * row_stride), row_stride, length - first, mean)
            var v = values.unsafe_offset(matrix * ceildiv(length, VALUE_GROUP) * VALUES)
            head = head.unsafe_offset(heads * HEAD)
            for first in range(0, length, VALUE_GROUP):
                var group = v.unsafe_offset(first // VALUE_GROUP * VALUES)
                _store_values(group, head.unsafe_offset(first * row_stride), row_stride, length - first)

    workers.share(some_heads, batch * heads)


def _mean(rows: Data[DType.float32], stride: Int, count: Int) -> Array[_Vector, HEAD_PANELS]:
    """The mean of some rows of a head."""
    var sums = Array[_Vector, HEAD_PANELS](fill=_Vector(0))
    for row in range(count):
        comptime for j in range(HEAD_PANELS):
            sums[j] += rows.unsafe_load[width=PANEL](row * stride + j * PANEL)
    comptime for j in range(HEAD_PANELS):
        sums[j] /= Float32(count)
    return sums^


@always_inline
def _scale(x: Array[_Vector, HEAD_PANELS]) -> Float32:
    """What a step of a row's integers stands for; NaN if the row holds NaN or infinity."""
    var largest = _Vector(0)
    var poison = _Vector(0)
    comptime for j in range(HEAD_PANELS):
        largest = larger(largest, abs(x[j]))
        poison = multiply_add(x[j], _Vector(0), poison)
    return largest.reduce_max() / steps[DType.int8] + poison.reduce_add()


@no_inline
def _store_keys(
    panel: Data[DType.int8],
    rows: Data[DType.float32],
    stride: Int,
    count: Int,
    mean: Array[_Vector, HEAD_PANELS],
):
    """Writes a panel of 16 keys, of which `count` exist, if it is less."""
    var words = Array[SIMD[DType.int32, PANEL], PANEL](fill=SIMD[DType.int32, PANEL](0))
    var scales = _Vector(0)
    for key in range(min(PANEL, count)):
        var x = Array[_Vector, HEAD_PANELS](uninitialized=True)
        comptime for j in range(HEAD_PANELS):
            x[j] = rows.unsafe_load[width=PANEL](key * stride + j * PANEL) - mean[j]
        var scale = _scale(x)
        scales[key] = scale
        var inverse = reciprocal(scale)
        var bytes = SIMD[DType.int8, HEAD](0)
        comptime for j in range(HEAD_PANELS):
            bytes = bytes.insert[offset=j * PANEL]((integers(x[j], inverse) + _OFFSET).cast[DType.int8]())
        words[key] = bitcast[DType.int32, PANEL](bytes)
    transpose[DType.int32, PANEL](words)
    panel.unsafe_bitcast[Float32]().unsafe_store(0, scales)
    comptime for row in range(PANEL):
        panel.unsafe_bitcast[Int32]().unsafe_store((1 + row) * PANEL, words[row])


@no_inline
def _store_values(group: Data[DType.int8], rows: Data[DType.float32], stride: Int, count: Int):
    """Writes a group of 64 values, of which `count` exist, if it is less."""
    var words = group.unsafe_bitcast[Int32]().unsafe_offset(VALUE_GROUP)
    for row in range(PANEL):
        var found = Array[SIMD[DType.int32, PANEL], HEAD_PANELS](fill=SIMD[DType.int32, PANEL](0))
        comptime for part in range(4):
            var value = part * PANEL + row
            var scale = Float32(0)
            if value < count:
                var x = Array[_Vector, HEAD_PANELS](uninitialized=True)
                comptime for j in range(HEAD_PANELS):
                    x[j] = rows.unsafe_load[width=PANEL](value * stride + j * PANEL)
                scale = _scale(x)
                var inverse = reciprocal(scale)
                comptime for j in range(HEAD_PANELS):
                    found[j] |= (integers(x[j], inverse) & 255) << Int32(8 * part)
            group.unsafe_bitcast[Float32]()[unsafe_offset=value] = scale
        comptime for j in range(HEAD_PANELS):
            words.unsafe_store((j * PANEL + row) * PANEL, found[j])


def pair_bytes_of_group(
    keys: Data[DType.bfloat16],
    values: Data[DType.bfloat16],
    byte_keys: Data[DType.int8],
    byte_values: Data[DType.int8],
    length: Int,
    matrix: Int,
    group: Int,
):
    """Widens 64 keys and values of one head to pairs of bfloat16, see `pairs.mojo`.

    Args:
        keys: (matrices, ceil(length/16), 32, 32).
        values: (matrices, 4, 16*ceil(length/32), 32).
        byte_keys: (matrices, ceil(length/16), 17, 64).
        byte_values: (matrices, ceil(length/64), 68, 64).
        length: Keys and values of a head.
        matrix: Which head.
        group: Which 64 of them.
    """
    var panels = ceildiv(length, PANEL)
    for panel in range(4 * group, min(4 * group + 4, panels)):
        var at = matrix * panels + panel
        _pair_keys(
            keys.unsafe_bitcast[Int32]().unsafe_offset(at * PANEL * HEAD // 2),
            byte_keys.unsafe_offset(at * KEY_PANEL),
        )
    var groups = ceildiv(length, 2 * PANEL)
    _pair_values(
        values.unsafe_bitcast[Int32]().unsafe_offset((matrix * HEAD_PANELS * groups + 2 * group) * PANEL * PANEL),
        groups * PANEL * PANEL,
        min(2, groups - 2 * group),
        byte_values.unsafe_offset((matrix * ceildiv(length, VALUE_GROUP) + group) * VALUES),
    )


@always_inline
def _widen[byte: Int](words: SIMD[DType.int32, PANEL]) -> _Vector:
    """A byte of each word, as a number with sign."""
    return (words << Int32(24 - 8 * byte) >> 24).cast[DType.float32]()


@always_inline
def _pair(low: _Vector, high: _Vector) -> SIMD[DType.int32, PANEL]:
    """Pairs of bfloat16."""
    return pair_words(round_bfloat16(low), round_bfloat16(high))


@no_inline
def _pair_keys(output: Data[DType.int32], panel: Data[DType.int8]):
    """Writes a panel of 16 keys in pairs."""
    var scales = panel.unsafe_bitcast[Float32]().unsafe_load[width=PANEL](0)
    for row in range(PANEL):
        var words = panel.unsafe_bitcast[Int32]().unsafe_load[width=PANEL]((1 + row) * PANEL) ^ _NO_OFFSET
        comptime for half in range(2):
            output.unsafe_store(
                (2 * row + half) * PANEL, _pair(_widen[2 * half](words) * scales, _widen[2 * half + 1](words) * scales)
            )


@no_inline
def _pair_values(output: Data[DType.int32], panel_stride: Int, halves: Int, group: Data[DType.int8]):
    """Writes 64 values in pairs, or the first 32."""
    var scales = group.unsafe_bitcast[Float32]()
    for j in range(HEAD_PANELS):
        for row in range(PANEL):
            var words = group.unsafe_bitcast[Int32]().unsafe_load[width=PANEL](VALUE_GROUP + (j * PANEL + row) * PANEL)
            comptime for half in range(2):
                if half < halves:
                    output.unsafe_store(
                        j * panel_stride + (half * PANEL + row) * PANEL,
                        _pair(
                            _widen[2 * half](words) * scales[unsafe_offset=2 * half * PANEL + row],
                            _widen[2 * half + 1](words) * scales[unsafe_offset=(2 * half + 1) * PANEL + row],
                        ),
                    )

"""All logits within bounds, from the vocabulary in four bits (`max_whisper.screen` makes it, and says why it is good).

    x[b] = R h[b]
    rough[b, v] = m h[b] + sum over groups g of scale[v, g] * sum over k in g of n[v, k] * x[b, k]
    |rough[b, v] - logit[b, v]| <= |x[b]| * error[v] + |x[b] - what x[b] is rounded to| * norm[v]

by Cauchy and Schwarz: error[v] is the norm of what rounding took from token v, norm[v] that of what it left. n has 4 bits;
x is rounded to 8, so its part of the bound is a fifth, or to 12 where there is no instruction for bytes: a hundredth.

    panel: 16 tokens          +--------+--------+---------------+----------------------------------+
    rows of 64 bytes          | errors | norms  | scales, half  | 8 rows for each group: in a row  |
                              |        |        | a row a group | 8 neighbouring k of each token   |
                              +--------+--------+---------------+----------------------------------+

A word of 4 bytes holds 8 k of a token. They meet x four at a time, as bytes n + 8 without sign, and -8 sum x is added to a
group's sum: in int32 (vpdpbusd), or in int16, of which a group's 16 pairs of products need two, one for each four bits of a
byte, 8 * 2 * 15 * 127 < 2^15 (vpmaddubsw). Elsewhere two at a time, as the operands of `cpu/operand.mojo` that are int16.

Cost for B rows: 2*B*V*D operations, V * (D / 2 + D / 32 + 8) bytes: 11 MB for tiny, where float16 has 39.8.
"""

from std.collections import Array
from std.math import ceildiv, sqrt
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc

from ..cpu.matmul import multiply
from ..cpu.operand import ADDS_PAIRS_OF_BYTES, DOT_INT8, ONES, add_pairs_of_bytes, dot, integers, reciprocal, row_scale
from ..cpu.prefetch import ask_for
from ..cpu.threads import Workers
from ..cpu.tile import PANEL, VECTORS, WIDTH, widened
from ..data import Data
from ..math import multiply_add
from .states import States, StoreEpilogue

comptime GROUP = 64
"""Columns that share a scale."""

comptime ROW_BYTES = 4 * PANEL
"""Bytes of a row of a panel."""

comptime _WORDS = GROUP // 8
"""Rows of a group: 8 columns each."""

comptime _BYTES = DOT_INT8 or ADDS_PAIRS_OF_BYTES
"""Whether x is rounded to bytes."""

comptime _operand = DType.int8 if _BYTES else DType.int16
"""What x is rounded to."""

comptime _X_WORDS = GROUP // 4 if _BYTES else GROUP // 2
"""Times 4 bytes of x in a group."""

comptime _SIGNS = Int32(-2004318072)
"""0x88888888: adds 8 to eight numbers of four bits."""

comptime _CHAINS = 2 if _BYTES else 1
"""Sums of a group for each row and token: an instruction waits for the last but one, not for the one before."""

comptime _TOGETHER = 8 if DOT_INT8 else 4
"""Rows of x that meet a panel at once."""


comptime _SLACK = Float32(1.0009765625)
"""What the norm of a rounding error is multiplied with, as it is rounded itself."""

comptime _AHEAD = 2
"""Panels between the one that is multiplied and the one that is asked for."""


def head_rows(groups: Int) -> Int:
    """Rows of a panel in front of the groups."""
    return 2 + ceildiv(groups, 2)


def screen_rows(groups: Int) -> Int:
    """Rows of a panel."""
    return head_rows(groups) + _WORDS * groups


@no_inline
def _rough_tile[
    rows: Int
](
    x: Data[DType.int32],
    x_stride: Int,
    starts: Data[DType.int32],
    scales: Data[DType.float32],
    shifts: Data[DType.float32],
    shift_stride: Int,
    panel: Data[DType.int32],
    groups: Int,
    rough: Data[DType.float32],
    rough_stride: Int,
):
    """Stores the rough logits of one panel.

    Parameters:
        rows: Rows of x.

    Args:
        x: Rows of pairs of int16, or of four bytes.
        x_stride: Times 4 bytes from one row of x to the next.
        starts: With what the sum of each group begins, for each row; not read where x is int16.
        scales: What a step of each row's integers stands for.
        shifts: m h of each row.
        shift_stride: Elements from one of them to the next.
        panel: The panel.
        groups: Groups of a token.
        rough: Receives 16 logits of each row.
        rough_stride: Elements from one row of them to the next.
    """
    comptime columns = VECTORS if rows <= 2 else 1  # as many registers of sums as are sure to stay in registers
    var halves = panel.unsafe_offset(2 * PANEL).unsafe_bitcast[Float16]()
    var head = head_rows(groups)
    var words = panel.unsafe_offset(head * PANEL)
    var later = panel.unsafe_offset(_AHEAD * screen_rows(groups) * PANEL)
    for row in range(head):
        ask_for(later.unsafe_offset(row * PANEL))
    comptime for first in range(0, VECTORS, columns):
        var totals = Array[SIMD[DType.float32, WIDTH], rows * columns](fill=SIMD[DType.float32, WIDTH](0))
        for g in range(groups):
            var sums = Array[SIMD[DType.int32, WIDTH], _CHAINS * rows * columns](fill=SIMD[DType.int32, WIDTH](0))
            comptime if DOT_INT8:
                comptime for i in range(rows):
                    comptime for v in range(columns):
                        sums[i * columns + v] = SIMD[DType.int32, WIDTH](starts[unsafe_offset=i * groups + g])
            comptime for w in range(_WORDS):
                comptime if first == 0:
                    ask_for(later.unsafe_offset((head + g * _WORDS + w) * PANEL))
                comptime steps = _X_WORDS // _WORDS
                comptime for step in range(steps):
                    var n = Array[SIMD[DType.int32, WIDTH], columns](uninitialized=True)
                    comptime for v in range(columns):
                        var word = words.unsafe_load[width=WIDTH]((g * _WORDS + w) * PANEL + (first + v) * WIDTH)
                        comptime if _BYTES:
                            word ^= _SIGNS
                            n[v] = (word >> 4 if step else word) & 0x0F0F0F0F
                        else:
                            var pairs = bitcast[DType.int16, 2 * WIDTH](word) << Int16(12 - 4 * step) >> 12
                            n[v] = bitcast[DType.int32, WIDTH](pairs)
                    comptime for i in range(rows):
                        var x_k = SIMD[DType.int32, WIDTH](
                            x[unsafe_offset=i * x_stride + (g * _WORDS + w) * steps + step]
                        )
                        comptime for v in range(columns):
                            comptime at = (step % _CHAINS * rows + i) * columns + v
                            comptime if DOT_INT8:
                                sums[at] = dot[DType.uint8](sums[at], n[v], x_k)
                            elif _BYTES:
                                sums[at] = add_pairs_of_bytes(sums[at], n[v], x_k)
                            else:
                                sums[at] = dot[DType.int16](sums[at], x_k, n[v])
            comptime for v in range(columns):
                var scale = widened(halves, g * PANEL + (first + v) * WIDTH)
                comptime for i in range(rows):
                    comptime at = i * columns + v
                    var sum = sums[at]
                    comptime if _BYTES and not DOT_INT8:
                        sum = dot[DType.int16](
                            SIMD[DType.int32, WIDTH](starts[unsafe_offset=i * groups + g]), sum, ONES
                        )
                    comptime for chain in range(1, _CHAINS):
                        var other = sums[chain * rows * columns + at]
                        comptime if DOT_INT8:
                            sum += other
                        else:
                            sum = dot[DType.int16](sum, other, ONES)
                    totals[at] = multiply_add(sum.cast[DType.float32](), scale, totals[at])
        comptime for i in range(rows):
            var scale = SIMD[DType.float32, WIDTH](scales[unsafe_offset=i])
            var shift = SIMD[DType.float32, WIDTH](shifts[unsafe_offset=i * shift_stride])
            comptime for v in range(columns):
                var logits = multiply_add(totals[i * columns + v], scale, shift)
                rough.unsafe_store(i * rough_stride + (first + v) * WIDTH, logits)


def _round(
    x: Data[DType.float32],
    depth: Int,
    groups: Int,
    scale: Float32,
    rounded: Data[DType.int32],
    starts: Data[DType.int32],
) -> Float32:
    """Rounds a row to integers, in the order in which the screen has its columns.

    Args:
        x: `groups * GROUP` numbers.
        depth: Columns whose error counts: what is behind is 0.
        groups: Groups.
        scale: What a step of the integers stands for.
        rounded: Receives the integers.
        starts: Receives the start of every group's sum.

    Returns:
        The square of the norm of what rounding takes from the columns that count.
    """
    var inverse = reciprocal(scale)
    var lost = Float32(0)
    for g in range(groups):
        var sum = Int32(0)
        for word in range(_WORDS):
            var first = g * GROUP + word * 8
            var n = integers(x.unsafe_load[width=16](min(first, groups * GROUP - 16)), inverse)
            if first > groups * GROUP - 16:
                n = n.shift_left[8]()
            n = n << 10 >> 10
            var k = n.slice[8]()
            for i in range(8 if first < depth else 0):
                var left = x[unsafe_offset=first + i] - k[i].cast[DType.float32]() * scale
                lost += left * left
            sum += k.reduce_add()
            # The lower half of a word of the screen has the columns 0, 1, 4 and 5, its upper half 2, 3, 6 and 7.
            var low = SIMD[DType.int32, 4](k[0], k[1], k[4], k[5])
            var high = SIMD[DType.int32, 4](k[2], k[3], k[6], k[7])
            comptime if _BYTES:
                low &= 255
                high &= 255
                var place = rounded.unsafe_offset((g * _WORDS + word) * 2)
                place[unsafe_offset=0] = low[0] | low[2] << 8 | high[0] << 16 | high[2] << 24
                place[unsafe_offset=1] = low[1] | low[3] << 8 | high[1] << 16 | high[3] << 24
            else:
                rounded.unsafe_store((g * _WORDS + word) * 4, (low & 0xFFFF) | high << 16)
        starts[unsafe_offset=g] = -8 * sum
    return lost


struct Screen(TrivialRegisterPassable):
    """A vocabulary's screen and states that look at it."""

    var panels: Data[DType.int8]
    """Of the screen."""
    var groups: Int
    """Groups of a token."""
    var rows: Int
    """States."""
    var _x: Data[DType.float32]
    """`rows x (groups * GROUP + 1)`: R h and m h."""
    var _rounded: Data[DType.int32]
    """`rows x groups * GROUP` int16 or int8."""
    var _starts: Data[DType.int32]
    """`rows x groups`: -8 times the sum of a group's bytes."""
    var _scales: Data[DType.float32]
    """What a step of each row's integers stands for."""
    var _norms: Data[DType.float32]
    """|x| of each row."""
    var _errors: Data[DType.float32]
    """The most that rounding takes from |x|, for each row."""

    def __init__(out self, panels: Data[DType.int8], groups: Int, rows: Int):
        """Takes room for states; `free` is to be called.

        Args:
            panels: The screen.
            groups: Groups of a token.
            rows: States.
        """
        self.panels = panels
        self.groups = groups
        self.rows = rows
        var columns = groups * GROUP
        self._x = unsafe_alloc[Float32](self.rows * (columns + 1))
        self._rounded = unsafe_alloc[Int32](self.rows * groups * _X_WORDS)
        self._starts = unsafe_alloc[Int32](self.rows * groups)
        self._scales = unsafe_alloc[Float32](self.rows)
        self._norms = unsafe_alloc[Float32](self.rows)
        self._errors = unsafe_alloc[Float32](self.rows)

    def turn[W: Workers, //](self, states: States, rotation: Data[DType.float16], workers: W):
        """Rotates and rounds the states: two loops.

        Parameters:
            W: The kind of threads.

        Args:
            states: As many as there is room for.
            rotation: R and m, packed.
            workers: The threads.
        """
        var columns = self.groups * GROUP
        multiply(
            states.data,
            states.depth,
            rotation,
            self.rows,
            columns + 1,
            states.depth,
            StoreEpilogue(self._x, columns + 1),
            workers,
        )

        @always_inline
        def some_rows(begin: Int, end: Int) {imm}:
            for row in range(begin, end):
                var x = self._x.unsafe_offset(row * (columns + 1))
                var scale = row_scale[_operand](x, columns)
                self._scales[unsafe_offset=row] = scale
                var rounded = self._rounded.unsafe_offset(row * self.groups * _X_WORDS)
                var starts = self._starts.unsafe_offset(row * self.groups)
                var lost = _round(x, states.depth, self.groups, scale, rounded, starts)
                self._errors[unsafe_offset=row] = sqrt(lost) * _SLACK
                var squares = Float32(0)
                for k in range(states.depth):  # what is behind is 0
                    squares += x[unsafe_offset=k] * x[unsafe_offset=k]
                self._norms[unsafe_offset=row] = sqrt(squares)

        workers.share(some_rows, self.rows)

    def free(self):
        """Releases what `__init__` has allocated."""
        self._x.unsafe_free()
        self._rounded.unsafe_free()
        self._starts.unsafe_free()
        self._scales.unsafe_free()
        self._norms.unsafe_free()
        self._errors.unsafe_free()

    def _panel(self, index: Int) -> Data[DType.int32]:
        return self.panels.unsafe_offset(index * screen_rows(self.groups) * ROW_BYTES).unsafe_bitcast[Int32]()

    def rough(self, begin: Int, end: Int, output: Data[DType.float32], stride: Int):
        """Computes the rough logits of some panels for all rows.

        Args:
            begin: The first panel.
            end: The one behind the last.
            output: Receives 16 logits for each panel.
            stride: Elements from one row of them to the next.
        """
        var x_stride = self.groups * _X_WORDS
        var columns = self.groups * GROUP + 1
        for first in range(0, self.rows, _TOGETHER):
            comptime for rows in range(1, _TOGETHER + 1):
                if min(_TOGETHER, self.rows - first) == rows:
                    for panel in range(begin, end):
                        _rough_tile[rows](
                            self._rounded.unsafe_offset(first * x_stride),
                            x_stride,
                            self._starts.unsafe_offset(first * self.groups),
                            self._scales.unsafe_offset(first),
                            self._x.unsafe_offset(first * columns + columns - 1),
                            columns,
                            self._panel(panel),
                            self.groups,
                            output.unsafe_offset(first * stride + (panel - begin) * PANEL),
                            stride,
                        )

    @always_inline
    def bounds[width: Int](self, row: Int, token: Int) -> SIMD[DType.float32, width]:
        """How far the rough logits of neighbouring tokens of one panel may be from their logits.

        Args:
            row: The state.
            token: The first token.
        """
        var errors = self._panel(token // PANEL).unsafe_bitcast[Float32]()
        var error = errors.unsafe_load[width=width](token % PANEL)
        var norm = errors.unsafe_load[width=width](PANEL + token % PANEL)
        return error * self._norms[unsafe_offset=row] + norm * self._errors[unsafe_offset=row]

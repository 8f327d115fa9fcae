"""Attention's step in bytes for few queries: what is read of keys and values (`bytes.mojo`) is what takes the time.

    S = scale_k (Q K^T)            q ~ t Q, 16 bits, as two bytes: Q = 256 Q1 + Q0; sums of integers
    P = 2^(S * log2(e) / 8 - m)    in float32, m the largest score so far; l += sum P
    W = P scale_v / u              16 bits, u so that the largest of a block is 65535: W = 256 W1 + W0
    O = O 2^(m' - m) + u (W V)     sums of integers, then float32

Products are vpdpbusd's: the factor without sign is the key, as n + 128, whose 128 sum(Q) is taken off again, and the weight.
Where they are lacking, bytes are widened to int16 and multiplied with Q and W - 32768 as they are, the first and third of four
bytes with one word, the second and fourth with another; the bytes' own sum gives what W lacks.

         16 words of Q1, 16 of Q0       16 words of W1, 16 of W0, for 64 values
         +---------------+              +---------------+
       q |               | a word at  W |               | a word at a time, times a row of each of the four panels of
         +---------------+ a time,      +---------------+ 64 values: eight sums
         times a row of each of four
         panels of keys: eight sums,
         64 scores

Cost of a query and 64 keys: 256 dot products of 4 bytes and 8.5 KB read; float16 reads 16 KB, and takes 512 multiply-adds and
as many instructions to widen it. 1500 keys of a head are 204 KB: from the third cache three times as long as the dot products. Keys
and values take turns, 17 KB of each: while one is multiplied, the other is asked for.
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import neg_inf

from ..cpu.operand import DOT_INT8, ONES, dot, integers, largest_magnitude, pair_words, reciprocal
from ..cpu.prefetch import ask_for
from ..cpu.tile import PANEL, VECTORS, WIDTH
from ..data import Data
from ..math import exp2, larger, multiply_add
from .bytes import KEY_PANEL, VALUE_GROUP, VALUES
from .strip import HEAD, HEAD_PANELS, SCALE, StripSoftmax, largest_lanes


comptime _QUERY_STEPS = Float32(32639)
"""Largest Q: 127 * 256 + 127, two bytes with sign."""

comptime _WEIGHT_STEPS = Float32(65535)
"""Largest W: two bytes without sign."""

comptime _UPPER = Float32(256 if DOT_INT8 else 32768)
"""What the first of two sums of values counts: W = 256 W1 + W0, or W' + 32768."""

comptime _VALUE_PANELS = HEAD_PANELS if DOT_INT8 else HEAD_PANELS // 2
"""Panels of values side by side: each has two sums, and AVX2 16 registers."""

comptime _SIGNS = Int32(-2147450880)
"""0x80008000: takes 32768 off two numbers without sign."""

comptime _Sums = SIMD[DType.int32, WIDTH]
comptime _Vector = SIMD[DType.float32, PANEL]


struct ByteRow(StripSoftmax):
    """The state of one query in float32."""

    comptime dtype = DType.float32
    comptime cache_type = DType.int8
    comptime panel_size = KEY_PANEL
    comptime value_group = VALUE_GROUP
    comptime group_size = VALUES
    comptime rows = 1
    comptime query_block = 1
    comptime key_block = 256

    var memory: Data[DType.float32]
    """Q1 and Q0 in words, scores, W1 and W0 in words, O."""
    var step_size: Float32
    """Length of a step of the queries, t."""
    var offset: Int32
    """128 sum(Q)."""
    var maximum: Float32
    """Largest score so far, m."""
    var sum: Float32
    """Sum of weights so far, l."""

    comptime _SCORES = 2 * PANEL
    comptime _WEIGHTS = Self._SCORES + Self.key_block
    comptime _OUTPUTS = Self._WEIGHTS + Self.key_block // 2
    comptime _SIZE = Self._OUTPUTS + HEAD

    def __init__(out self):
        """Takes memory."""
        self.memory = unsafe_alloc[Float32](Self._SIZE, alignment=64)
        self.step_size = 0
        self.offset = 0
        self.maximum = 0
        self.sum = 0

    def end(self):
        """Gives it back."""
        self.memory.unsafe_free()

    def begin(mut self, queries: Data[DType.float32], stride: Int, count: Int):
        """Begins a query."""
        self.step_size = largest_magnitude(queries, HEAD) / _QUERY_STEPS
        var inverse = reciprocal(self.step_size)
        var total = SIMD[DType.int32, PANEL](0)
        comptime for j in range(HEAD_PANELS):
            var q = integers(queries.unsafe_load[width=PANEL](j * PANEL), inverse) << 16 >> 16
            total += q
            comptime if DOT_INT8:
                var upper = (q + 128) >> 8  # the lower byte has a sign
                var bytes = self.memory.unsafe_bitcast[Int8]()
                bytes.unsafe_store(j * PANEL, upper.cast[DType.int8]())
                bytes.unsafe_store(HEAD + j * PANEL, q.cast[DType.int8]())
            else:
                var fours = q.deinterleave()  # the first and third of four, the second and fourth
                var words = self.memory.unsafe_bitcast[Int32]()
                comptime for half in range(2):
                    var pair = fours[half].deinterleave()
                    words.unsafe_store(half * PANEL + 4 * j, pair_words(pair[0], pair[1]))
        self.offset = 128 * total.reduce_add()
        comptime for j in range(HEAD_PANELS):
            self.memory.unsafe_store(Self._OUTPUTS + j * PANEL, _Vector(0))
        self.maximum = neg_inf[DType.float32]()
        self.sum = 0

    def step[
        causal: Bool
    ](
        mut self,
        first: Int,
        count: Int,
        keys: Data[DType.int8],
        values: Data[DType.int8],
        capacity: Int,
        key: Int,
        key_count: Int,
        seen: Int,
    ):
        """One step of the online softmax."""
        comptime assert not causal, "every query sees all keys"
        var query = self.memory.unsafe_bitcast[Int32]()
        var scores = self.memory.unsafe_offset(Self._SCORES)
        var weights = self.memory.unsafe_offset(Self._WEIGHTS).unsafe_bitcast[Int32]()
        var panels = ceildiv(key_count, PANEL)
        var k = keys.unsafe_offset(key // PANEL * KEY_PANEL)
        var v = values.unsafe_offset(key // VALUE_GROUP * VALUES)
        var panel = 0
        while panel < panels:
            var s = scores.unsafe_offset(panel * PANEL)
            var these = k.unsafe_offset(panel * KEY_PANEL)
            var later = v.unsafe_offset(panel * KEY_PANEL)
            if panel + 4 <= panels:
                _score[4](query, these, later, self.step_size, self.offset, s)
                panel += 4
            else:
                _score[1](query, these, later, self.step_size, self.offset, s)
                panel += 1

        var groups = ceildiv(key_count, VALUE_GROUP)
        for j in range(key_count, groups * VALUE_GROUP):
            scores[unsafe_offset=j] = neg_inf[DType.float32]()
        var top = largest_lanes[PANEL](scores, groups * VALUE_GROUP).reduce_max()
        var new = max(self.maximum, top * SCALE)
        var correction = exp2(self.maximum - new)
        self.maximum = new

        var total = _Vector(0)
        var largest = _Vector(0)
        var poison = _Vector(0)
        for j in range(0, groups * VALUE_GROUP, PANEL):
            var p = exp2(multiply_add(scores.unsafe_load[width=PANEL](j), SCALE, -new))
            total += p
            var scales = v.unsafe_offset(j // VALUE_GROUP * VALUES).unsafe_bitcast[Float32]()
            var scale = scales.unsafe_load[width=PANEL](j % VALUE_GROUP)
            poison = multiply_add(scale, _Vector(0), poison)
            p *= scale
            largest = larger(largest, p)
            scores.unsafe_store(j, p)
        self.sum = self.sum * correction + total.reduce_add()
        var unit = largest.reduce_max() / _WEIGHT_STEPS
        var inverse = reciprocal(unit)
        for group in range(groups):
            var w = Array[SIMD[DType.int32, PANEL], 4](uninitialized=True)
            comptime for part in range(4):
                w[part] = integers(scores.unsafe_load[width=PANEL](group * VALUE_GROUP + part * PANEL), inverse)
            var upper = SIMD[DType.int32, PANEL](0)
            var lower = SIMD[DType.int32, PANEL](0)
            comptime if DOT_INT8:
                comptime for part in range(4):
                    upper |= ((w[part] >> 8) & 255) << Int32(8 * part)
                    lower |= (w[part] & 255) << Int32(8 * part)
            else:
                upper = pair_words(w[0], w[2]) ^ _SIGNS
                lower = pair_words(w[1], w[3]) ^ _SIGNS
            weights.unsafe_store(2 * group * PANEL, upper)
            weights.unsafe_store((2 * group + 1) * PANEL, lower)
        # What is no number in a weight is in the sum of all of them; what is none in a value is in its scale.
        var later = k.unsafe_offset(panels * KEY_PANEL)
        _add_values(
            weights,
            v,
            later,
            groups,
            correction,
            unit + 0 * self.sum + poison.reduce_add(),
            self.memory.unsafe_offset(Self._OUTPUTS),
        )

    def sums(self, query: Int) -> Data[DType.float32]:
        """O of the query."""
        return self.memory.unsafe_offset(Self._OUTPUTS)

    def total(self, query: Int) -> Float32:
        """The sum l of the query's weights."""
        return self.sum


@always_inline
def _add_dots[signed: Bool](mut upper: _Sums, mut lower: _Sums, bytes: _Sums, high: Int32, low: Int32):
    """Adds the products of four numbers of 16 bits and four bytes in each lane.

    Parameters:
        signed: Whether the bytes have a sign and the numbers none, or the other way round.

    Args:
        upper: Receives those of upper bytes; where there are none, the sums of bytes with a sign themselves, two int16 in a lane.
        lower: Receives the others.
        bytes: Four bytes in each lane.
        high: The numbers' upper bytes, or the first and third of them.
        low: Their lower bytes, or the second and fourth.
    """
    comptime if DOT_INT8:
        comptime if signed:
            upper = dot[DType.uint8](upper, _Sums(high), bytes)
            lower = dot[DType.uint8](lower, _Sums(low), bytes)
        else:
            upper = dot[DType.uint8](upper, bytes, _Sums(high))
            lower = dot[DType.uint8](lower, bytes, _Sums(low))
    else:
        var halves = bitcast[DType.int16, 2 * WIDTH](bytes)
        var first = halves << 8 >> 8 if signed else halves & 255
        var second = halves >> 8 if signed else bitcast[DType.int16, 2 * WIDTH](
            bitcast[DType.uint16, 2 * WIDTH](bytes) >> 8
        )
        comptime if signed:
            upper = bitcast[DType.int32, WIDTH](bitcast[DType.int16, 2 * WIDTH](upper) + first + second)
        lower = dot[DType.int16](lower, bitcast[DType.int32, WIDTH](first), _Sums(high))
        lower = dot[DType.int16](lower, bitcast[DType.int32, WIDTH](second), _Sums(low))


@no_inline
def _score[
    panels: Int
](
    query: Data[DType.int32],
    keys: Data[DType.int8],
    later: Data[DType.int8],
    step_size: Float32,
    offset: Int32,
    scores: Data[DType.float32],
):
    """Scores of a query and some panels of keys; asks for as many bytes of what is read later."""
    comptime columns = panels * VECTORS
    var upper = Array[_Sums, columns](fill=_Sums(0))
    var lower = Array[_Sums, columns](fill=_Sums(0))
    var words = keys.unsafe_bitcast[Int32]()
    for row in range(PANEL):
        comptime for j in range(columns):
            var place = j // VECTORS * (KEY_PANEL // 4) + (1 + row) * PANEL + j % VECTORS * WIDTH
            comptime if j % VECTORS == 0:
                ask_for(later.unsafe_offset(4 * place))
            _add_dots[signed=False](
                upper[j],
                lower[j],
                words.unsafe_load[width=WIDTH](place),
                query[unsafe_offset=row],
                query[unsafe_offset=PANEL + row],
            )
    comptime for j in range(columns):
        var place = j // VECTORS * (KEY_PANEL // 4) + j % VECTORS * WIDTH
        comptime if j % VECTORS == 0:
            ask_for(later.unsafe_offset(4 * place))
        var scales = keys.unsafe_bitcast[Float32]().unsafe_load[width=WIDTH](place)
        var sums = (upper[j] << 8) + lower[j] - offset
        scores.unsafe_store(j * WIDTH, sums.cast[DType.float32]() * (scales * step_size))


@no_inline
def _add_values(
    weights: Data[DType.int32],
    values: Data[DType.int8],
    later: Data[DType.int8],
    groups: Int,
    correction: Float32,
    unit: Float32,
    output: Data[DType.float32],
):
    """O = correction * O + unit * W V, for some groups of 64 values; asks for as many bytes of what is read later."""
    comptime columns = _VALUE_PANELS * VECTORS
    comptime for begin in range(0, HEAD_PANELS, _VALUE_PANELS):
        var upper = Array[_Sums, columns](fill=_Sums(0))
        var lower = Array[_Sums, columns](fill=_Sums(0))
        for group in range(groups):
            var words = values.unsafe_offset(group * VALUES).unsafe_bitcast[Int32]().unsafe_offset(VALUE_GROUP)
            var ahead = later.unsafe_offset(group * VALUES)
            comptime if begin == 0:
                comptime for j in range(HEAD_PANELS):
                    ask_for(ahead.unsafe_offset(j * 4 * PANEL))
            for row in range(PANEL):
                comptime for j in range(columns):
                    var place = ((begin + j // VECTORS) * PANEL + row) * PANEL + j % VECTORS * WIDTH
                    comptime if j % VECTORS == 0:
                        ask_for(ahead.unsafe_offset(4 * (VALUE_GROUP + place)))
                    _add_dots[signed=True](
                        upper[j],
                        lower[j],
                        words.unsafe_load[width=WIDTH](place),
                        weights[unsafe_offset=2 * group * PANEL + row],
                        weights[unsafe_offset=(2 * group + 1) * PANEL + row],
                    )
        comptime for j in range(columns):
            comptime if not DOT_INT8:
                upper[j] = dot[DType.int16](_Sums(0), upper[j], ONES)
            var sum = multiply_add(upper[j].cast[DType.float32](), _UPPER, lower[j].cast[DType.float32]())
            var o = output.unsafe_offset(begin * PANEL + j * WIDTH)
            o.unsafe_store(0, multiply_add(sum, unit, o.unsafe_load[width=WIDTH](0) * correction))

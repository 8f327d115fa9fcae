"""The power spectrum of 400 real numbers: P[k] = |X[k]|^2, k = 0 .. 200, X[k] = sum over n of x[n] W^(n k), W = exp(-2 pi i / 400).

400 = 16 * 25, and 16 and 25 have no common factor. Good and Thomas number the input and the output so that the
exponent n k splits and nothing remains to be multiplied between the two steps:

    n = (25 n1 + 16 n2) mod 400,   k = the number with k mod 16 = k1 and k mod 25 = k2
    X[k] = sum over n2 of W25^(n2 k2) * ( sum over n1 of W16^(n1 k1) * x[n] )

            n2 = 0 .. 24
           +------------+     25 real DFTs of 16      +------------+ X0, X8: real columns -> 2 real DFTs of 25
    n1 = 0 | slot       |     down the columns        | k1 = 0     |                         13 bins each
      ..   | 25 n1 + n2 |     ------------------->    | 8, 4, 2 .. |
      15   |            |     in place                | re, im     | 7 complex rows       -> 7 complex DFTs of 25
           +------------+                             +------------+                         25 bins each

Real input halves the work by itself: of k1 and 16 - k1, which are conjugate, one is computed, and 7 * 25 + 2 * 13 = 201
bins come out, each once. k above 200 stands for 400 - k, which has the same power.

- DFT of 16: conjugate-pair split radix, recursively: even outputs are a real DFT of half the size; of the odd ones the
  half X[1], X[5], X[9] .. is one complex DFT of a quarter of the size, and the rest are their conjugates. 66 operations.
- DFT of 25: 5 x 5 (Cooley and Tukey), 16 twiddle factors between. 32 operations per butterfly of 5: 384 operations,
  180 if real.

Cost: 25 * 66 + 7 * 384 + 2 * 180 + 402 for the powers = 5100 additions, multiplications or fused multiply-adds; a plain
DFT as a matrix product has 160800 multiply-adds. Memory: 400 numbers, transformed in place, and 201 powers.

Every number here is a vector of `width` numbers, one per frame, so that there is no difference between the butterflies of
a scalar and of a vector machine, and any permutation is free.

Good, "The Interaction Algorithm and Practical Fourier Analysis", J. R. Stat. Soc. B 20, 1958; Kamar and Elcherif,
"Conjugate Pair Fast Fourier Transform", Electronics Letters 25, 1989; Winograd, "On Computing the Discrete Fourier
Transform", Math. Comp. 32, 1978 (the butterfly of 5).
"""

from std.builtin.globals import global_constant
from std.collections import Array
from std.math import cos, pi, sin, sqrt

from ..data import Data

comptime POINTS = 400
"""Samples of one frame."""

comptime BINS = POINTS // 2 + 1
"""Frequencies that a real frame has."""

comptime COLUMNS: Array[Int, 9] = [0, 8, 4, 2, 10, 1, 5, 9, 13]
"""The k1 of the rows that the DFTs of 16 leave: two real ones of 25 slots, then seven complex ones of 2 * 25."""


def _slots() -> Array[Int32, POINTS]:
    var slots = Array[Int32, POINTS](uninitialized=True)
    for n1 in range(16):
        for n2 in range(25):
            slots[(25 * n1 + 16 * n2) % POINTS] = Int32(25 * n1 + n2)
    return slots^


def _bins() -> Array[Int32, 9 * 25]:
    var bins = Array[Int32, 9 * 25](uninitialized=True)
    var columns = materialize[COLUMNS]()
    for c in range(9):
        for k2 in range(25):
            var k = (225 * columns[c] + 176 * k2) % POINTS # 225 mod 16 = 1, 225 mod 25 = 0; 176 the other way round
            bins[25 * c + k2] = Int32(min(k, POINTS - k))
    return bins^


comptime SLOTS = _slots()
"""Where sample n of a frame belongs."""

comptime _BINS = _bins()


comptime Vector[width: SIMDLength] = SIMD[DType.float32, width]
comptime Real = Data[DType.float32]


@fieldwise_init
struct Complex[width: SIMDLength](TrivialRegisterPassable):
    """`width` complex numbers."""

    var re: Vector[Self.width]
    var im: Vector[Self.width]

    @always_inline
    def __add__(self, other: Self) -> Self:
        return Self(self.re + other.re, self.im + other.im)

    @always_inline
    def __sub__(self, other: Self) -> Self:
        return Self(self.re - other.re, self.im - other.im)

    @always_inline
    def plus(self, factor: Float32, other: Self) -> Self:
        """This + factor * other."""
        return Self(other.re.fma(factor, self.re), other.im.fma(factor, self.im))

    @always_inline
    def plus_i(self, factor: Float32, other: Self) -> Self:
        """This + i * factor * other."""
        return Self(other.im.fma(-factor, self.re), other.re.fma(factor, self.im))

    @always_inline
    def turned[numerator: Int, points: Int](self) -> Self:
        """This times exp(-2 pi i * numerator / points)."""
        comptime if numerator == 0:
            return self
        comptime angle = 2 * pi * Float64(numerator) / Float64(points)
        comptime c = Float32(cos(angle))
        comptime s = Float32(sin(angle))
        return Self(self.re.fma(c, self.im * s), self.im.fma(c, self.re * -s))

    @always_inline
    def power(self) -> Vector[Self.width]:
        """The square of the absolute value."""
        return self.re.fma(self.re, self.im * self.im)


@always_inline
def _real_dft[width: SIMDLength, points: Int, //](x: Array[Vector[width], points], y: Real, stride: Int):
    """DFT of 2, 4, 8 or 16 real numbers: X[0], X[points/2], then real and imaginary part of one of each conjugate pair."""
    comptime half = points // 2
    comptime quarter = points // 4
    comptime if points == 2:
        y.unsafe_store(0, x[0] + x[1])
        y.unsafe_store(stride, x[0] - x[1])
    else:
        var even = Array[Vector[width], half](uninitialized=True)
        comptime for n in range(half):
            even[n] = x[n] + x[n + half]
        _real_dft(even, y, stride)

        var odd = Array[Complex[width], quarter](uninitialized=True)
        comptime for n in range(quarter):
            odd[n] = Complex(x[n] - x[n + half], x[n + quarter + half] - x[n + quarter]).turned[n, points]()
        comptime if quarter == 4:
            var a = odd[0] + odd[2]
            var b = odd[1] + odd[3]
            var c = odd[0] - odd[2]
            var d = odd[1] - odd[3]
            odd[0] = a + b
            odd[1] = c.plus_i(-1, d)
            odd[2] = a - b
            odd[3] = c.plus_i(1, d)
        elif quarter == 2:
            var a = odd[0]
            odd[0] = a + odd[1]
            odd[1] = a - odd[1]
        comptime for m in range(quarter):
            y.unsafe_store((half + 2 * m) * stride, odd[m].re)
            y.unsafe_store((half + 2 * m + 1) * stride, odd[m].im)


comptime _COSINE = Float32(sqrt(5.0) / 4)
comptime _SINE1 = Float32(sin(2 * pi / 5))
comptime _SINE2 = Float32(sin(4 * pi / 5))


@always_inline
def _dft5[width: SIMDLength, //](x: Array[Complex[width], 5]) -> Array[Complex[width], 5]:
    """DFT of 5 complex numbers."""
    var a = x[1] + x[4]
    var b = x[2] + x[3]
    var c = x[1] - x[4]
    var d = x[2] - x[3]
    var sum = a + b
    var difference = a - b
    var mean = x[0].plus(-0.25, sum)
    var p = mean.plus(_COSINE, difference)
    var q = mean.plus(-_COSINE, difference)
    var u = c.plus(_SINE2 / _SINE1, d)
    var v = c.plus(-_SINE1 / _SINE2, d)
    return [x[0] + sum, p.plus_i(-_SINE1, u), q.plus_i(-_SINE2, v), q.plus_i(_SINE2, v), p.plus_i(_SINE1, u)]


@always_inline
def _real_dft5[width: SIMDLength, //](x: Array[Vector[width], 5]) -> Array[Complex[width], 3]:
    """DFT of 5 real numbers: X[0], X[1], X[2]."""
    var a = x[1] + x[4]
    var b = x[2] + x[3]
    var c = x[1] - x[4]
    var d = x[2] - x[3]
    var sum = a + b
    var difference = a - b
    var mean = sum.fma(-0.25, x[0])
    var p = difference.fma(_COSINE, mean)
    var q = difference.fma(-_COSINE, mean)
    var u = d.fma(_SINE2 / _SINE1, c)
    var v = d.fma(-_SINE1 / _SINE2, c)
    return [Complex(x[0] + sum, 0), Complex(p, u * -_SINE1), Complex(q, v * -_SINE2)]


@always_inline
def _load5[width: SIMDLength](x: Real, first: Int, step: Int) -> Array[Vector[width], 5]:
    var five = Array[Vector[width], 5](uninitialized=True)
    comptime for i in range(5):
        five[i] = x.unsafe_load[width=width]((first + i * step) * width)
    return five^


@always_inline
def _load5[width: SIMDLength](x: Real, re: Int, im: Int, step: Int) -> Array[Complex[width], 5]:
    var five = Array[Complex[width], 5](uninitialized=True)
    comptime for i in range(5):
        five[i] = Complex(
            x.unsafe_load[width=width]((re + i * step) * width), x.unsafe_load[width=width]((im + i * step) * width)
        )
    return five^


@always_inline
def _store[width: SIMDLength, //](z: Complex[width], x: Real, re: Int, im: Int):
    x.unsafe_store(re * width, z.re)
    x.unsafe_store(im * width, z.im)


@always_inline
def _store_power[width: SIMDLength, //](z: Complex[width], power: Real, row: Int, k2: Int):
    power.unsafe_store(Int(global_constant[_BINS]()[25 * row + k2]) * width, z.power())


@always_inline
def _real_row[width: SIMDLength](x: Real, power: Real, row: Int):
    """Powers of the DFT of 25 real numbers, one of each conjugate pair; n2 = 5 a + b, k2 = c + 5 d."""
    comptime for b in range(5):
        var z = _real_dft5(_load5[width](x, b, 5))
        x.unsafe_store(b * width, z[0].re)
        comptime for c in range(1, 3):
            _store(z[c].turned[b * c, 25](), x, 10 * c - 5 + b, 10 * c + b)
    var z = _real_dft5(_load5[width](x, 0, 1))
    comptime for d in range(3):
        _store_power(z[d], power, row, 5 * d)
    comptime for c in range(1, 3):
        var z = _dft5(_load5[width](x, 10 * c - 5, 10 * c, 1))
        comptime for d in range(5):
            _store_power(z[d], power, row, c + 5 * d)


@always_inline
def _complex_row[width: SIMDLength](x: Real, power: Real, row: Int):
    """Powers of the DFT of 25 complex numbers, real parts before imaginary parts; n2 = 5 a + b, k2 = c + 5 d."""
    comptime for b in range(5):
        var z = _dft5(_load5[width](x, b, 25 + b, 5))
        comptime for c in range(5):
            _store(z[c].turned[b * c, 25](), x, 5 * c + b, 25 + 5 * c + b)
    comptime for c in range(5):
        var z = _dft5(_load5[width](x, 5 * c, 25 + 5 * c, 1))
        comptime for d in range(5):
            _store_power(z[d], power, row, c + 5 * d)


def power_spectrum[width: SIMDLength](x: Real, power: Real):
    """Computes the powers of `width` frames side by side.

    Parameters:
        width: Number of frames.

    Args:
        x: 400 vectors, one per sample, in the order of `SLOTS`. Overwritten.
        power: 201 vectors, one per frequency.
    """
    for n2 in range(25):
        var column = x.unsafe_offset(n2 * width)
        var samples = Array[Vector[width], 16](uninitialized=True)
        comptime for n1 in range(16):
            samples[n1] = column.unsafe_load[width=width](n1 * 25 * width)
        _real_dft(samples, column, 25 * width)
    for row in range(2):
        _real_row[width](x.unsafe_offset(row * 25 * width), power, row)
    for row in range(2, 9):
        _complex_row[width](x.unsafe_offset((row - 1) * 50 * width), power, row)

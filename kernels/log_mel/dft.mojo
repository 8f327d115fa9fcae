"""The power spectrum of 400 real numbers: |X[k]|^2 for k = 0 .. 200, X[k] = sum over n of x[n] W400^(n k).

W400 = exp(-2 pi i / 400). 400 = 16 * 25, and 16 and 25 have no common factor. Numbered as Good and Thomas do, the sum
becomes a two-dimensional DFT, without twiddle factors between the dimensions:

    n = (25 n1 + 16 n2) mod 400,    k mod 16 = k1,  k mod 25 = k2
    X[k] = sum over n2 of W25^(n2 k2) * (sum over n1 of W16^(n1 k1) * x[n])

           n2 = 0 .. 24                               n2 = 0 .. 24
         +--------------+                           +--------------+
    n1 = | slot         |   25 real DFTs of 16      | k1 = 0  real |  2 real DFTs of 25     -> 2 * 13 bins
    0 .. | 25 n1 + n2   |   ------------------->    | k1 = 8  real |
    15   |              |   down the columns,       | k1 = 4    re |  7 complex DFTs of 25  -> 7 * 25 bins
         |              |   in place                |           im |  along the rows
         +--------------+                           | 2, 10, 1, .. |                          together 201
                                                    +--------------+

That the input is real shows twice. k1 and 16 - k1 are conjugate, so one of them is computed; and a real row yields 13
bins and their conjugates. Then every bin comes out once, k above 200 standing for 400 - k, which has the same power.

- DFT of 16: split radix for real input. Even outputs are a real DFT of half the size; X[1], X[5], X[9] .. are a complex
  DFT of a quarter of the size, the other odd outputs their conjugates. 66 operations.
- DFT of 25: 5 * 5 with 16 twiddle factors, 32 operations per butterfly: 384 operations, 180 if the input is real.

Cost: 25 * 66 + 7 * 384 + 2 * 180 + 402 for the powers = 5100 operations, where a fused multiply-add is one (a matrix
product needs 160800), on 400 numbers in place and 201 powers. Every number is a vector, with one frame per lane: that
makes any permutation free.

Good, "The Interaction Algorithm and Practical Fourier Analysis", J. Roy. Stat. Soc. B 20, 1958. Sorensen et al.,
"Real-Valued Fast Fourier Transform Algorithms", IEEE Trans. ASSP 35, 1987. Winograd, "On Computing the Discrete Fourier
Transform", Math. Comp. 32, 1978.
"""

from max.gpu.memory import AddressSpace
from std.builtin.globals import global_constant
from std.collections import Array
from std.math import pi

from ..math import multiply_add


comptime POINTS = 400
"""Samples of one frame."""

comptime BINS = POINTS // 2 + 1
"""Frequencies that a real frame has."""

comptime _ROWS: Array[Int, 9] = [0, 8, 4, 2, 10, 1, 5, 9, 13]
"""The k1 of each row that the DFTs of 16 leave: two real rows of 25 slots, then seven complex ones of 2 * 25."""


def _slots() -> Array[Int32, POINTS]:
    var slots = Array[Int32, POINTS](uninitialized=True)
    for n1 in range(16):
        for n2 in range(25):
            slots[(25 * n1 + 16 * n2) % POINTS] = Int32(25 * n1 + n2)
    return slots^


def _bins() -> Array[Int32, 9 * 25]:
    var bins = Array[Int32, 9 * 25](uninitialized=True)
    var k1 = materialize[_ROWS]()
    for row in range(9):
        for k2 in range(25):
            var k = (225 * k1[row] + 176 * k2) % POINTS  # 225 is 1 mod 16 and 0 mod 25, 176 is 0 and 1
            bins[25 * row + k2] = Int32(min(k, POINTS - k))
    return bins^


comptime SLOTS = _slots()
"""Where sample n of a frame belongs."""

comptime _BINS = _bins()
"""The bin of each row and k2, at 25 * row + k2."""

comptime Vector[width: SIMDLength] = SIMD[DType.float32, width]
"""One number of `width` frames."""

comptime Real[space: AddressSpace = AddressSpace.GENERIC] = Pointer[Float32, MutUntrackedOrigin, address_space=space]
"""Some vectors, one after another; a GPU has them in shared memory."""


def sine(turns: Float64) -> Float64:
    """Computes sin(2 pi turns) while compiling, for any device: the library's has no float64 on GPUs.

    Args:
        turns: From -1/2 to 2.

    Returns:
        Taylor's series of the nearest angle in half a turn, within 1e-15.
    """
    var t = turns
    while t > 0.5:
        t -= 1
    var x = 2 * pi * t
    var term = x
    var sum = x
    for n in range(1, 16):
        term *= -x * x / Float64(2 * n * (2 * n + 1))
        sum += term
    return sum


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
        return Self(multiply_add(other.re, factor, self.re), multiply_add(other.im, factor, self.im))

    @always_inline
    def plus_i(self, factor: Float32, other: Self) -> Self:
        """This + i * factor * other."""
        return Self(multiply_add(other.im, -factor, self.re), multiply_add(other.re, factor, self.im))

    @always_inline
    def turned[numerator: Int, points: Int](self) -> Self:
        """This times exp(-2 pi i * numerator / points)."""
        comptime if numerator == 0:
            return self
        comptime turn = Float64(numerator) / Float64(points)
        comptime c = Float32(sine(turn + 0.25))
        comptime s = Float32(sine(turn))
        return Self(multiply_add(self.re, c, self.im * s), multiply_add(self.im, c, self.re * -s))

    @always_inline
    def power(self) -> Vector[Self.width]:
        """The square of the absolute value."""
        return multiply_add(self.re, self.re, self.im * self.im)


@always_inline
def real_dft[
    width: SIMDLength, points: Int, space: AddressSpace, //
](x: Array[Vector[width], points], y: Real[space], stride: Int):
    """DFT of 2, 4, 8 or 16 real numbers: X[0], X[points / 2], then one of each conjugate pair as two numbers."""
    comptime half = points // 2
    comptime quarter = points // 4
    comptime if points == 2:
        y.unsafe_store(0, x[0] + x[1])
        y.unsafe_store(stride, x[0] - x[1])
    else:
        var even = Array[Vector[width], half](uninitialized=True)
        comptime for n in range(half):
            even[n] = x[n] + x[n + half]
        real_dft(even, y, stride)

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


comptime _COSINE = Float32(0.5590169943749475)  # sqrt(5) / 4
comptime _SINE1 = Float32(sine(0.2))
comptime _SINE2 = Float32(sine(0.4))


@always_inline
def dft5[width: SIMDLength, //](x: Array[Complex[width], 5]) -> Array[Complex[width], 5]:
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
def real_dft5[width: SIMDLength, //](x: Array[Vector[width], 5]) -> Array[Complex[width], 3]:
    """DFT of 5 real numbers: X[0], X[1], X[2]."""
    var a = x[1] + x[4]
    var b = x[2] + x[3]
    var c = x[1] - x[4]
    var d = x[2] - x[3]
    var sum = a + b
    var difference = a - b
    var mean = multiply_add(sum, -0.25, x[0])
    var p = multiply_add(difference, _COSINE, mean)
    var q = multiply_add(difference, -_COSINE, mean)
    var u = multiply_add(d, _SINE2 / _SINE1, c)
    var v = multiply_add(d, -_SINE1 / _SINE2, c)
    return [Complex(x[0] + sum, 0), Complex(p, u * -_SINE1), Complex(q, v * -_SINE2)]


@always_inline
def _load5[width: SIMDLength](x: Real[], first: Int, step: Int) -> Array[Vector[width], 5]:
    var five = Array[Vector[width], 5](uninitialized=True)
    comptime for i in range(5):
        five[i] = x.unsafe_load[width=width]((first + i * step) * width)
    return five^


@always_inline
def _load5[width: SIMDLength](x: Real[], re: Int, im: Int, step: Int) -> Array[Complex[width], 5]:
    var five = Array[Complex[width], 5](uninitialized=True)
    comptime for i in range(5):
        five[i] = Complex(
            x.unsafe_load[width=width]((re + i * step) * width), x.unsafe_load[width=width]((im + i * step) * width)
        )
    return five^


@always_inline
def _store[width: SIMDLength, //](z: Complex[width], x: Real[], re: Int, im: Int):
    x.unsafe_store(re * width, z.re)
    x.unsafe_store(im * width, z.im)


@always_inline
def _store_power[width: SIMDLength, //](z: Complex[width], power: Real[], row: Int, k2: Int):
    power.unsafe_store(Int(global_constant[_BINS]()[25 * row + k2]) * width, z.power())


@always_inline
def _real_row[width: SIMDLength](x: Real[], power: Real[], row: Int):
    """Powers of the DFT of 25 real numbers, one of each conjugate pair; n2 = 5 a + b, k2 = c + 5 d."""
    comptime for b in range(5):
        var z = real_dft5(_load5[width](x, b, 5))
        x.unsafe_store(b * width, z[0].re)
        comptime for c in range(1, 3):
            _store(z[c].turned[b * c, 25](), x, 10 * c - 5 + b, 10 * c + b)
    var z = real_dft5(_load5[width](x, 0, 1))
    comptime for d in range(3):
        _store_power(z[d], power, row, 5 * d)
    comptime for c in range(1, 3):
        var z = dft5(_load5[width](x, 10 * c - 5, 10 * c, 1))
        comptime for d in range(5):
            _store_power(z[d], power, row, c + 5 * d)


@always_inline
def _complex_row[width: SIMDLength](x: Real[], power: Real[], row: Int):
    """Powers of the DFT of 25 complex numbers, real parts before imaginary parts; n2 = 5 a + b, k2 = c + 5 d."""
    comptime for b in range(5):
        var z = dft5(_load5[width](x, b, 25 + b, 5))
        comptime for c in range(5):
            _store(z[c].turned[b * c, 25](), x, 5 * c + b, 25 + 5 * c + b)
    comptime for c in range(5):
        var z = dft5(_load5[width](x, 5 * c, 25 + 5 * c, 1))
        comptime for d in range(5):
            _store_power(z[d], power, row, c + 5 * d)


def power_spectrum[width: SIMDLength](x: Real[], power: Real[]):
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
        real_dft(samples, column, 25 * width)
    for row in range(2):
        _real_row[width](x.unsafe_offset(row * 25 * width), power, row)
    for row in range(2, 9):
        _complex_row[width](x.unsafe_offset((row - 1) * 50 * width), power, row)

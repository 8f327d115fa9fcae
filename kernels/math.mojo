"""Exponential, error function and GELU for a register of float32, a few cycles each; the same on CPUs and GPUs.

All are polynomials (ratios of two, for erf) fitted to the least largest relative error, evaluated by Horner's rule with
fused multiply-adds; they are what keeps softmax and GELU from costing more than the products around them.

| function | method                                                          | largest error          |
| -------- | --------------------------------------------------------------- | ---------------------- |
| exp2(x)  | x = n + f, |f| <= 1/2: degree 6 in f, times 2^n from its bits    | 1.2e-7 relative        |
| erf(x)   | x P(x^2) / Q(x^2), both of degree 5; sign(x) from 3.95 on       | 3.6e-7 absolute        |

Muller et al., "Handbook of Floating-Point Arithmetic", chapter 10 (range reduction and polynomial evaluation).
"""

from std.collections import Array
from std.math import copysign, recip
from std.memory import bitcast, pack_bits
from std.sys import CompilationTarget, is_gpu, llvm_intrinsic

comptime LOG2_E = Float32(1.4426950408889634)
"""The binary logarithm of e: exp(x) = exp2(LOG2_E * x)."""

comptime INV_SQRT2 = Float32(0.70710678118654752440)

comptime _EXP2: Array[Float32, 7] = [
    1.0,
    0.6931471824645996,
    0.24022646248340607,
    0.05550328642129898,
    0.009618489071726799,
    0.0013399930903688073,
    0.00015345810970757157,
]

comptime _ERF_P: Array[Float32, 6] = [
    1.1283791065216064,
    0.19154858589172363,
    0.052875202149152756,
    0.003808083478361368,
    0.00028468534583225846,
    2.0259126358723734e-06,
]

comptime _ERF_Q: Array[Float32, 6] = [
    1.0,
    0.5030881762504578,
    0.11455889791250229,
    0.015054932795464993,
    0.0011707056546583772,
    3.783172360272147e-05,
]

comptime _GELU_EDGE = Float32(4.8)
"""Beyond it GELU is 0 or x, but for 4e-6."""

comptime _GELU: Array[Float32, 11] = [
    0.14721278846263885,
    -0.07297975569963455,
    0.05290409177541733,
    -0.040565941482782364,
    0.030720900744199753,
    -0.022187473252415657,
    0.01386382058262825,
    -0.007443487644195557,
    0.005392737686634064,
    -0.0041945562697947025,
    0.0014435495249927044,
]

comptime ROUND = Float32(12582912)
"""1.5 * 2^23: adding it rounds to an integer that stands, as two's complement, in the low bits."""

comptime _ROUND_TO_POWER = ROUND + 127
"""Adding it rounds to an integer n, and n + 127 stands in the low bits: the exponent field of 2^n."""


@always_inline
def multiply_add[
    width: SIMDLength, //
](x: SIMD[DType.float32, width], y: SIMD[DType.float32, width], z: SIMD[DType.float32, width]) -> SIMD[
    DType.float32, width
]:
    """Computes x * y + z, rounded once where there is an instruction for it: without, that would be a function's call for every
    number, and it is rounded twice."""
    comptime if not is_gpu() and CompilationTarget.is_x86() and not CompilationTarget._has_feature["fma"]():
        return x * y + z
    else:
        return x.fma(y, z)


@always_inline
def horner[
    width: SIMDLength, size: Int, //, coefficients: Array[Float32, size]
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The polynomial of these coefficients, that of x^0 first."""
    comptime leading = coefficients[size - 1]
    var y = SIMD[DType.float32, width](leading)
    comptime for i in reversed(range(size - 1)):
        comptime coefficient = coefficients[i]
        y = multiply_add(y, x, SIMD[DType.float32, width](coefficient))
    return y


@always_inline
def larger[
    width: SIMDLength, //
](x: SIMD[DType.float32, width], y: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The larger of two registers' lanes, or x where y is NaN: one instruction of x86 instead of the three of `max`, which
    looks for NaN in x, too."""
    return y.gt(x).select(y, x)


@always_inline
def exp2[width: SIMDLength, //](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Computes 2^x.

    Args:
        x: At most 127; below -126 the result is 0, as for minus infinity. NaN gives NaN.

    Returns:
        2^x, within 1.2e-7 of it relatively.
    """
    comptime if width == 16 and not is_gpu() and CompilationTarget.has_avx512f():
        return rebind[SIMD[DType.float32, width]](_exp2_avx512(rebind[SIMD[DType.float32, 16]](x)))
    var f, power = exp2_bits(x, max(x, -126))
    return x.lt(-126).select(SIMD[DType.float32, width](0), horner[_EXP2](f) * power)


@always_inline
def exp2_bits[
    width: SIMDLength, //
](x: SIMD[DType.float32, width], held: SIMD[DType.float32, width]) -> Tuple[
    SIMD[DType.float32, width], SIMD[DType.float32, width]
]:
    """Takes x for n + f, n the integer nearest to `held`, which is x where that is -126 to 127: returns f and 2^n, made of its
    bits. NaN is in f."""
    var shifted = held + _ROUND_TO_POWER
    return x - (shifted - _ROUND_TO_POWER), bitcast[DType.float32, width](bitcast[DType.int32, width](shifted) << 23)


@always_inline
def _exp2_avx512(x: SIMD[DType.float32, 16]) -> SIMD[DType.float32, 16]:
    """The same with two instructions of AVX-512: the rest of rounding to an integer, and scaling by a power of two."""
    comptime Vector = SIMD[DType.float32, 16]
    comptime nearest = Int32(8)  # ties to even, and what is inexact is no exception
    comptime as_set = Int32(4)  # rounding as the thread has it
    var all = Int16(-1)
    var f = llvm_intrinsic["llvm.x86.avx512.mask.reduce.ps.512", Vector](x, nearest, Vector(0), all, as_set)
    var not_small = pack_bits[dtype=DType.uint16](~x.lt(-126))
    return llvm_intrinsic["llvm.x86.avx512.mask.scalef.ps.512", Vector](
        horner[_EXP2](f), x - f, Vector(0), not_small, as_set
    )


@always_inline
def exp[width: SIMDLength, //](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Computes e^x; the error grows with |x|, as x * log2(e) is rounded: 6e-8 * max(2, |x|) relatively.

    Args:
        x: At most 88; below -87.3 the result is 0, as for minus infinity.
    """
    return exp2(x * LOG2_E)


@always_inline
def erf[width: SIMDLength, //](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Computes the error function, within 3.6e-7.

    Args:
        x: Anything but NaN.
    """
    var t = min(x * x, 16)  # beyond 3.95, where 1 - erf(x) is less than a rounding, the ratio is not used
    var inside = x * horner[_ERF_P](t)
    comptime if is_gpu():
        inside *= recip(horner[_ERF_Q](t))  # one instruction within 1e-7; the division would be a dozen
    else:
        inside /= horner[_ERF_Q](t)
    return abs(x).lt(3.95).select(inside, copysign(SIMD[DType.float32, width](1), x))


@always_inline
def gelu[width: Int](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """GELU in its erf form, x/2 * (1 + erf(x / sqrt 2)), elementwise (Hendrycks and Gimpel, arXiv:1606.08415)."""
    return 0.5 * x * (1 + erf(x * INV_SQRT2))


@always_inline
def gelu_to_half[width: Int](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """GELU for results of 16 bits, without a division: x/2 + x c P(2 c^2 / 4.8^2 - 1), c = x held within 4.8, P of degree 10.

    Returns:
        GELU within 5e-6 for |x| up to 5 (beyond: 1e-7 |x|), a quarter of the tolerance of the tests' smallest numbers.
    """
    comptime edge = SIMD[DType.float32, width](_GELU_EDGE)
    var c: SIMD[DType.float32, width]
    comptime if is_gpu():
        c = max(min(x, edge), -edge)
    else:
        c = x.gt(edge).select(edge, larger(x, -edge))
    var t = multiply_add(c * Float32(2 / 4.8**2), c, SIMD[DType.float32, width](-1))
    return x * multiply_add(c, horner[_GELU](t), SIMD[DType.float32, width](0.5))

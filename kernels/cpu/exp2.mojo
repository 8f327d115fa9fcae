"""Powers of two for narrow operands of a product: most of what attention costs beside its tiles.

For bfloat16, 32 at a time:

A bfloat16 has 7 bits of fraction, so 2^x needs no more than 16 bits of arithmetic, of which a register holds twice as
many as of float32:

    t = round(128 (x + 127))                    its upper 9 bits are the sign and exponent of 2^x, its lower 7, f, say
                                                where between two powers of two x lies
    2^(f/128) ~ 1 + (f - c(f)) / 128            the straight line between the powers, less an arch
    c(f) = 172 f (127 - f) / 2^16 - 1           so the bits of the result are t - c(f)

t needs no conversion: added to 2^23, it stands in the lower bits of the float32. A score of one register of keys goes to
the lower half of a word and one of the next to the upper half, as dot products take them (`strips.mojo`).

| for 32 powers                 | instructions of 16 float32 or 32 int16 lanes |
| ----------------------------- | -------------------------------------------- |
| scale and subtract the maximum | 2                                            |
| what is below 2^-127          | 2                                            |
| two registers become one      | 2                                            |
| f, 127 - f, product, arch     | 4                                            |
| t - arch + 1                  | 2                                            |

12 for 32, 10 if nothing is below, where `exp2` of float32 takes 2 * 16 and rounding to bfloat16 2 more. A CPU that looks 64
bytes up in a register (AVX-512 VBMI, every one with AMX) finds c(f) by the upper 6 bits of f: 4 instructions instead of the last 6.

Error: within 0.73 % of 2^x times a constant, 0.25 % in the mean square, 0.23 % by the table (a nearest bfloat16: 0.39 and 0.17 %).
The constant, 1.01 or 0.995, cancels: weights are divided by the sum of the same powers. What is below 2^-127 becomes 2^-133,
or 0 by the table.

For int16 they are float32, rounded to integers (`exp2_integers`): 12 instructions for a register.

Schraudolph, "A Fast, Compact Approximation of the Exponential Function", Neural Computation 11(4), 1999.
"""

from std.memory import bitcast
from std.sys import CompilationTarget, llvm_intrinsic

from ..math import ROUND, exp2, exp2_bits, horner, larger, multiply_add

comptime EXP2_STEPS = Float32(128)
"""Steps of t from one power of two to the next."""

comptime _ZERO = Float32(8388608)
"""2^23: float32 from here on have no fraction, and their lower bits count."""

comptime _EXPONENT = 0x4B00
"""The upper half of the bits of float32 from 2^23 to 2^23 + 2^16. It comes with the lower half of a word, and is taken off what
is added to the upper: adding is cheaper than masking it."""

comptime _HIGH_ZERO = _ZERO + 65536 - Float32(_EXPONENT)
"""2^23, and in its lower half what the upper half of a word begins with."""

comptime _ARCH = UInt32(172)
"""The arch's height: 43 / 2^9 at its highest, 64 * 63 * 172 / 2^16 = 10.6 of 128 steps."""

comptime _LOOKS_UP = CompilationTarget._has_feature["avx512vbmi"]()
"""Whether there is an instruction that looks 64 bytes up in a register."""


def _arches() -> SIMD[DType.uint8, 64]:
    """The arch at f = 2 i and 2 i + 1, of powers times 0.9947, with which none is negative: 1 to 12."""
    var arches = SIMD[DType.uint8, 64](0)
    for i in range(64):
        var f = Float32(2 * i) + 0.5
        arches[i] = UInt8(Int(f - 128 * (0.9947 * exp2(f / 128) - 1) + 0.5))
    return arches


comptime _ARCHES = _arches()

comptime _LEAST = Float32(1 if _LOOKS_UP else 0)
"""The least t: the arch at 0 is not 0 in the table."""


@always_inline
def exp2_offset(maximum: Float32) -> Float32:
    """What `exp2_pairs` adds so that `maximum` becomes 2^0.

    Args:
        maximum: An integer; then nothing is rounded, and results of different maxima differ by a power of two exactly.
    """
    return _ZERO + EXP2_STEPS * (127 - maximum)


@always_inline
def exp2_high_offset(maximum: Float32) -> Float32:
    """The same for what goes to the upper halves of words."""
    return _HIGH_ZERO + EXP2_STEPS * (127 - maximum)


@always_inline
def exp2_pairs[
    bounded: Bool = False
](
    low: SIMD[DType.float32, 16], high: SIMD[DType.float32, 16], factor: Float32, offset: Float32, high_offset: Float32
) -> SIMD[DType.int32, 16]:
    """Computes 2^(x - maximum) in bfloat16, with x = score * factor / EXP2_STEPS.

    Parameters:
        bounded: Whether x is known to be at least 1 / EXP2_STEPS - 127.

    Args:
        low: 16 scores; minus infinity gives at most 2^-133.
        high: 16 more.
        factor: From a score to steps.
        offset: `exp2_offset(maximum)`; x exceeds the maximum by less than 128.
        high_offset: `exp2_high_offset(maximum)`.

    Returns:
        Pairs of bfloat16: the power for `low[i]` in the lower half of word i, that for `high[i]` in the upper.
    """
    var scale = SIMD[DType.float32, 16](factor)
    var x = multiply_add(low, scale, SIMD[DType.float32, 16](offset))
    var y = multiply_add(high, scale, SIMD[DType.float32, 16](high_offset))
    comptime if not bounded:
        x = max(x, SIMD[DType.float32, 16](_ZERO + _LEAST))
        y = max(y, SIMD[DType.float32, 16](_HIGH_ZERO + _LEAST))
    var words = bitcast[DType.int32, 16](x) + (bitcast[DType.int32, 16](y) << 16)
    var t = bitcast[DType.uint16, 32](words)
    comptime if _LOOKS_UP:
        var places = bitcast[DType.int8, 64](t >> 1)  # the upper byte of a word finds something, too
        var found = llvm_intrinsic["llvm.x86.avx512.permvar.qi.512", SIMD[DType.int8, 64]](
            bitcast[DType.int8, 64](_ARCHES), places
        )
        return bitcast[DType.int32, 16](t - (bitcast[DType.uint16, 32](found) & 255))
    var f = t & 127
    var arch = (((f * (f ^ 127)).cast[DType.uint32]() * _ARCH) >> 16).cast[DType.uint16]()
    return bitcast[DType.int32, 16](t - arch + 1)


comptime LARGEST_WEIGHT = Float32(16383)
"""What `exp2_integers` makes of 2^0: 14 bits."""

comptime ZERO_WEIGHT = ROUND
"""What it makes of 0, and more by n for the integer n, which then stands in the low bits."""

comptime _LOG2_LARGEST = Float32(13.999911941)
"""Of LARGEST_WEIGHT."""

comptime _EXP2: Array[Float32, 4] = [0.99992807, 0.69326099, 0.24261114, 0.05517166]
"""2^f for |f| <= 1/2, within 7.5e-5: one step and a quarter of the largest."""


@always_inline
def exp2_integers[
    width: SIMDLength, //
](score: SIMD[DType.float32, width], maximum: Float32, factor: Float32) -> SIMD[DType.float32, width]:
    """Computes the integers nearest to LARGEST_WEIGHT * 2^((score - maximum) * factor), each plus ZERO_WEIGHT.

    Args:
        score: Scores of at most `maximum`; minus infinity gives 0, NaN gives NaN.
        maximum: What becomes LARGEST_WEIGHT; it is subtracted first, so that none exceeds that, however large it is.
        factor: From a score to a power of two.
    """
    comptime Vector = SIMD[DType.float32, width]
    var x = multiply_add(score - Vector(maximum), Vector(factor), Vector(_LOG2_LARGEST))
    x = larger(x, Vector(-2))  # what is less than a half becomes 0 in any case
    var f, power = exp2_bits(x, x)
    return multiply_add(horner[_EXP2](f), power, Vector(ZERO_WEIGHT))

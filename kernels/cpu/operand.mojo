"""What a CPU multiplies with narrow weights: the operands of its dot product, and how rows of A become them.

Dot products of narrow numbers do more arithmetic per instruction than float32, and widen less to get there. "Few" rows
are those of one register tile, where reading the weights is what takes the time:

| weights  | rows | CPU           | A is rounded to | instruction              | multiply-adds to float32's |
| -------- | ---- | ------------- | --------------- | ------------------------ | -------------------------- |
| bfloat16 | many | AMX           | bfloat16        | tdpbf16ps                | 16                         |
| bfloat16 | many | AVX-512 BF16  | bfloat16        | vdpbf16ps                | 2                          |
| bfloat16 | 2 to 12 | AMX        | (float32)       | 3 tdpbf16ps, `few_amx.mojo` | reading b is what takes the time |
| bfloat16 | all other cases |         | (float32)       | b is widened, `tile.mojo` | 1                        |
| float16, float32 | many | AMX   | (float32)       | 3 tdpbf16ps, `split_amx.mojo` | 5.3                   |
| float16, float32 | all other cases | | (float32)       | b is widened or float32, `tile.mojo` | 1             |
| int8     | many | AMX           | 8 bits, by row  | tdpbssd                  | 32                         |
| int8     | many | AVX-512 VNNI  | 8 bits, by row  | vpdpbusd                 | 4                          |
| int8     | 2 to 12 | AMX        | 12 bits, by row | 2 tdpbssd, `few_amx.mojo` | reading b is what takes the time |
| int8     | all other cases |         | 12 bits, by row | vpdpwssd, vpmaddwd       | 2                          |

"8 bits, by row": x[i, k] ~ scale[i] * n with |n| <= 127, scale[i] = max |x[i, :]| / 127. Sums of products of integers are
exact in int32. AVX2 could multiply bytes (vpmaddubsw), but its sums of two saturate beyond 7 bits, and it takes a third
instruction: int16 is 0.8 times as fast, and leaves room for 12 bits, |n| <= 2047, as long as K is at most 8192.

Rows of A go in strips of R rows, as the instruction takes them, C times 4 bytes of each, then the next:

    SIMD (C: all)  row 0 | row 1 | ... | row R-1
    AMX (C = 16)   64 bytes of row 0 | ... | 64 bytes of row 15 | next 64 bytes of each | ...

Four neighbouring k of int8, a, b, c, d, become int16 in the order a c | b d: from bytes, that takes shifts only.
"""

from std.math import clamp
from std.memory import bitcast
from std.sys import CompilationTarget, llvm_intrinsic, size_of
from std.sys.defines import get_defined_string

from ..data import Data
from ..math import ROUND, larger, multiply_add
from .tile import WIDTH

comptime EMULATED = get_defined_string["MAX_WHISPER_EMULATE", ""]()
"""For tests: "amx" or "avx512" takes the CPU for one with these instructions, and computes in plain memory what they do."""

comptime _HAS_AMX = CompilationTarget._has_feature["amx-bf16"]() and CompilationTarget._has_feature["amx-int8"]()
comptime HARDWARE_AMX = _HAS_AMX and EMULATED == ""
comptime AMX = HARDWARE_AMX or EMULATED == "amx"
comptime HARDWARE_DOT_BFLOAT16 = CompilationTarget._has_feature["avx512bf16"]() and WIDTH == 16
comptime HARDWARE_DOT_INT8 = CompilationTarget._has_feature["avx512vnni"]() and WIDTH == 16
comptime DOT_BFLOAT16 = HARDWARE_DOT_BFLOAT16 or EMULATED == "avx512"
comptime DOT_INT8 = HARDWARE_DOT_INT8 or EMULATED == "avx512"

comptime MULTIPLIES_BFLOAT16 = AMX or DOT_BFLOAT16
"""Whether there are instructions for products of pairs of bfloat16."""

comptime DEEPEST = 8192
"""Longest sum whose integers are sure to fit into int32: 127 * 2047 * 8192 < 2^31."""


def operand_type(weights: DType, *, many: Bool) -> DType:
    """What A is rounded to; float32 if these weights are widened instead."""
    if not many:
        return DType.int16 if weights == DType.int8 else DType.float32
    if weights == DType.int8:
        return DType.int8 if AMX else (DType.uint8 if DOT_INT8 else DType.int16)
    if weights == DType.bfloat16 and MULTIPLIES_BFLOAT16:
        return DType.bfloat16
    return DType.float32


comptime lanes[operand: DType]: Int = 4 // size_of[operand]()
"""G: values of k in 4 bytes."""

comptime steps[operand: DType]: Float32 = 2047 if operand == DType.int16 else 127
"""Largest magnitude of an integer that stands for an activation."""

comptime BYTE_OFFSET = 128
"""What is added to activations of 8 bits where the instruction takes them without sign (vpdpbusd)."""


@always_inline
def dot[
    operand: DType
](sums: SIMD[DType.int32, WIDTH], a: SIMD[DType.int32, WIDTH], b: SIMD[DType.int32, WIDTH]) -> SIMD[DType.int32, WIDTH]:
    """Adds the dot product of the G values in every 4 bytes.

    Parameters:
        operand: Type of a's values; b's are the same, but signed where a's are not.

    Args:
        sums: The bits of float32 for bfloat16, else int32.
        a: G values in each lane.
        b: G values in each lane.
    """
    comptime if operand == DType.bfloat16:
        var total = bitcast[DType.float32, WIDTH](sums)
        comptime if HARDWARE_DOT_BFLOAT16:
            total = llvm_intrinsic["llvm.x86.avx512bf16.dpbf16ps.512", SIMD[DType.float32, WIDTH]](
                total, bitcast[DType.bfloat16, 2 * WIDTH](a), bitcast[DType.bfloat16, 2 * WIDTH](b)
            )
        else:
            total = multiply_add(bitcast[DType.float32, WIDTH](a << 16), bitcast[DType.float32, WIDTH](b << 16), total)
            total = multiply_add(
                bitcast[DType.float32, WIDTH](a & -65536), bitcast[DType.float32, WIDTH](b & -65536), total
            )
        return bitcast[DType.int32, WIDTH](total)
    elif operand == DType.uint8:
        comptime if HARDWARE_DOT_INT8:
            return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.512", SIMD[DType.int32, WIDTH]](
                sums, bitcast[DType.uint8, 4 * WIDTH](a), bitcast[DType.int8, 4 * WIDTH](b)
            )
        else:
            var total = sums
            comptime for byte in range(4):
                total += ((a >> Int32(8 * byte)) & 255) * (b << Int32(24 - 8 * byte) >> 24)
            return total
    else:
        comptime assert operand == DType.int16, "the SIMD bodies multiply bfloat16, uint8 and int16"
        var a_16 = bitcast[DType.int16, 2 * WIDTH](a)
        var b_16 = bitcast[DType.int16, 2 * WIDTH](b)
        comptime if HARDWARE_DOT_INT8:
            return llvm_intrinsic["llvm.x86.avx512.vpdpwssd.512", SIMD[DType.int32, WIDTH]](sums, a_16, b_16)
        elif CompilationTarget.is_x86() and WIDTH == 16:
            return sums + llvm_intrinsic["llvm.x86.avx512.pmaddw.d.512", SIMD[DType.int32, WIDTH]](a_16, b_16)
        elif CompilationTarget.is_x86() and WIDTH == 8:
            return sums + llvm_intrinsic["llvm.x86.avx2.pmadd.wd", SIMD[DType.int32, WIDTH]](a_16, b_16)
        elif CompilationTarget.is_x86() and WIDTH == 4:
            return sums + llvm_intrinsic["llvm.x86.sse2.pmadd.wd", SIMD[DType.int32, WIDTH]](a_16, b_16)
        else:
            return sums + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16)


comptime ADDS_PAIRS_OF_BYTES = CompilationTarget.is_x86()
"""Whether `add_pairs_of_bytes` is one instruction and an addition."""


@always_inline
def add_pairs_of_bytes(
    sums: SIMD[DType.int32, WIDTH], a: SIMD[DType.int32, WIDTH], b: SIMD[DType.int32, WIDTH]
) -> SIMD[DType.int32, WIDTH]:
    """Adds the products of bytes without sign and bytes with it, two by two, to sums of int16 (vpmaddubsw).

    Args:
        sums: Two int16 in each lane, that neither they nor any pair's sum may exceed.
        a: Four bytes without sign in each lane.
        b: Four bytes with sign in each lane.
    """
    comptime assert ADDS_PAIRS_OF_BYTES, "only x86 has the instruction"
    comptime name = "llvm.x86.avx512.pmaddubs.w.512" if WIDTH == 16 else (
        "llvm.x86.avx2.pmadd.ub.sw" if WIDTH == 8 else "llvm.x86.ssse3.pmadd.ub.sw.128"
    )
    var pairs = llvm_intrinsic[name, SIMD[DType.int16, 2 * WIDTH]](
        bitcast[DType.uint8, 4 * WIDTH](a), bitcast[DType.int8, 4 * WIDTH](b)
    )
    return bitcast[DType.int32, WIDTH](bitcast[DType.int16, 2 * WIDTH](sums) + pairs)


comptime ONES = SIMD[DType.int32, WIDTH](0x10001)
"""Pairs of 1 in int16: their dot product with pairs is the sum of each."""


def largest_magnitude(x: Data[DType.float32], depth: Int) -> Float32:
    """The largest magnitude of a row; NaN if the row holds NaN or infinity."""
    comptime lanes = 4 * WIDTH  # four registers, so that no comparison waits for the one before
    var most = SIMD[DType.float32, lanes](0)
    var poison = SIMD[DType.float32, lanes](0)
    for k in range(0, depth // lanes * lanes, lanes):
        var value = x.unsafe_load[width=lanes](k)
        most = larger(most, abs(value))
        poison = multiply_add(value, SIMD[DType.float32, lanes](0), poison)
    var top = most.reduce_max()
    var bad = poison.reduce_add()
    for k in range(depth // lanes * lanes, depth // WIDTH * WIDTH, WIDTH):
        var value = x.unsafe_load[width=WIDTH](k)
        top = max(top, abs(value).reduce_max())
        bad += (value * 0).reduce_add()
    for k in range(depth // WIDTH * WIDTH, depth):
        top = max(top, abs(x[unsafe_offset=k]))
        bad += x[unsafe_offset=k] * 0
    return top + bad


def row_scale[operand: DType](x: Data[DType.float32], depth: Int) -> Float32:
    """What a step of a row's integers stands for; NaN if the row holds NaN or infinity."""
    return largest_magnitude(x, depth) / steps[operand]


@always_inline
def reciprocal(scale: Float32) -> Float32:
    """What turns numbers into steps of a scale: 0 where all of them are 0, or one is none."""
    return 1 / scale if scale > 0 else 0


@always_inline
def round_bfloat16(x: SIMD[DType.float32, 16]) -> SIMD[DType.int32, 16]:
    """The bits of the nearest bfloat16, ties to even, in the lower half of each word; what the upper holds does not count.
    """
    comptime if HARDWARE_DOT_BFLOAT16:  # one instruction; what is below 2^-126 becomes 0, as its products do
        var rounded = llvm_intrinsic["llvm.x86.avx512bf16.cvtneps2bf16.512", SIMD[DType.bfloat16, 16]](x)
        return bitcast[DType.int16, 16](rounded).cast[DType.int32]()
    else:
        var bits = bitcast[DType.int32, 16](x)
        var nearest = bits + 0x7FFF + ((bits >> 16) & 1)
        return x.ne(x).select(bits | 0x400000, nearest) >> 16  # what is NaN stays NaN


@always_inline
def pair_words[
    width: SIMDLength, //
](low: SIMD[DType.int32, width], high: SIMD[DType.int32, width]) -> SIMD[DType.int32, width]:
    """Words whose halves are the lower halves of two words: the pairs of what `round_bfloat16` gives."""
    return (low & 0xFFFF) | (high << 16)


@always_inline
def integers(x: SIMD[DType.float32, 16], inverse: SIMD[DType.float32, 16]) -> SIMD[DType.int32, 16]:
    """The integers nearest to x * inverse, ties to even, in the lower 22 bits of each word; what the upper hold does not count.
    """
    return bitcast[DType.int32, 16](multiply_add(x, inverse, SIMD[DType.float32, 16](ROUND)))


@always_inline
def _operands[operand: DType](x: SIMD[DType.float32, 16], inverse: Float32) -> SIMD[DType.int32, 16 // lanes[operand]]:
    """16 neighbouring values of a row, rounded: to bfloat16, or to the integers nearest to x * inverse, ties to even.
    """
    comptime words = 16 // lanes[operand]
    comptime if operand == DType.bfloat16:
        return bitcast[DType.int32, words](round_bfloat16(x).cast[DType.int16]())
    else:
        var bits = integers(x, inverse)
        comptime if operand == DType.int16:
            var values = bits.cast[DType.int16]()
            return bitcast[DType.int32, words](values.shuffle[0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15]())
        else:
            comptime offset = Int32(BYTE_OFFSET if operand == DType.uint8 else 0)
            return bitcast[DType.int32, words]((bits + offset).cast[DType.int8]())


@no_inline
def pack_strip[
    operand: DType
](
    x: Data[DType.float32],
    stride: Int,
    rows: Int,
    strip: Int,
    chunk: Int,
    depth: Int,
    words: Int,
    packed: Data[DType.int32],
    scales: Data[DType.float32],
):
    """Lays a strip of A out, rounded to operands.

    Parameters:
        operand: What to round to.

    Args:
        x: First element of the strip's first row.
        stride: Elements from one row to the next.
        rows: Rows there are; the others of the strip become zeros.
        strip: R.
        chunk: C, a multiple of the words that 16 values become, or all words.
        depth: Elements of a row.
        words: Times 4 bytes of a packed row, a multiple of C; those behind the last element become zeros.
        packed: Receives `strip * words` times 4 bytes.
        scales: Receives the scale of each row; untouched for bfloat16.
    """
    comptime size = 16 // lanes[operand]
    var whole = depth // 16 * 16 // lanes[operand]  # words of which all elements exist
    for row in range(strip):
        var here = row < rows
        var inverse = Float32(0)
        comptime if operand != DType.bfloat16:
            var scale = row_scale[operand](x.unsafe_offset(row * stride), depth) if here else 0
            scales[unsafe_offset=row] = scale
            inverse = reciprocal(scale)
        for begin in range(0, words, chunk):
            var line = packed.unsafe_offset(begin * strip + row * chunk)
            var source = x.unsafe_offset(row * stride + begin * lanes[operand])
            var full = clamp(whole - begin, 0, chunk) if here else 0
            for word in range(0, full, size):
                var values = source.unsafe_load[width=16](word * lanes[operand])
                line.unsafe_store(word, _operands[operand](values, inverse))
            for word in range(full, chunk, size):  # what is behind the last element, and rows that are missing
                var values = SIMD[DType.float32, 16](0)
                var k = (begin + word) * lanes[operand]
                for i in range(min(depth - k, 16) if here else 0):
                    values[i] = x[unsafe_offset=row * stride + k + i]
                var out = _operands[operand](values, inverse)
                for i in range(min(size, chunk - word)):
                    line[unsafe_offset=word + i] = out[i]

"""One tensor-core instruction of NVIDIA GPUs (sm_80 and later): D = A @ B + D, a 16 x 8 tile by one warp.

A (16, 16) and B (16, 8) are float16 or bfloat16, D (16, 8) float32. Every lane holds a few elements of each; with
g = lane / 4 and t = lane mod 4:

           B   column g                      lane holds of       rows        columns
               rows 2t, 2t+1 | 2t+8, 2t+9    A: 8 values         g, g+8      2t, 2t+1, 2t+8, 2t+9
        +----------------+                   B: 4 values         as drawn    g
      A |                | D                 D: 4 values         g, g+8      2t, 2t+1
        +----------------+
                                             A in the order (g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..)

`load_matrices` (ldmatrix) fills such registers from shared memory: lane l gives the address of 16 bytes, row l mod 8 of the
8 x 8 matrix l / 8, and receives elements 2t and 2t+1 of row g of all four; transposed, elements g of rows 2t and 2t+1.

The sum over the 16 products has no order to rely on: bits may differ between GPUs, not between runs.

NVIDIA, "PTX ISA", 9.7.14.5 (mma, ldmatrix).
"""

from std.memory import bitcast
from std.sys import _RegisterPackType, llvm_intrinsic

from .memory import Shared, chunk

comptime MMA_M = 16
comptime MMA_N = 8
comptime MMA_K = 16


@always_inline
def product_column(row: Int) -> Int:
    """Which column of a product belongs in a row of B's shared tile, so that a lane ends with 8 that lie together: column 2t + h of
    mma tile j of 32 columns (row 8j + 2t + h) is column 8t + 2j + h of the product."""
    return row & ~31 | (row & 6) << 2 | (row & 24) >> 2 | row & 1


@always_inline
def load_matrices[dtype: DType, //, *, transpose: Bool = False](row: Shared[dtype]) -> SIMD[dtype, 8]:
    """Loads four 8 x 8 matrices of 2-byte elements from shared memory; all lanes of the warp take part.

    Parameters:
        dtype: Either float16 or bfloat16.
        transpose: Whether each matrix is transposed on the way.

    Args:
        row: 16 aligned bytes: row (lane mod 8) of matrix (lane / 8).

    Returns:
        Two elements of each matrix, in the order of the matrices.
    """
    comptime intrinsic = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4" + (".trans" if transpose else "") + ".b16.p3"
    var r = llvm_intrinsic[intrinsic, _RegisterPackType[UInt32, UInt32, UInt32, UInt32]](row)
    return bitcast[dtype, 8](SIMD[DType.uint32, 4](r[0], r[1], r[2], r[3]))


@always_inline
def multiply_add[
    dtype: DType, //
](mut d: SIMD[DType.float32, 4], a: SIMD[dtype, 8], b0: SIMD[dtype, 2], b1: SIMD[dtype, 2]):
    """Computes D += A @ B; all lanes of the warp take part.

    Parameters:
        dtype: Either float16 or bfloat16.

    Args:
        d: This lane's part of D.
        a: Of A.
        b0: Of rows 0 to 7 of B.
        b1: Of rows 8 to 15 of B.
    """
    comptime assert dtype.is_half_float(), "tensor cores multiply float16 or bfloat16"
    comptime register = DType.float16 if dtype == DType.float16 else DType.int32  # as LLVM declares the operands
    comptime width = 2 if dtype == DType.float16 else 1
    comptime intrinsic = "llvm.nvvm.mma.m16n8k16.row.col." + ("f32.f32" if dtype == DType.float16 else "bf16")
    var y = llvm_intrinsic[intrinsic, _RegisterPackType[Float32, Float32, Float32, Float32]](
        bitcast[register, width](a.slice[2, offset=0]()),
        bitcast[register, width](a.slice[2, offset=2]()),
        bitcast[register, width](a.slice[2, offset=4]()),
        bitcast[register, width](a.slice[2, offset=6]()),
        bitcast[register, width](b0),
        bitcast[register, width](b1),
        d[0],
        d[1],
        d[2],
        d[3],
    )
    d = SIMD[DType.float32, 4](y[0], y[1], y[2], y[3])


@always_inline
def multiply_add_chunks[
    dtype: DType, //
](
    mut d: SIMD[DType.float32, 4],
    low: SIMD[dtype, chunk[dtype]()],
    high: SIMD[dtype, chunk[dtype]()],
    b: SIMD[dtype, chunk[dtype]()],
):
    """Computes D += A @ B for 32 products a sum, of operands that lie row by row (A) and column by column (B) in memory.

    The order of a sum's terms does not matter: a lane holds 16 consecutive bytes of each row, where the instruction would
    have it hold pairs 16 bytes apart. A and B are permuted alike.

    Parameters:
        dtype: Either float16 or bfloat16.

    Args:
        d: This lane's part of D.
        low: Of row lane / 4 of A, elements 8 * (lane mod 4) to that + 7.
        high: Of row lane / 4 + 8, the same.
        b: Of column lane / 4 of B, the same.
    """
    comptime for i in range(0, 8, 4):
        var a_low = low.slice[4, offset=i]()
        var a_high = high.slice[4, offset=i]()
        var a = (
            a_low.slice[2, offset=0]()
            .join(a_high.slice[2, offset=0]())
            .join(a_low.slice[2, offset=2]().join(a_high.slice[2, offset=2]()))
        )
        multiply_add(d, a, b.slice[2, offset=i](), b.slice[2, offset=i + 2]())

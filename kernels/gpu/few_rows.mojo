"""Matrix product for at most 16 rows, as decoding needs it: y = f(norm(x) @ W^T + b) [+ r], bound by reading W.

Shapes: x (M <= 16, K), W (N, K) row-major, b (N), y and r (M, N); norm is nothing, or on tensor cores the layer norm of each row,
whose gamma and beta are in W and b (`max_whisper/packing.py`, fold_norm). It follows the product, with the sums s (N) of W's rows:

    norm(x) @ W^T = (x @ W^T - mean(x) s) / sqrt(var(x) + epsilon),    var(x) = mean(x^2) - mean(x)^2

so nobody waits for mean and variance: a warp adds up the squares of what it multiplies, and they meet where its products do.

A block makes 16 columns of y. Its 8 to 16 warps share k: each takes every 8th to 16th slice of 32, and what it needs of W and of x
goes straight to its registers, 16 bytes a lane, so a block reads nothing twice. The warps' sums meet in shared memory; a
thread adds up those of one result:

              k = 0       32        64            352
              +---------+---------+---------+---+---------+      sums: warp, row, column
       W   16 | warp 0  | warp 1  | warp 2  |...| warp 11 |         +--+--+--+-- --+
              +---------+---------+---------+---+---------+         |  |  |  |     |   y = f(their sum + b) + r
       x    M | warp 0  | warp 1  | warp 2  |...| warp 11 |         +--+--+--+-- --+
              +---------+---------+---------+---+---------+

Time is a chain of waits, not of bytes: one for all of W that a warp needs (8 chunks a lane are in flight), before which nothing
of an earlier launch is needed (`overlap.mojo`); one for x and r; one at the barrier.

What a warp adds up, and with which instructions, stands in `partial_sums.mojo`.

Cost: 2*M*N*K operations (M rounded up to 8 on tensor cores); (N*K + M * K * N/16 + N + M*N [+ M*N]) elements [and N floats]:
each of N/16 blocks is given x: 1.06 times the least with one row, 1.3 with 5, 1.9 with 16. The rereads come from the level-2
cache and are nearly free; wider blocks are not. On an H200 (float16, 12 launches in a CUDA graph; us a launch):

    rows, K -> N             1, 384 -> 384   1, 384 -> 1152   1, 384 -> 1536 + GELU   1, 1536 -> 384 + r   5, 1536 -> 384 + r   8
    here, of normalised rows 1.7             1.9              2.0
    ... normalised before    2.4             2.6              2.6
    here                     1.4                                                      1.7                  1.7                  1.8
    not overlapping          2.0             2.1              2.2                     2.5                  2.6                  2.7
    ... 32 columns a block   2.1             2.2              2.3                     3.4                  3.5                  3.6
    ... 1.10 x the least     3.5             3.8              3.9                     8.8                  9.2

The last, taken from tiny.en's step, had 32 to 80 columns a block and 4 warps to share k, as reading little asks for. With many
more blocks than multiprocessors 32 columns gain: 1280 -> 3840 takes 5.5 us so, 6.7 here; 5120 -> 1280 12.6, 8.0 here.

tiny.en's whole step takes 86 us with one window, 108 with eight; with norms in front of the products, by the
same launches, 99 and 117; in launches of their own, none of which overlaps another, 193 with one.

Occupancy: at most 128 registers a thread and 20 KB of shared memory: one block of 16 warps a multiprocessor or more; few multiprocessors
have a second one in any of Whisper's sizes.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, WARP_SIZE, barrier, block_dim, block_idx, thread_idx, warp_id
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.sys import is_nvidia_gpu
from std.utils import StaticTuple

from ..data import Data
from .epilogue import Epilogue
from .memory import shared_memory
from .overlap import overlapping, start_next, wait_for_previous
from .partial_sums import (
    COLUMNS,
    MAX_ROWS,
    PITCH,
    TILES,
    MultiplyAdds,
    Norm,
    Operand,
    PartialSums,
    TensorCores,
)

comptime MOST_THREADS = 512
"""Most threads of a block."""

comptime LEAST_THREADS = MAX_ROWS * COLUMNS // TILES
"""Fewest: one for each result, or for TILES neighbours."""

comptime DEPTH_OF_WARP = 32
"""As many k a warp, while there are enough warps."""


@always_inline
def _few_rows[
    apply_gelu: Bool, add_residual: Bool, //, P: PartialSums
](
    x: Operand[P.dtype],
    weight: Operand[P.dtype],
    norm: Norm,
    epilogue: Epilogue[P.dtype, apply_gelu, add_residual, TILES],
):
    comptime WARPS = MOST_THREADS // WARP_SIZE
    var sums = shared_memory[DType.float32, WARPS * MAX_ROWS * PITCH]()
    var warps = Int(block_dim.x) // WARP_SIZE
    var number = Int(warp_id())
    var first = Int32(block_idx.x) * Int32(COLUMNS)

    # The result that this thread finishes: a warp takes two rows that are 4 apart, whose partial sums collide nowhere.
    var thread = Int(thread_idx.x)
    var row = thread // 32 % 4 + thread % 32 // 16 * 4 + thread // 128 * 8
    var part = thread % 16 * TILES
    var column = first + Int32(part)
    var finishes = Int32(row) < x.rows and column < weight.rows
    var bias = epilogue.load_bias(column) if finishes else epilogue.Loaded(0)
    var column_sums = epilogue.Chunk(0)
    comptime if P.MOMENTS:
        if finishes:
            column_sums = norm.load(column)

    start_next()
    var residual = epilogue.Loaded(0)
    var partial = P()
    var distance = Int32(warps * P.SLICE)
    for begin in range(Int32(0), x.depth, Int32(P.IN_FLIGHT) * distance):
        var k = begin + Int32(number * P.SLICE)
        var w = P.load(weight, first, k, distance)
        if begin == 0:
            wait_for_previous()
            if finishes:
                residual = epilogue.load_residual(Int32(row), column)
        partial.add(x, w, k, distance)
    partial.write(sums.unsafe_offset(number * MAX_ROWS * PITCH), x.rows)
    barrier()
    if finishes:
        var y = epilogue.Chunk(0)
        var moments = SIMD[DType.float32, 2](0)
        for i in range(warps):
            var own = sums.unsafe_offset((i * MAX_ROWS + row) * PITCH)
            y += own.unsafe_load[width=TILES, alignment=4 * TILES](part)
            comptime if P.MOMENTS:
                moments += own.unsafe_load[width=2, alignment=8](COLUMNS)
        comptime if P.MOMENTS:
            y = norm.apply(y, column_sums, moments)
        epilogue.store(Int32(row), column, y, bias, residual)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(MOST_THREADS)))
def few_rows_kernel[
    dtype: DType, apply_gelu: Bool, add_residual: Bool, normalise: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    sums: Data[DType.float32],
    residual: Data[dtype],
    rows: Int32,
    columns: Int32,
    depth: Int32,
    share: Float32,
    epsilon: Float32,
):
    """A block's columns; the arguments are those of `multiply_few_rows`, and share is 1 / K."""
    var a = Operand[dtype](x, rows, depth)
    var b = Operand[dtype](weight, columns, depth)
    var norm = Norm(sums, share, epsilon)
    var epilogue = Epilogue[dtype, apply_gelu, add_residual, TILES](output, bias, residual, rows, columns)
    comptime if is_nvidia_gpu() and dtype.is_half_float():
        _few_rows[TensorCores[dtype, normalise]](a, b, norm, epilogue)
    else:
        _few_rows[MultiplyAdds[dtype]](a, b, norm, epilogue)


def normalises[dtype: DType](rows: Int, ctx: DeviceContext) -> Bool:
    """Whether the product can normalise its rows: on tensor cores."""
    return dtype.is_half_float() and ctx.api() == "cuda" and rows <= MAX_ROWS


def multiply_few_rows[
    dtype: DType, //, apply_gelu: Bool, add_residual: Bool, normalise: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    sums: Data[DType.float32],
    residual: Data[dtype],
    *,
    rows: Int,
    columns: Int,
    depth: Int,
    epsilon: Float32,
    ctx: DeviceContext,
) raises:
    """Launches the product.

    Args:
        output: (rows, columns).
        x: (rows, depth).
        weight: (columns, depth).
        bias: (columns).
        sums: (columns), those of the weight's rows, not read unless normalise.
        residual: (rows, columns), not read unless add_residual.
        rows: M, 1 to MAX_ROWS.
        columns: N.
        depth: K, a multiple of a chunk.
        epsilon: Of the norm.
        ctx: The device.
    """
    var threads = ceildiv(depth, 2 * DEPTH_OF_WARP) * 64
    ctx.enqueue_function[few_rows_kernel[dtype, apply_gelu, add_residual, normalise]](
        output,
        x,
        weight,
        bias,
        sums,
        residual,
        Int32(rows),
        Int32(columns),
        Int32(depth),
        1 / Float32(depth),
        epsilon,
        grid_dim=ceildiv(columns, COLUMNS),
        block_dim=min(max(threads, LEAST_THREADS), MOST_THREADS),
        attributes=overlapping(),
    )

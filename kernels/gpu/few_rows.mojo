"""Matrix product for at most 16 rows, as decoding needs it: y = f(norm(x) @ W^T + b) [+ r], bound by reading W.

Shapes: x (M <= 16, K), W (N, K) row-major, b (N), y and r (M, N); norm is nothing, or the layer norm of each row with gamma and
beta (K) on tensor cores, up to K = 1024.

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
of an earlier launch is needed (`overlap.mojo`); one for x and r; one at the barrier, with a norm two more. The norm takes the mean
and then the mean square of distances from it, each by two shuffles and through shared memory: a launch less than by itself.

What a warp adds up, and with which instructions, stands in `partial_sums.mojo`.

Cost: 2*M*N*K operations (M rounded up to 8 on tensor cores); (N*K + (M [+ 2]) * K * N/16 + N + M*N [+ M*N]) elements: each of N/16
blocks is given x, and gamma and beta: 1.06 times the least with one row, 1.3 with 5, 1.9 with 16. The rereads come from the level-2 cache
and are nearly free; wider blocks are not. On an H200 (float16, 12 launches in a CUDA graph; us a launch):

    rows, K -> N             1, 384 -> 384   1, 384 -> 1152   1, 384 -> 1536 + GELU   1, 1536 -> 384 + r   5, 1536 -> 384 + r   8
    here, of normalised rows 2.4             2.6              2.6
    here                     1.4                                                      1.7                  1.7                  1.8
    not overlapping          2.0             2.1              2.2                     2.5                  2.6                  2.7
    ... 32 columns a block   2.1             2.2              2.3                     3.4                  3.5                  3.6
    ... 1.10 x the least     3.5             3.8              3.9                     8.8                  9.2

The last, taken from tiny.en's step, had 32 to 80 columns a block and 4 warps to share k, as reading little asks for. With many
more blocks than multiprocessors 32 columns gain: 1280 -> 3840 takes 5.5 us so, 6.7 here; 5120 -> 1280 12.6, 8.0 here.

tiny.en's whole step, norms within the products and launches overlapping, takes 100 us with one window, 108 with five: 193 and 227 before.

Occupancy: at most 128 registers a thread and 22 KB of shared memory: one block of 16 warps a multiprocessor or more; few multiprocessors
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
    MOST_THREADS,
    PITCH,
    TILES,
    MultiplyAdds,
    Norm,
    Operand,
    PartialSums,
    TensorCores,
)

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
    norm: Norm[P.dtype],
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

    start_next()
    var residual = epilogue.Loaded(0)
    var partial = P(norm)
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
        for i in range(warps):
            y += sums.unsafe_load[width=TILES, alignment=4 * TILES]((i * MAX_ROWS + row) * PITCH + part)
        epilogue.store(Int32(row), column, y, bias, residual)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(MOST_THREADS)))
def few_rows_kernel[
    dtype: DType, apply_gelu: Bool, add_residual: Bool, normalise: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    gamma: Data[dtype],
    beta: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
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
    var norm = Norm[dtype](gamma, beta, share, epsilon)
    var epilogue = Epilogue[dtype, apply_gelu, add_residual, TILES](output, bias, residual, rows, columns)
    comptime if is_nvidia_gpu() and dtype.is_half_float():
        _few_rows[TensorCores[dtype, normalise]](a, b, norm, epilogue)
    else:
        _few_rows[MultiplyAdds[dtype]](a, b, norm, epilogue)


def normalises[dtype: DType](rows: Int, depth: Int, ctx: DeviceContext) -> Bool:
    """Whether the product can normalise its rows: on tensor cores, which hold all of x at once up to some length."""
    comptime P = TensorCores[dtype, True]
    comptime most = P.IN_FLIGHT * P.SLICE * MOST_THREADS // 32
    return dtype.is_half_float() and ctx.api() == "cuda" and rows <= MAX_ROWS and depth <= most


def multiply_few_rows[
    dtype: DType, //, apply_gelu: Bool, add_residual: Bool, normalise: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    gamma: Data[dtype],
    beta: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
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
        gamma: (depth), not read unless normalise.
        beta: (depth), not read unless normalise.
        weight: (columns, depth).
        bias: (columns).
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
        gamma,
        beta,
        weight,
        bias,
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

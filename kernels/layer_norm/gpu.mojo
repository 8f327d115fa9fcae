"""Layer normalisation on a GPU; equations and shapes as in `cpu.mojo`.

    block of 16 rows                      group of 32 lanes: one row, in registers between the first read and the last write
    +----------------------------------+
    | row 0   | 0 1 .. 31 | 0 1 .. 31 |    lane l holds chunks l, l + 32, ... of 16 bytes: every request is whole
    | row 1   |                       |
    |   ..    |                       |    sum, then squared distances from the mean: two butterflies of 5 shuffles
    | row 15  |                       |
    +----------------------------------+
    | gamma, beta in shared memory    |    copied while the rows arrive, once per block

The variance is the mean of squared distances from the mean, not a difference of means: the row is at hand. A group has 32
lanes on every GPU; where a wavefront has 64, it holds two rows.

Cost: M rows in and out once (with the residual two in, two out) and gamma and beta once per 16 rows: 1 + 1/16 of the least
for one input, 1 + 1/32 for two. Shared memory: 2 * D elements. A lane holds at most 64 numbers of
the row. Occupancy: at most 48 registers up to D = 512, 3 blocks or 48 warps per multiprocessor; 128 and one block at most.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, thread_idx
from max.gpu.host import DeviceContext
from max.gpu.primitives import warp
from std.collections import Array
from std.math import ceildiv, sqrt
from std.utils import StaticTuple

from ..data import Data
from ..gpu.memory import chunk, commit_copies, copy_chunk, load_chunk, shared_memory, store_chunk, wait_copies
from ..gpu.overlap import overlapping, start_next, wait_for_previous

comptime LANES = 32
"""Threads that share a row."""

comptime ROWS = 16
"""Rows of a block."""

comptime THREADS = LANES * ROWS

comptime MOST_HELD = 64
"""Numbers of a row that one lane can hold."""

comptime MAX_COLUMNS = LANES * MOST_HELD
"""Largest D."""


@always_inline
def _group_sum(x: Float32) -> Float32:
    """Sum over the group, in every lane."""
    var y = x
    comptime for step in range(5):
        y += warp.shuffle_xor(y, UInt32(1 << step))
    return y


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def layer_norm_kernel[
    dtype: DType, held: Int, add_residual: Bool, affine: Bool
](
    total: Data[dtype],
    output: Data[dtype],
    x: Data[dtype],
    residual: Data[dtype],
    gamma: Data[dtype],
    beta: Data[dtype],
    rows: Int32,
    columns: Int32,
    share: Float32,
    epsilon: Float32,
):
    """Normalises 16 rows, after adding the residual and storing the sum where there is one.

    Parameters:
        dtype: Of all tensors.
        held: Numbers of a row per lane; 32 of these hold a row.
        add_residual: Whether `residual` is added and `total` stored.
        affine: Whether gamma and beta are applied; otherwise they are not read.

    Args:
        total: (rows, columns).
        output: (rows, columns).
        x: (rows, columns).
        residual: (rows, columns).
        gamma: (columns).
        beta: (columns).
        rows: M.
        columns: D, whole chunks.
        share: 1 / D: a division here would be a call, with a register to spill.
        epsilon: Added to the variance.
    """
    comptime width = chunk[dtype]()
    comptime rounds = held // width
    comptime Floats = SIMD[DType.float32, width]
    var scales = shared_memory[dtype, LANES * held]()
    var shifts = shared_memory[dtype, LANES * held]()
    var thread = Int32(thread_idx.x)
    comptime if affine:
        comptime for i in range(ceildiv(LANES * held, THREADS * width)):
            var at = (Int32(i * THREADS) + thread) * Int32(width)
            if at < columns:
                copy_chunk(gamma.unsafe_offset(Int(at)), scales.unsafe_offset(Int(at)), True)
                copy_chunk(beta.unsafe_offset(Int(at)), shifts.unsafe_offset(Int(at)), True)
        commit_copies()
    start_next()
    wait_for_previous()

    var row = Int32(block_idx.x) * Int32(ROWS) + thread // Int32(LANES)
    var first = thread % Int32(LANES) * Int32(width)
    var start = Int(row) * Int(columns)
    var s = Array[Floats, rounds](fill=0)
    if row < rows:
        comptime for i in range(rounds):
            var at = first + Int32(i * LANES * width)
            if at < columns:
                s[i] = load_chunk(x, start + Int(at)).cast[DType.float32]()
        comptime if add_residual:
            comptime for i in range(rounds):
                var at = first + Int32(i * LANES * width)
                if at < columns:
                    var r = load_chunk(residual, start + Int(at)).cast[DType.float32]()
                    var sum = (s[i] + r).cast[dtype]()
                    store_chunk(total, start + Int(at), sum)
                    s[i] = sum.cast[DType.float32]()

    var sum = Float32(0)
    comptime for i in range(rounds):
        sum += s[i].reduce_add()
    var mean = _group_sum(sum) * share
    var squares = Float32(0)
    comptime for i in range(rounds):
        if first + Int32(i * LANES * width) < columns:
            var distance = s[i] - mean
            squares += (distance * distance).reduce_add()
    var scale = 1 / sqrt(_group_sum(squares) * share + epsilon)

    comptime if affine:
        wait_copies()
        barrier()
    if row < rows:
        comptime for i in range(rounds):
            var at = first + Int32(i * LANES * width)
            if at < columns:
                var y = (s[i] - mean) * scale
                comptime if affine:
                    var g = scales.unsafe_load[width=width, alignment=16](Int(at)).cast[DType.float32]()
                    var b = shifts.unsafe_load[width=width, alignment=16](Int(at)).cast[DType.float32]()
                    y = y.fma(g, b)
                store_chunk(output, start + Int(at), y.cast[dtype]())


def enqueue_layer_norm[
    dtype: DType, //, add_residual: Bool, affine: Bool = True
](
    total: Data[dtype],
    output: Data[dtype],
    x: Data[dtype],
    residual: Data[dtype],
    gamma: Data[dtype],
    beta: Data[dtype],
    rows: Int,
    columns: Int,
    epsilon: Float32,
    ctx: DeviceContext,
) raises:
    """Launches the kernel that holds a row of this length; arguments as there. D is at most MAX_COLUMNS."""

    @always_inline
    def launch[held: Int]() raises {imm}:
        ctx.enqueue_function[layer_norm_kernel[dtype, held, add_residual, affine]](
            total,
            output,
            x,
            residual,
            gamma,
            beta,
            Int32(rows),
            Int32(columns),
            1 / Float32(columns),
            epsilon,
            grid_dim=ceildiv(rows, ROWS),
            block_dim=THREADS,
            attributes=overlapping(),
        )

    if rows == 0:
        return
    if columns <= LANES * MOST_HELD // 4:
        launch[MOST_HELD // 4]()
    elif columns <= LANES * MOST_HELD // 2:
        launch[MOST_HELD // 2]()
    else:
        launch[MOST_HELD]()

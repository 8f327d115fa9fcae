"""Matrix product for at most 16 rows, as decoding needs it: y = f(x @ W^T + b) [+ r], bound by reading W.

Shapes: x (M <= 16, K), W (N, K) row-major, b (N), y and r (M, N).

A block is one to five groups of 128 threads, and a group makes 32 columns of y (16 without tensor cores), the last one of
a block perhaps only half of them. Its warps share k: each takes every fourth slice, so W is read once, straight to registers, 16 bytes a lane, and the warps' sums meet in shared
memory at the end. All groups need the same x: the block copies what belongs to one pass over W to shared memory while
the pass's W is on its way.

               pass 0                          pass 1
        W   warp 0  warp 1  warp 2  warp 3    warp 0 ...
       .-  +-------+-------+-------+-------+-+-------
    32 |   |       |       |       |       | |           group 0
       '-  +-------+-------+-------+-------+-+-------
    32     |       |       |       |       | |           group 1: the same k, the next columns
           +-------+-------+-------+-------+-+-------
        x  |  shared memory, 16 rows       | |  ...      no two threads of a grid read the same W, no two of a block
           +-------------------------------+ +-------    the same x

What a warp adds up, and with which instructions, stands in `partial_sums.mojo`.

Cost: 2*M*N*K operations (M rounded up to 8 on tensor cores); (N*K + M*K * P + N + M*N [+ M*N]) elements with P blocks. Every
block must be given x, so its rereads, from the level-2 cache, stay within a tenth of W only with P <= 1 + N / (10*M) blocks;
`choose_columns` widens blocks by 16 columns until they do, but not so far that a few multiprocessors, which take in 64 bytes a
cycle each, would be waited for: docs/gpu.md has the numbers for every size of Whisper. With 5 rows tiny's 1536 -> 384 is 8
blocks of 48 columns, 1.09 times the least, 1.8 us of intake on an A100; 12 blocks of 32 would be 1.14 times and 1.26 us. A wider
model's K = 4 N stays at 32 columns and up to 1.15 times: k split among blocks besides would ask for less, but needs a launch
more to add the parts, which takes twice as long as what it saves.

Occupancy: latency is hidden by loads in flight, 8 chunks of W a lane (4 KB a warp), not by many warps; at most 96 registers a
thread on tensor cores and 45 KB of shared memory (3 blocks a multiprocessor on sm_80, 2 on sm_89, 4 on sm_90), otherwise 176
registers and 18 KB (2 blocks of 128 threads, 1 of 256).
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, thread_idx, warp_id
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.sys import is_nvidia_gpu, size_of
from std.utils import StaticTuple

from ..data import Data
from .epilogue import Epilogue
from .memory import chunk, shared_memory, wait_copies
from .partial_sums import MAX_ROWS, PITCH, WARPS, MultiplyAdds, Operand, PartialSums, TensorCores
from .tensor_core import MMA_M
from .tile import THREADS

comptime MOST_BYTES = 160 << 10
"""What a block may read of W and x for the sake of fewer blocks: 2560 cycles of a multiprocessor, less than a launch takes."""

comptime COLUMN_STEP = MMA_M
"""By how many columns a block is widened."""

comptime ENOUGH_BLOCKS = 24
"""So many multiprocessors take in what the memory of a GPU delivers (A100, 2 TB/s: 22 of 90 GB/s), and may be waited for."""


@always_inline
def _few_rows[
    apply_gelu: Bool, add_residual: Bool, //, P: PartialSums
](x: Operand[P.dtype], weight: Operand[P.dtype], own: Int32, epilogue: Epilogue[P.dtype, apply_gelu, add_residual]):
    comptime SLICES = P.IN_FLIGHT * WARPS
    comptime width = chunk[P.dtype]()
    comptime GROUP_SUMS = WARPS * MAX_ROWS * PITCH
    comptime BYTES = max(SLICES * MAX_ROWS * P.SLICE * size_of[P.dtype](), P.MOST_GROUPS * GROUP_SUMS * 4)
    var shared = shared_memory[DType.uint8, BYTES]()
    var stage = shared.unsafe_bitcast[Scalar[P.dtype]]()
    var group = Int(warp_id()) // WARPS
    var number = Int(warp_id()) % WARPS
    var column = Int32(block_idx.x) * own + Int32(group * P.COLUMNS)
    var end = min(weight.rows, Int32(block_idx.x) * own + own)
    var mine = Operand[P.dtype](weight.start, end, weight.depth)
    var partial = P()
    x.start_copy[P.SLICE, SLICES](0, stage)
    for first in range(Int32(0), x.depth, Int32(SLICES * P.SLICE)):
        var k = first + Int32(number * P.SLICE)
        var w = P.load(mine, column, k)
        wait_copies()
        barrier()
        partial.add(stage.unsafe_offset(number * MAX_ROWS * P.SLICE), x.rows, end - column, x.depth - k, w)
        barrier()  # all have used x: the next pass's may be written, or the sums
        if first + Int32(SLICES * P.SLICE) < x.depth:
            x.start_copy[P.SLICE, SLICES](first + Int32(SLICES * P.SLICE), stage)
    var sums = shared.unsafe_bitcast[Float32]().unsafe_offset(group * GROUP_SUMS)
    partial.write(sums.unsafe_offset(number * MAX_ROWS * PITCH), x.rows)
    barrier()
    var row = Int(thread_idx.x) % MAX_ROWS
    var part = Int(thread_idx.x) % THREADS // MAX_ROWS * width
    if part < P.COLUMNS and column + Int32(part) < end and Int32(row) < x.rows:
        var y = SIMD[DType.float32, width](0)
        comptime for i in range(WARPS):
            y += sums.unsafe_load[width=width, alignment=16]((i * MAX_ROWS + row) * PITCH + part)
        epilogue.store(Int32(row), column + Int32(part), y, epilogue.load_bias(column + Int32(part)))


@__llvm_metadata(
    MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](
        Int32(THREADS * (TensorCores[dtype].MOST_GROUPS if dtype.is_half_float() else MultiplyAdds[dtype].MOST_GROUPS))
    )
)
def few_rows_kernel[
    dtype: DType, apply_gelu: Bool, add_residual: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    residual: Data[dtype],
    rows: Int32,
    columns: Int32,
    depth: Int32,
    own: Int32,
):
    """A block's `own` columns; the other arguments are those of `multiply_few_rows`."""
    var a = Operand[dtype](x, rows, depth)
    var b = Operand[dtype](weight, columns, depth)
    var epilogue = Epilogue[dtype, apply_gelu, add_residual](output, bias, residual, rows, columns)
    comptime if is_nvidia_gpu() and dtype.is_half_float():
        _few_rows[TensorCores[dtype]](a, b, own, epilogue)
    else:
        _few_rows[MultiplyAdds[dtype]](a, b, own, epilogue)


def choose_columns(rows: Int, columns: Int, depth: Int, *, least: Int, most: Int, size: Int) -> Int:
    """Columns of a block: as few as keep the rereads of x within a tenth of what must be read, if a block of them has not too
    much to read.

    Args:
        rows: M.
        columns: N.
        depth: K.
        least: The fewest, a group's.
        most: The most, of as many groups as a block may have.
        size: Bytes of an element.
    """
    for own in range(least, most, COLUMN_STEP):
        var blocks = ceildiv(columns, own)
        var wider = (own + COLUMN_STEP + rows) * depth * size
        var few_rereads = 10 * rows * (blocks - 1) <= columns + rows
        if few_rereads or wider > max(MOST_BYTES, columns * depth * size // ENOUGH_BLOCKS):
            return own
    return most


def multiply_few_rows[
    dtype: DType, //, apply_gelu: Bool, add_residual: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    residual: Data[dtype],
    *,
    rows: Int,
    columns: Int,
    depth: Int,
    ctx: DeviceContext,
) raises:
    """Launches the product.

    Args:
        output: (rows, columns).
        x: (rows, depth).
        weight: (columns, depth).
        bias: (columns).
        residual: (rows, columns), not read unless add_residual.
        rows: M, 1 to MAX_ROWS.
        columns: N.
        depth: K, a multiple of a chunk.
        ctx: The device.
    """
    var tensor_cores = dtype.is_half_float() and ctx.api() == "cuda"
    var least = TensorCores[dtype].COLUMNS if tensor_cores else MultiplyAdds[dtype].COLUMNS
    var most = TensorCores[dtype].MOST_GROUPS if tensor_cores else MultiplyAdds[dtype].MOST_GROUPS
    var own = choose_columns(rows, columns, depth, least=least, most=most * least, size=size_of[dtype]())
    ctx.enqueue_function[few_rows_kernel[dtype, apply_gelu, add_residual]](
        output,
        x,
        weight,
        bias,
        residual,
        Int32(rows),
        Int32(columns),
        Int32(depth),
        Int32(own),
        grid_dim=ceildiv(columns, own),
        block_dim=ceildiv(own, least) * THREADS,
    )

"""Matrix product with everything that follows it fused: y = f(A @ W^T + b) [+ r], tile by tile.

Shapes: W (N, K) row-major, b (N), y (B, M, N). A is a view of x: row m of batch row n starts s*m - o elements into x[n] and
is K long; elements before the start or behind the end of x[n] are zero.

    linear                   M rows in one batch row, s = K, o = 0: A is x
    convolution of width 3   x[n] (T, C), K = 3*C, s = stride * C, o = C (one frame of padding): no copy is made

A block computes a tile of 128 x 64 (`tile.mojo`), 128 bytes of k at a step, from two stages of shared memory: while one is
multiplied, the copies of the next step are in flight. One barrier a step suffices: behind it the stage just multiplied is free
and the other's copies, awaited before it, are visible.

        W^T   k            64 columns               stage 0 | copy 0 |  multiply 0 | copy 2 |  multiply 2 |
              |   .---.---.---.---.                 stage 1          | copy 1 |     multiply 1 | copy 3 |
        A   --+-> |   |   |###|   |  128 rows
                  '---'---'---'---'                 blockIdx = (column of tiles, row of tiles, batch row)

Cost: 2*M*N*K operations (M rounded up to 128, N to 64, K to the step). Bytes: A is read N/64 times, W M/128 times, y written
and r read once; all rereads are a tile apart and come from the level-2 cache.

Occupancy: shared memory decides, 48 KB a block: 3 blocks of 4 warps on sm_80, 2 on sm_86 and sm_89, 4 on sm_90. Registers fit:
at most 168 a thread where 3 blocks shall, 128 on tensor cores of sm_90 (float32 there: 3 blocks).

NVIDIA, "CUTLASS: Efficient GEMM" (tiles in shared memory and registers, software pipelining).
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, thread_idx
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.sys import is_nvidia_gpu, size_of
from std.utils import StaticTuple

from ..data import Data
from .epilogue import Epilogue
from .memory import CHUNK, TILE_ROW, Shared, chunk, commit_copies, copy_chunk, shared_memory, swizzled, wait_copies
from .tile import THREADS, TILE_M, TILE_N, FmaTile, TensorCoreTile, Tile

comptime _CHUNKS = TILE_ROW // CHUNK
comptime _ROWS_AT_ONCE = THREADS // _CHUNKS


@fieldwise_init
struct Rows[dtype: DType](TrivialRegisterPassable):
    """Overlapping or adjacent rows of an array; what lies outside the array is zero."""

    var start: Data[Self.dtype]
    var size: Int32
    """Elements of the array, a multiple of a chunk."""
    var stride: Int32
    """Elements from one row to the next."""
    var origin: Int32
    """How many elements before the array row 0 starts."""
    var depth: Int32
    """Elements of a row."""

    @always_inline
    def end(self, k: Int32) -> UInt32:
        """Where what exists of element k and its chunk ends: for all rows at once, 0 behind the last element."""
        return UInt32(self.size) if k < self.depth else 0

    @always_inline
    def copy[shift: Int](self, row: Int32, k: Int32, end: UInt32, target: Shared[Self.dtype]):
        """Starts to copy a chunk.

        Parameters:
            shift: See `copy_chunk`.

        Args:
            row: Row, may lie outside.
            k: First element in the row.
            end: What `end` gave for k.
            target: Where the chunk goes.
        """
        var at = row * self.stride - self.origin + k
        copy_chunk[shift](self.start.unsafe_offset(Int(at)), target, UInt32(at) < end)


@always_inline
def _start_step[
    T: Tile
](
    a: Rows[T.dtype],
    b: Rows[T.dtype],
    first_row: Int32,
    first_column: Int32,
    step: Int32,
    a_tile: Shared[T.dtype],
    b_tile: Shared[T.dtype],
):
    """Starts the copies of one step: 8 threads a row, 12 chunks a thread, rows that are swizzled alike."""
    var place = Int(thread_idx.x) % _CHUNKS
    var row = Int(thread_idx.x) // _CHUNKS
    var k = step * Int32(TILE_ROW // size_of[T.dtype]()) + Int32(place * chunk[T.dtype]())
    var at = swizzled[T.dtype](row, place)
    comptime for i in range(0, TILE_M, _ROWS_AT_ONCE):
        a.copy[i * TILE_ROW](first_row + Int32(row + i), k, a.end(k), a_tile.unsafe_offset(at))
    comptime for i in range(0, TILE_N, _ROWS_AT_ONCE):
        var column = first_column + Int32(T.column(row + i))
        b.copy[i * TILE_ROW](column, k, b.end(k), b_tile.unsafe_offset(at))
    commit_copies()


@always_inline
def _multiply[
    apply_gelu: Bool, add_residual: Bool, //, T: Tile
](a: Rows[T.dtype], b: Rows[T.dtype], epilogue: Epilogue[T.dtype, apply_gelu, add_residual]):
    comptime A_SIZE = TILE_M * TILE_ROW // size_of[T.dtype]()
    comptime B_SIZE = TILE_N * TILE_ROW // size_of[T.dtype]()
    comptime STEP = Int32(TILE_ROW // size_of[T.dtype]())
    var stages = shared_memory[T.dtype, 2 * (A_SIZE + B_SIZE)]()
    var first_row = Int32(block_idx.y) * Int32(TILE_M)
    var first_column = Int32(block_idx.x) * Int32(TILE_N)
    var steps = (a.depth + STEP - 1) // STEP
    var sums = T()
    _start_step[T](a, b, first_row, first_column, 0, stages, stages.unsafe_offset(A_SIZE))
    for step in range(steps):
        var stage = stages.unsafe_offset(Int(step % 2) * (A_SIZE + B_SIZE))
        wait_copies()
        barrier()
        if step + 1 < steps:
            var other = stages.unsafe_offset(Int(1 - step % 2) * (A_SIZE + B_SIZE))
            _start_step[T](a, b, first_row, first_column, step + 1, other, other.unsafe_offset(A_SIZE))
        sums.multiply(stage, stage.unsafe_offset(A_SIZE))
    sums.store(epilogue, first_row, first_column)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def matmul_kernel[
    dtype: DType, apply_gelu: Bool, add_residual: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    residual: Data[dtype],
    x_size: Int32,
    stride: Int32,
    origin: Int32,
    rows: Int32,
    columns: Int32,
    depth: Int32,
):
    """A block's tile; the arguments are those of `multiply`."""
    var batch = Int(block_idx.z)
    var a = Rows[dtype](x.unsafe_offset(batch * Int(x_size)), x_size, stride, origin, depth)
    var b = Rows[dtype](weight, columns * depth, depth, 0, depth)
    var y = output.unsafe_offset(batch * Int(rows) * Int(columns))
    var epilogue = Epilogue[dtype, apply_gelu, add_residual](y, bias, residual, rows, columns)
    comptime if is_nvidia_gpu() and dtype.is_half_float():
        _multiply[TensorCoreTile[dtype]](a, b, epilogue)
    else:
        _multiply[FmaTile[dtype]](a, b, epilogue)


def multiply[
    dtype: DType, //, apply_gelu: Bool, add_residual: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    residual: Data[dtype],
    *,
    batch: Int,
    x_size: Int,
    stride: Int,
    origin: Int,
    rows: Int,
    columns: Int,
    depth: Int,
    ctx: DeviceContext,
) raises:
    """Launches the product.

    Args:
        output: (batch, rows, columns).
        x: (batch, x_size).
        weight: (columns, depth).
        bias: (columns).
        residual: (rows, columns), the same for every batch row; not read unless add_residual.
        batch: Batch rows.
        x_size: Elements of a batch row of x.
        stride: Elements of x from one row of A to the next.
        origin: How many elements before x row 0 of A starts.
        rows: M.
        columns: N.
        depth: K; like x_size, stride and origin a multiple of a chunk.
        ctx: The device.
    """
    if batch * rows == 0:
        return
    ctx.enqueue_function[matmul_kernel[dtype, apply_gelu, add_residual]](
        output,
        x,
        weight,
        bias,
        residual,
        Int32(x_size),
        Int32(stride),
        Int32(origin),
        Int32(rows),
        Int32(columns),
        Int32(depth),
        grid_dim=(ceildiv(columns, TILE_N), ceildiv(rows, TILE_M), batch),
        block_dim=THREADS,
    )

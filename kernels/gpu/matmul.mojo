"""Matrix product with everything that follows it fused: y = f(A @ W^T + b) [+ r], tile by tile.

Shapes: W (N, K) row-major, b (N), y (B, M, N). A is a view of x: row m of batch row n starts s*m - o elements into x[n] and
is K long; elements before the start or behind the end of x[n] are zero.

    linear                   M rows in one batch row, s = K, o = 0: A is x
    convolution of width 3   x[n] (T, C), K = 3*C, s = stride * C, o = C (one frame of padding): no copy is made

A block computes a tile (`tile.mojo`), 128 bytes of k at a step, from stages of shared memory: while one is multiplied, the
copies of the next step are in flight. One barrier a step suffices: behind it the stage just multiplied is free and the next
one's copies, awaited before it, are visible.

        W^T   k            64 columns               stage 0 | copy 0 |  multiply 0 | copy 2 |  multiply 2 |
              |   .---.---.---.---.                 stage 1          | copy 1 |     multiply 1 | copy 3 |
        A   --+-> |   |   |###|   |  128 rows
                  '---'---'---'---'                 blockIdx = (column of tiles, row of tiles, batch row)

On Hopper, in 16 bits, `warpgroup_matmul.mojo` takes over. Elsewhere:

| tiles, on tensor cores                            | a block has                  | rows | stages | of shared memory |
| ------------------------------------------------- | ---------------------------- | ---- | ------ | ---------------- |
| as many of 96 x 64 as multiprocessors, or fewer   | two groups of 4 warps each   | 96   | 3      | 120 KB           |
| more                                              | 4 warps                      | 128  | 2      | 48 KB            |

Few tiles (tiny's 1500 x 384) leave a multiprocessor one block, and each of its schedulers one warp, which cannot hide what it
waits for. So a block has two groups of threads with the same tile and stages of their own, which take steps in turn; at the
end the second hands its sums to the first through shared memory. Smaller tiles keep more multiprocessors busy. Copies are in
flight for two steps, and the four parts of a step each start a quarter of them and bring the operands of the next part from
shared memory while they multiply. With many tiles other blocks of the multiprocessor fill the gaps; simple steps are faster.
With less than 128 KB of shared memory a multiprocessor (sm_86, sm_89) the two groups have 2 stages, 80 KB.

Cost: 2*M*N*K operations (M rounded up to 96 or 128, N to 64, K to the step). Bytes: A is read N/64 times, W M/96 or M/128
times, y written and r read once; all rereads are a tile apart and come from the level-2 cache.

Occupancy: with many tiles shared memory decides, 48 KB a block: 3 blocks of 4 warps on sm_80, 2 on sm_86 and sm_89, 4 on sm_90;
registers fit, at most 128 a thread. Two groups: one block of 8 warps, at most 128 registers. Float32: 3 blocks of at most 168 registers (sm_89: 2, 186).

Measured on an H200, where they served before there were tiles for warpgroups (float16; microseconds of a product alone in a
device graph, launch included):

| M x K -> N          | these | 128 x 64 | 128 x 64, two groups | 128 x 128 | 256 x 128 |
| ------------------- | ----: | -------: | -------------------: | --------: | --------: |
| 1500 x 1536 -> 384  |  12.1 |     16.2 |                 15.0 |      23.4 |      37.1 |
| 1500 x 384 -> 1152  |   7.6 |      8.2 |                 10.6 |       7.8 |      11.4 |
| 7500 x 1536 -> 384  |  31.1 |     33.1 |                 46.3 |      39.6 |      37.6 |
| 7500 x 384 -> 1152  |  23.4 |     24.3 |                 39.7 |      25.4 |      30.6 |

A loop of nothing but mma takes 6.8 cycles for each with one warp a scheduler and 4.6 with four; these kernels take 10 to 12.

NVIDIA, "CUTLASS: Efficient GEMM" (tiles in shared memory and registers, software pipelining, k sliced among warps).
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, thread_idx
from max.gpu.host import DeviceAttribute, DeviceContext, FuncAttribute
from max.gpu.memory import AddressSpace, external_memory
from std.math import ceildiv
from std.sys import size_of
from std.utils import StaticTuple

from ..data import Data
from .epilogue import Epilogue
from .memory import CHUNKS, TILE_ROW, Shared, chunk, commit_copies, swizzled, wait_copies
from .overlap import overlapping
from .rows import Rows
from .tile import PARTS, THREADS, TILE_N, FmaTile, TensorCoreTile, Tile
from .warpgroup import has_warpgroups
from .warpgroup_matmul import TILES, WarpgroupTile, warpgroup_matmul_kernel

comptime _ROWS_AT_ONCE = THREADS // CHUNKS
comptime _STEP_BYTES[T: Tile] = (T.M + TILE_N) * TILE_ROW


@always_inline
def _start_part[
    T: Tile, part: Int
](
    a: Rows[T.dtype],
    b: Rows[T.dtype],
    first_row: Int32,
    first_column: Int32,
    step: Int32,
    stage: Shared[T.dtype],
    thread: Int,
):
    """Starts a part of the copies of one step: 8 threads a row, rows that are swizzled alike. Unless they are spread, the
    first part starts all."""
    comptime A_PASSES = T.M // _ROWS_AT_ONCE
    comptime PASSES = A_PASSES + TILE_N // _ROWS_AT_ONCE
    var place = thread % CHUNKS
    var row = thread // CHUNKS
    var k = step * Int32(TILE_ROW // size_of[T.dtype]()) + Int32(place * chunk[T.dtype]())
    var at = stage.unsafe_offset(swizzled[T.dtype](row, place))
    comptime first = part * PASSES // PARTS if T.SPREAD else 0
    comptime last = (part + 1) * PASSES // PARTS if T.SPREAD else PASSES if part == 0 else 0
    comptime for i in range(first, last):
        comptime shift = i * _ROWS_AT_ONCE * TILE_ROW  # the tile of B lies behind that of A
        comptime if i < A_PASSES:
            a.copy[shift](first_row + Int32(row + i * _ROWS_AT_ONCE), k, a.end(k), at)
        else:
            var column = first_column + Int32(T.column(row + (i - A_PASSES) * _ROWS_AT_ONCE))
            b.copy[shift](column, k, b.end(k), at)


@always_inline
def _multiply[
    apply_gelu: Bool, add_residual: Bool, //, T: Tile
](a: Rows[T.dtype], b: Rows[T.dtype], epilogue: Epilogue[T.dtype, apply_gelu, add_residual]):
    comptime A_SIZE = T.M * TILE_ROW // size_of[T.dtype]()
    comptime SIZE = _STEP_BYTES[T] // size_of[T.dtype]()
    comptime STEP = Int32(TILE_ROW // size_of[T.dtype]())
    var memory = external_memory[
        Scalar[T.dtype], address_space=AddressSpace.SHARED, alignment=TILE_ROW
    ]().unsafe_origin_cast[MutUntrackedOrigin]()
    var group = Int(thread_idx.x) // THREADS
    var thread = Int(thread_idx.x) % THREADS
    var stages = memory.unsafe_offset(group * T.STAGES * SIZE)
    var first_row = Int32(block_idx.y) * Int32(T.M)
    var first_column = Int32(block_idx.x) * Int32(TILE_N)
    var steps = (a.depth + STEP - 1) // STEP
    comptime for stage in range(T.STAGES - 1):
        var target = stages.unsafe_offset(stage * SIZE)
        comptime for part in range(PARTS):
            _start_part[T, part](a, b, first_row, first_column, Int32(stage * T.GROUPS + group), target, thread)
        commit_copies()
    var sums = T()
    var stage = 0
    for first in range(Int32(0), steps, Int32(T.GROUPS)):
        wait_copies[T.STAGES - 2]()
        barrier()
        var step = first + Int32(group)
        if T.GROUPS == 1 or step < steps:
            var a_tile = stages.unsafe_offset(stage * SIZE)
            var b_tile = a_tile.unsafe_offset(A_SIZE)
            var free = stages.unsafe_offset((stage - 1 if stage > 0 else T.STAGES - 1) * SIZE)
            # Spread copies go on behind the last step, with zeros: cheaper than a branch in every part.
            var next = step + Int32((T.STAGES - 1) * T.GROUPS)
            comptime if T.SPREAD:
                sums.load[0](a_tile, b_tile, thread)
            comptime for part in range(PARTS):
                comptime if T.SPREAD and part + 1 < PARTS:
                    sums.load[part + 1](a_tile, b_tile, thread)
                comptime if T.SPREAD:
                    _start_part[T, part](a, b, first_row, first_column, next, free, thread)
                else:
                    if part == 0 and next < steps:
                        _start_part[T, part](a, b, first_row, first_column, next, free, thread)
                    sums.load[part](a_tile, b_tile, thread)
                sums.multiply[part](a_tile, b_tile, thread)
        commit_copies()
        stage = stage + 1 if stage + 1 < T.STAGES else 0
    comptime if T.GROUPS > 1:
        wait_copies()
        barrier()  # nobody copies to the stages or reads them any more
        var place = memory.unsafe_bitcast[Float32]()
        if group > 0:
            sums.give(place.unsafe_offset((group - 1) * T.M * TILE_N), thread)
        barrier()
        if group > 0:
            return
        comptime for other in range(T.GROUPS - 1):
            sums.take(place.unsafe_offset(other * T.M * TILE_N), thread)
    sums.store(epilogue, first_row, first_column, thread)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS * T.GROUPS * T.BLOCKS)))
def matmul_kernel[
    T: Tile, apply_gelu: Bool, add_residual: Bool
](
    output: Data[T.dtype],
    x: Data[T.dtype],
    weight: Data[T.dtype],
    bias: Data[T.dtype],
    residual: Data[T.dtype],
    x_size: Int32,
    stride: Int32,
    origin: Int32,
    rows: Int32,
    columns: Int32,
    depth: Int32,
):
    """A block's tile; the arguments are those of `multiply`.

    Parameters:
        T: The tile, and what multiplies it.
        apply_gelu: Whether f is GELU.
        add_residual: Whether r is added.
    """
    var batch = Int(block_idx.z)
    var a = Rows[T.dtype](x.unsafe_offset(batch * Int(x_size)), x_size, stride, origin, depth)
    var b = Rows[T.dtype](weight, columns * depth, depth, 0, depth)
    var y = output.unsafe_offset(batch * Int(rows) * Int(columns))
    _multiply[T](a, b, Epilogue[T.dtype, apply_gelu, add_residual](y, bias, residual, rows, columns))


@fieldwise_init
struct _Product[dtype: DType, apply_gelu: Bool, add_residual: Bool]:
    """The arguments of `multiply`."""

    var output: Data[Self.dtype]
    var x: Data[Self.dtype]
    var weight: Data[Self.dtype]
    var bias: Data[Self.dtype]
    var residual: Data[Self.dtype]
    var batch: Int
    var x_size: Int
    var stride: Int
    var origin: Int
    var rows: Int
    var columns: Int
    var depth: Int

    def blocks[T: Tile](self) -> Int:
        """How many tiles there are."""
        return ceildiv(self.columns, TILE_N) * ceildiv(self.rows, T.M) * self.batch

    def launch_warpgroups(self, ctx: DeviceContext) raises:
        """Launches the product with the tile for warpgroups that should take least time."""
        var multiprocessors = ctx.get_attribute(DeviceAttribute.MULTIPROCESSOR_COUNT)
        var steps = ceildiv(self.depth * size_of[Self.dtype](), TILE_ROW)
        var best = 0
        var least = Int.MAX
        comptime for i in range(len(TILES)):
            comptime tile = TILES[i]
            var time = tile.nanoseconds(tile.blocks(self.batch, self.rows, self.columns), steps, multiprocessors)
            if time < least:
                best, least = i, time
        comptime for i in range(len(TILES)):
            if i == best:
                self.launch_warpgroups[TILES[i]](ctx)

    def launch_warpgroups[tile: WarpgroupTile](self, ctx: DeviceContext) raises:
        """Launches the product with a tile for warpgroups."""
        ctx.enqueue_function[warpgroup_matmul_kernel[Self.dtype, tile, Self.apply_gelu, Self.add_residual]](
            self.output,
            self.x,
            self.weight,
            self.bias,
            self.residual,
            Int32(self.x_size),
            Int32(self.stride),
            Int32(self.origin),
            Int32(self.rows),
            Int32(self.columns),
            Int32(self.depth),
            grid_dim=(ceildiv(self.columns, tile.columns), ceildiv(self.rows, tile.rows()), self.batch),
            block_dim=tile.threads(),
            shared_mem_bytes=tile.bytes(),
            func_attribute=FuncAttribute.MAX_DYNAMIC_SHARED_SIZE_BYTES(UInt32(tile.bytes())),
            attributes=overlapping(),
        )

    def launch[T: Tile](self, ctx: DeviceContext) raises:
        """Launches the product with one of the tiles."""
        comptime BYTES = T.GROUPS * T.STAGES * _STEP_BYTES[T]
        ctx.enqueue_function[matmul_kernel[T, Self.apply_gelu, Self.add_residual]](
            rebind[Data[T.dtype]](self.output),
            rebind[Data[T.dtype]](self.x),
            rebind[Data[T.dtype]](self.weight),
            rebind[Data[T.dtype]](self.bias),
            rebind[Data[T.dtype]](self.residual),
            Int32(self.x_size),
            Int32(self.stride),
            Int32(self.origin),
            Int32(self.rows),
            Int32(self.columns),
            Int32(self.depth),
            grid_dim=(ceildiv(self.columns, TILE_N), ceildiv(self.rows, T.M), self.batch),
            block_dim=THREADS * T.GROUPS,
            shared_mem_bytes=BYTES,
            func_attribute=FuncAttribute.MAX_DYNAMIC_SHARED_SIZE_BYTES(UInt32(BYTES)),
        )


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
    var product = _Product[dtype, apply_gelu, add_residual](
        output, x, weight, bias, residual, batch, x_size, stride, origin, rows, columns, depth
    )
    comptime if has_warpgroups() and dtype.is_half_float():
        product.launch_warpgroups(ctx)
    elif DeviceContext.default_device_info.api == "cuda" and dtype.is_half_float():
        comptime stages = 3 if DeviceContext.default_device_info.shared_memory_per_multiprocessor >= 128 << 10 else 2
        comptime Shared = TensorCoreTile[dtype, groups=2, stages=stages]
        if product.blocks[Shared]() <= ctx.get_attribute(DeviceAttribute.MULTIPROCESSOR_COUNT):
            product.launch[Shared](ctx)
        else:
            product.launch[TensorCoreTile[dtype, groups=1, stages=2]](ctx)
    else:
        product.launch[FmaTile[dtype]](ctx)

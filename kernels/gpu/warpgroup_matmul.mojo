"""The product of `matmul.mojo` on Hopper: tiles for warpgroups, whose tensor cores read shared memory by themselves.

A block has some warpgroups, of 64 rows of the tile each; all columns are everybody's:

        W^T   k            N columns                 stage 0  | copy 0 | multiply 0       | copy 4 ...
              |   .---.---.---.---.                  stage 1  | copy 1 |        multiply 1       | copy 5 ...
        A   --+-> |  warpgroup 0  |  64 rows         stage 2           | copy 2  |       multiply 2
                  |  warpgroup 1  |  64 rows         stage 3           |  copy 3 |              multiply 3
                  '---------------'                  blockIdx = (column of tiles, row of tiles, batch row)

A step is 128 bytes of k: four products of 16 for each warpgroup. It starts the products of a step, starts the copies of a later one
while they run, and then waits for the products of the step before: tensor cores always have work that has been started. Behind the
barrier of step i all warpgroups have awaited the products of step i - 2; the copies of step i + S - 2 take its stage. Columns of W
are dealt to rows of the shared tile as in `tile.mojo`, so that a thread ends with 16 consecutive bytes of y.

Cost: 2*M*N*K operations, M, N and K rounded up to the tile. Bytes: A is read once for each column of tiles, W once for each row
of them, all but the first time from the level-2 cache. What bounds it there: all multiprocessors together get some 3200 bytes a
cycle from that cache (measured), 24 each, and a step of M x N, M N / 64 cycles of the tensor cores, brings 128 (M + N) bytes:

| tile      | bytes a cycle at full rate | registers | stages | shared memory | a step, us | around the steps, us |
| --------- | -------------------------: | --------: | -----: | ------------: | ---------: | -------------------: |
| 192 x 192 |                         43 |       168 |      4 |        192 KB |      0.872 |                  2.9 |
| 192 x 96  |                         64 |       142 |      6 |        216 KB |      0.505 |                  2.1 |
| 128 x 128 |                         64 |       127 |      6 |        192 KB |      0.422 |                  2.5 |
| 128 x 64  |                         96 |       112 |      8 |        192 KB |      0.333 |                  1.4 |

The times are measured on an H200; one block a multiprocessor at a time, so a product takes

    rounds * (around + steps * step),   rounds = tiles / multiprocessors, rounded up

and the tile for which that is least is taken. For 21 shapes of tiny, base and large it was the fastest of the four, and took 2 %
less to 20 % more than that. Where tiles are few the next launch's blocks begin early: weights come before the wait (`overlap.mojo`).

Measured on an H200 (float16, launches back to back, microseconds, before biases were fetched ahead; `matmul.mojo` without
warpgroups; torch 2.11, cuBLAS):

| M x K -> N           | these | matmul.mojo | torch |
| -------------------- | ----: | ----------: | ----: |
| 1500 x 384 -> 1152   |   5.7 |         7.7 |   5.1 |
| 1500 x 384 -> 384    |   3.4 |         5.6 |   3.6 |
| 1500 x 384 -> 1536   |   5.9 |         9.9 |   6.1 |
| 1500 x 1536 -> 384   |   9.4 |        11.2 |   6.0 |
| 12000 x 384 -> 1152  |  26.5 |        33.7 |  24.8 |
| 12000 x 384 -> 384   |   9.5 |        14.9 |  10.7 |
| 12000 x 384 -> 1536  |  35.3 |        45.1 |  30.6 |
| 12000 x 1536 -> 384  |  25.2 |        50.4 |  22.4 |

Tried and not kept: 128 x 192 (33.0 us for 12000 x 384 -> 1152), 256 x 192 by two warpgroups of 128 rows (31.4; 12000 x 1536 -> 384
31.8), 256 x 128 (45.9), 128 x 256 (42.6), two blocks a multiprocessor of 128 x 128 with 3 stages (51.6). No `fence.proxy.async`,
which would be wrong, saves nothing. The way further is a cluster that shares the tiles of W.

NVIDIA, "PTX ISA", 9.7.15 (wgmma); "CUTLASS: Efficient GEMM" (software pipelining).
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, thread_idx
from max.gpu.memory import AddressSpace, external_memory
from max.gpu.primitives import warp
from std.collections import Array
from std.math import ceildiv
from std.sys import size_of
from std.utils import StaticTuple

from ..data import Data
from .epilogue import Epilogue
from .memory import CHUNK, CHUNKS, TILE_ROW, Shared, chunk, commit_copies, swizzled, wait_copies
from .overlap import start_next, wait_for_previous
from .rows import Rows
from .tensor_core import product_column
from .warpgroup import (
    GROUP,
    GROUP_M,
    SWIZZLE_ROWS,
    Sums,
    add_product,
    begin_products,
    commit_products,
    describe,
    publish_copies,
    settle,
    wait_products,
)

comptime _PARTS = CHUNKS // 2
"""Products of 16 terms in a step."""


@fieldwise_init
struct WarpgroupTile(Copyable, ImplicitlyCopyable, Movable):
    """The shape of a block's tile."""

    var groups: Int
    """Warpgroups, of 64 rows each."""
    var columns: Int
    """A multiple of 32."""
    var stages: Int
    """Steps in shared memory, at least 3."""
    var step: Int
    """Nanoseconds of a step, measured on an H200."""
    var around: Int
    """Nanoseconds of what is not a step: the first copies, the epilogue."""

    def rows(self) -> Int:
        """Rows of the tile."""
        return self.groups * GROUP_M

    def threads(self) -> Int:
        """Threads of a block."""
        return self.groups * GROUP

    def bytes(self) -> Int:
        """Shared memory of a block."""
        return self.stages * (self.rows() + self.columns) * TILE_ROW

    def blocks(self, batch: Int, rows: Int, columns: Int) -> Int:
        """How many tiles a product has."""
        return ceildiv(columns, self.columns) * ceildiv(rows, self.rows()) * batch

    def nanoseconds(self, blocks: Int, steps: Int, multiprocessors: Int) -> Int:
        """What a product should take: one block a multiprocessor at a time."""
        return ceildiv(blocks, multiprocessors) * (self.around + steps * self.step)


comptime TILES = [
    WarpgroupTile(groups=3, columns=192, stages=4, step=872, around=2900),
    WarpgroupTile(groups=3, columns=96, stages=6, step=505, around=2070),
    WarpgroupTile(groups=2, columns=128, stages=6, step=422, around=2500),
    WarpgroupTile(groups=2, columns=64, stages=8, step=333, around=1400),
]
"""Of which `matmul.multiply` takes the one that should take least time."""


@always_inline
def _copy_a[
    dtype: DType, //, tile: WarpgroupTile
](a: Rows[dtype], first_row: Int32, step: Int32, stage: Shared[dtype], thread: Int):
    """Starts the copies of one step of A: 8 threads a row, rows that are swizzled alike."""
    comptime AT_ONCE = tile.threads() // CHUNKS
    var place = thread % CHUNKS
    var row = thread // CHUNKS
    var k = step * Int32(TILE_ROW // size_of[dtype]()) + Int32(place * chunk[dtype]())
    var at = stage.unsafe_offset(swizzled[dtype](row, place))
    comptime for i in range(tile.rows() // AT_ONCE):
        a.copy[i * AT_ONCE * TILE_ROW](first_row + Int32(row + i * AT_ONCE), k, a.end(k), at)


@always_inline
def _copy_b[
    dtype: DType, //, tile: WarpgroupTile
](b: Rows[dtype], first_column: Int32, step: Int32, stage: Shared[dtype], thread: Int):
    """Starts the copies of one step of B, which lies behind A."""
    comptime AT_ONCE = tile.threads() // CHUNKS
    var place = thread % CHUNKS
    var row = thread // CHUNKS
    var k = step * Int32(TILE_ROW // size_of[dtype]()) + Int32(place * chunk[dtype]())
    var at = stage.unsafe_offset(swizzled[dtype](row, place))
    comptime for i in range(tile.columns // AT_ONCE):
        var column = first_column + Int32(product_column(row + i * AT_ONCE))
        b.copy[(tile.rows() + i * AT_ONCE) * TILE_ROW](column, k, b.end(k), at)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(tile.threads())))
def warpgroup_matmul_kernel[
    dtype: DType, tile: WarpgroupTile, apply_gelu: Bool, add_residual: Bool
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
    """A block's tile; the arguments are those of `matmul.multiply`.

    Parameters:
        dtype: Float16 or bfloat16.
        tile: Its shape.
        apply_gelu: Whether f is GELU.
        add_residual: Whether r is added.
    """
    comptime SIZE = (tile.rows() + tile.columns) * TILE_ROW // size_of[dtype]()
    comptime STEP = Int32(TILE_ROW // size_of[dtype]())
    comptime AHEAD = tile.stages - 2
    comptime AT_ONCE = tile.threads() // CHUNKS
    comptime assert tile.rows() % AT_ONCE == 0 and tile.columns % AT_ONCE == 0, "a thread would have part of a copy"
    var batch = Int(block_idx.z)
    var a = Rows[dtype](x.unsafe_offset(batch * Int(x_size)), x_size, stride, origin, depth)
    var b = Rows[dtype](weight, columns * depth, depth, 0, depth)
    var y = output.unsafe_offset(batch * Int(rows) * Int(columns))
    var epilogue = Epilogue[dtype, apply_gelu, add_residual](y, bias, residual, rows, columns)

    var stages = external_memory[
        Scalar[dtype], address_space=AddressSpace.SHARED, alignment=SWIZZLE_ROWS
    ]().unsafe_origin_cast[MutUntrackedOrigin]()
    var thread = Int(thread_idx.x)
    var group = warp.broadcast(Int32(thread // GROUP))
    var first_row = Int32(block_idx.y) * Int32(tile.rows())
    var first_column = Int32(block_idx.x) * Int32(tile.columns)
    var steps = (depth + STEP - 1) // STEP
    start_next()
    comptime for stage in range(AHEAD):
        _copy_b[tile](b, first_column, Int32(stage), stages.unsafe_offset(stage * SIZE), thread)
    wait_for_previous()
    comptime for stage in range(AHEAD):
        _copy_a[tile](a, first_row, Int32(stage), stages.unsafe_offset(stage * SIZE), thread)
        commit_copies()

    var sums = Sums[tile.columns](fill=0)
    begin_products()
    var a_first = describe(stages.unsafe_offset(group * Int32(GROUP_M * TILE_ROW // size_of[dtype]())))
    var b_first = describe(stages.unsafe_offset(tile.rows() * TILE_ROW // size_of[dtype]()))
    var stage = Int32(0)
    for step in range(steps):
        wait_copies[AHEAD - 1]()
        publish_copies()
        barrier()
        var a_at = a_first + UInt64(stage * Int32(SIZE * size_of[dtype]() // CHUNK))
        var b_at = b_first + UInt64(stage * Int32(SIZE * size_of[dtype]() // CHUNK))
        comptime for part in range(_PARTS):
            add_product[dtype, tile.columns](sums, a_at + UInt64(2 * part), b_at + UInt64(2 * part))
        commit_products()
        var next = step + Int32(AHEAD)
        if next < steps:
            var free = stage + Int32(AHEAD)
            free = free - Int32(tile.stages) if free >= Int32(tile.stages) else free
            _copy_a[tile](a, first_row, next, stages.unsafe_offset(free * Int32(SIZE)), thread)
            _copy_b[tile](b, first_column, next, stages.unsafe_offset(free * Int32(SIZE)), thread)
        commit_copies()
        wait_products[1]()
        stage = stage + 1 if stage + 1 < Int32(tile.stages) else 0
    # What the epilogue reads is on its way while the last products arrive, and then while 32 columns less are stored.
    var lane = Int32(thread % 32)
    var row = first_row + group * Int32(GROUP_M) + Int32(thread % GROUP // 32 * 16) + lane // 4
    var column = first_column + lane % 4 * 8
    var column_bias = epilogue.load_bias(column)
    var residuals = _load_residuals(epilogue, row, column)
    wait_products()
    settle[tile.columns](sums)
    comptime for j in range(tile.columns // 32):
        var next_bias = epilogue.load_bias(column + Int32(32 * (j + 1)))
        var next_residuals = _load_residuals(epilogue, row, column + Int32(32 * (j + 1)))
        comptime for half in range(2):
            var sum = epilogue.Chunk(0)
            comptime for n in range(4):
                comptime for h in range(2):
                    sum[2 * n + h] = sums[(4 * j + n) * 4 + 2 * half + h]
            epilogue.store_within(row + Int32(8 * half), column + Int32(32 * j), sum, column_bias, residuals[half])
        column_bias = next_bias
        residuals = next_residuals^


@always_inline
def _load_residuals[
    dtype: DType, apply_gelu: Bool, add_residual: Bool, //
](epilogue: Epilogue[dtype, apply_gelu, add_residual], row: Int32, column: Int32) -> Array[
    SIMD[dtype, chunk[dtype]()], 2
]:
    """Of the two rows that a thread has."""
    var residuals = Array[SIMD[dtype, chunk[dtype]()], 2](fill=0)
    comptime for half in range(2):
        residuals[half] = epilogue.load_residual_within(row + Int32(8 * half), column)
    return residuals^

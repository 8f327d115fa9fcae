"""The product of two tiles in shared memory, where GPUs differ; Hopper has tiles of its own (`warpgroup_matmul.mojo`).

    sums (128, 64) += A (128, STEP) @ B (64, STEP)^T         STEP: 128 bytes, 64 float16 or 32 float32

                      B, 64 rows of shared memory
                     +---------+---------+
                     | warp 0  | warp 1  |  A group of 128 threads; sums stay in registers, 64 a thread.
        A, 128 rows  | 64 x 32 | 64 x 32 |
                     +---------+---------+  Which column of the product lies in which row of B is the tile's choice
                     | warp 2  | warp 3  |  (`column`): it is made such that a thread ends with 16 consecutive bytes
                     | 64 x 32 | 64 x 32 |  of a row of the result, at no cost, as rows of B are copied one by one.
                     +---------+---------+

| body                          | for                                         | a thread reads       | and computes                |
| ----------------------------- | ------------------------------------------- | -------------------- | --------------------------- |
| TensorCoreTile                | NVIDIA, sm_80 and later; float16, bfloat16  | 6 ldmatrix per 16 k  | 16 mma of 16 x 8 x 16       |
| the same, of two groups: A of 96 rows, 48 x 32 for a warp   | the same      | 5 ldmatrix per 16 k  | 12 mma                      |
| FmaTile                       | any GPU, any dtype                          | 16 chunks of k       | 64 multiply-adds for each k |

FmaTile adds the products one k after the other with fused multiply-adds, as a float32 loop would. There is no body yet
for the matrix cores of AMD GPUs; they run FmaTile.

Why 64 x 32 for a warp: its 6 ldmatrix take 24 cycles of shared memory for 16 mma, which take 32 on an A100; with half of a
side shared memory would be the limit.
"""

from max.gpu import WARP_SIZE
from std.collections import Array

from .epilogue import Epilogue
from .memory import CHUNK, CHUNKS, MOST_BLOCKS, Shared, chunk, swizzled
from .tensor_core import MMA_M, MMA_N, load_matrices, multiply_add, product_column

comptime TILE_M = 128
"""Rows of a block's tile of the product, at most."""

comptime MOST_ROWS = MOST_BLOCKS * 96
"""Rows of a product: a grid has so many of the lowest tiles."""

comptime TILE_N = 64
"""Columns of a block's tile of the product."""

comptime THREADS = 128
"""Threads of a group."""


comptime PARTS = CHUNKS // 2
"""Parts of a step, 32 bytes of k each: what is done in between is spread over them."""


trait Tile(Deinitable):
    """The sums of a tile of the product, spread over the threads of a group."""

    comptime dtype: DType
    comptime M: Int
    """Rows of the tile, at most TILE_M."""
    comptime GROUPS: Int
    """Groups of threads of a block: each has all sums, of the steps that it takes."""
    comptime STAGES: Int
    """Steps of a group in shared memory: one is multiplied, the copies of the others are in flight."""
    comptime SPREAD: Bool
    """Whether copies are started, and operands brought to registers, part by part while the part before is multiplied."""
    comptime BLOCKS: Int
    """Blocks that a multiprocessor shall have registers for."""

    def __init__(out self):
        """All sums zero."""
        ...

    @staticmethod
    def column(row: Int) -> Int:
        """Which column of the product belongs in a row of B's shared tile.

        Args:
            row: 0 to TILE_N - 1.
        """
        ...

    def load[part: Int](mut self, a: Shared[Self.dtype], b: Shared[Self.dtype], thread: Int):
        """Brings a part of a step to where `multiply` finds it, at most one part ahead.

        Parameters:
            part: 0 to PARTS - 1.

        Args:
            a: Swizzled tile of M rows.
            b: Swizzled tile of TILE_N rows, see `column`.
            thread: Number of the thread in its group.
        """
        ...

    def multiply[part: Int](mut self, a: Shared[Self.dtype], b: Shared[Self.dtype], thread: Int):
        """Adds the products of a part of a step; the arguments are those of `load`, which came before."""
        ...

    def give(self, place: Shared[DType.float32], thread: Int):
        """Writes the sums to shared memory, for `take` of the same thread of another group.

        Args:
            place: Room for M * TILE_N numbers.
            thread: Number of the thread in its group.
        """
        ...

    def take(mut self, place: Shared[DType.float32], thread: Int):
        """Adds what `give` wrote."""
        ...

    def store[
        apply_gelu: Bool, add_residual: Bool, //
    ](
        self,
        epilogue: Epilogue[Self.dtype, apply_gelu, add_residual],
        first_row: Int32,
        first_column: Int32,
        thread: Int,
    ):
        """Hands all sums to the epilogue.

        Args:
            epilogue: What follows the product.
            first_row: Row of the product where the tile starts.
            first_column: Column of the product where the tile starts.
            thread: Number of the thread in its group.
        """
        ...


struct TensorCoreTile[type: DType, groups: Int, stages: Int](Tile):
    """Tensor cores of NVIDIA GPUs; the sums of row g and columns 8t to 8t + 7 of a warp's tile meet in one thread."""

    comptime dtype = Self.type
    comptime M = 128 if Self.groups == 1 else 96
    comptime GROUPS = Self.groups
    comptime STAGES = Self.stages
    comptime SPREAD = Self.groups > 1
    comptime BLOCKS = 4 // Self.groups**2
    comptime WARP_M = Self.M // 2
    comptime WARP_N = 32
    comptime DOWN = Self.WARP_M // MMA_M
    comptime ACROSS = Self.WARP_N // MMA_N

    var sums: Array[SIMD[DType.float32, 4], Self.DOWN * Self.ACROSS]
    var a_parts: Array[SIMD[Self.dtype, 8], 2 * Self.DOWN]
    var b_parts: Array[SIMD[Self.dtype, 8], Self.ACROSS]
    """Operands of two parts: one is multiplied while the next arrives."""

    @always_inline
    def __init__(out self):
        self.sums = Array[SIMD[DType.float32, 4], Self.DOWN * Self.ACROSS](fill=0)
        self.a_parts = Array[SIMD[Self.dtype, 8], 2 * Self.DOWN](fill=0)
        self.b_parts = Array[SIMD[Self.dtype, 8], Self.ACROSS](fill=0)

    @staticmethod
    @always_inline
    def column(row: Int) -> Int:
        return product_column(row)

    @always_inline
    def load[part: Int](mut self, a: Shared[Self.dtype], b: Shared[Self.dtype], thread: Int):
        var lane = thread % WARP_SIZE
        var warp = thread // WARP_SIZE
        var a_row = warp // 2 * Self.WARP_M + lane % 16
        var b_row = warp % 2 * Self.WARP_N + lane % 8 + lane // 16 * 8
        comptime for i in range(Self.DOWN):
            self.a_parts[part % 2 * Self.DOWN + i] = load_matrices(
                a.unsafe_offset(swizzled[Self.dtype](a_row + i * MMA_M, 2 * part + lane // 16))
            )
        comptime for j in range(Self.ACROSS // 2):
            self.b_parts[part % 2 * Self.ACROSS // 2 + j] = load_matrices(
                b.unsafe_offset(swizzled[Self.dtype](b_row + j * 2 * MMA_N, 2 * part + lane // 8 % 2))
            )

    @always_inline
    def multiply[part: Int](mut self, a: Shared[Self.dtype], b: Shared[Self.dtype], thread: Int):
        comptime for j in range(Self.ACROSS // 2):
            var b_part = self.b_parts[part % 2 * Self.ACROSS // 2 + j]
            comptime for i in range(Self.DOWN):
                comptime at = i * Self.ACROSS + 2 * j
                var a_part = self.a_parts[part % 2 * Self.DOWN + i]
                multiply_add(self.sums[at], a_part, b_part.slice[2, offset=0](), b_part.slice[2, offset=2]())
                multiply_add(self.sums[at + 1], a_part, b_part.slice[2, offset=4](), b_part.slice[2, offset=6]())

    @always_inline
    def give(self, place: Shared[DType.float32], thread: Int):
        comptime for i in range(Self.DOWN * Self.ACROSS):
            place.unsafe_store[alignment=CHUNK]((i * THREADS + thread) * 4, self.sums[i])

    @always_inline
    def take(mut self, place: Shared[DType.float32], thread: Int):
        comptime for i in range(Self.DOWN * Self.ACROSS):
            self.sums[i] += place.unsafe_load[width=4, alignment=CHUNK]((i * THREADS + thread) * 4)

    @always_inline
    def store[
        apply_gelu: Bool, add_residual: Bool, //
    ](
        self,
        epilogue: Epilogue[Self.dtype, apply_gelu, add_residual],
        first_row: Int32,
        first_column: Int32,
        thread: Int,
    ):
        var lane = Int32(thread % WARP_SIZE)
        var warp = Int32(thread // WARP_SIZE)
        var row = first_row + warp // 2 * Int32(Self.WARP_M) + lane // 4
        var column = first_column + warp % 2 * Int32(Self.WARP_N) + lane % 4 * 8
        var bias = epilogue.load_bias(column)
        comptime for i in range(Self.DOWN):
            comptime for half in range(2):
                var y = epilogue.Chunk(0)
                comptime for j in range(Self.ACROSS):
                    comptime for h in range(2):
                        y[2 * j + h] = self.sums[i * Self.ACROSS + j][2 * half + h]
                epilogue.store(row + Int32(i * MMA_M + half * 8), column, y, bias)


struct FmaTile[type: DType](Tile):
    """Multiply-adds of any GPU: 16 x 8 threads, each with 8 rows, 16 apart, and 8 columns, 8 apart in shared memory."""

    comptime dtype = Self.type
    comptime M = TILE_M
    comptime GROUPS = 1
    comptime STAGES = 2
    comptime SPREAD = False
    comptime BLOCKS = 1
    comptime ACROSS = 8
    comptime DOWN = THREADS // Self.ACROSS
    comptime ROWS = Self.M // Self.DOWN
    comptime COLUMNS = TILE_N // Self.ACROSS

    var sums: Array[SIMD[DType.float32, Self.COLUMNS], Self.ROWS]

    @always_inline
    def __init__(out self):
        self.sums = Array[SIMD[DType.float32, Self.COLUMNS], Self.ROWS](fill=0)

    @staticmethod
    @always_inline
    def column(row: Int) -> Int:
        # Thread x has rows x, x + 8, x + 16, ...; a chunk's worth of them becomes one chunk of the product.
        comptime width = chunk[Self.dtype]()
        var thread = row % Self.ACROSS
        var number = row // Self.ACROSS
        return number // width * width * Self.ACROSS + thread * width + number % width

    @always_inline
    def load[part: Int](mut self, a: Shared[Self.dtype], b: Shared[Self.dtype], thread: Int):
        pass

    @always_inline
    def multiply[part: Int](mut self, a: Shared[Self.dtype], b: Shared[Self.dtype], thread: Int):
        comptime width = chunk[Self.dtype]()
        var x = thread % Self.ACROSS
        var y = thread // Self.ACROSS
        for place in range(2 * part, 2 * part + 2):
            var b_parts = Array[SIMD[DType.float32, width], Self.COLUMNS](fill=0)
            comptime for j in range(Self.COLUMNS):
                b_parts[j] = _shared_chunk(b, x + j * Self.ACROSS, place)
            comptime for i in range(Self.ROWS):
                var a_part = _shared_chunk(a, y + i * Self.DOWN, place)
                comptime for k in range(width):
                    comptime for j in range(Self.COLUMNS):
                        self.sums[i][j] = a_part[k].fma(b_parts[j][k], self.sums[i][j])

    @always_inline
    def give(self, place: Shared[DType.float32], thread: Int):
        comptime for i in range(Self.ROWS):
            comptime for j in range(Self.COLUMNS):
                place.unsafe_store((i * Self.COLUMNS + j) * THREADS + thread, self.sums[i][j])

    @always_inline
    def take(mut self, place: Shared[DType.float32], thread: Int):
        comptime for i in range(Self.ROWS):
            comptime for j in range(Self.COLUMNS):
                self.sums[i][j] += place.unsafe_load((i * Self.COLUMNS + j) * THREADS + thread)

    @always_inline
    def store[
        apply_gelu: Bool, add_residual: Bool, //
    ](
        self,
        epilogue: Epilogue[Self.dtype, apply_gelu, add_residual],
        first_row: Int32,
        first_column: Int32,
        thread: Int,
    ):
        comptime width = chunk[Self.dtype]()
        var x = Int32(thread % Self.ACROSS)
        var y = Int32(thread // Self.ACROSS)
        comptime for first in range(0, Self.COLUMNS, width):
            var column = first_column + Int32(first * Self.ACROSS) + x * Int32(width)
            var bias = epilogue.load_bias(column)
            comptime for i in range(Self.ROWS):
                epilogue.store(
                    first_row + y + Int32(i * Self.DOWN), column, self.sums[i].slice[width, offset=first](), bias
                )


@always_inline
def _shared_chunk[dtype: DType](x: Shared[dtype], row: Int, place: Int) -> SIMD[DType.float32, chunk[dtype]()]:
    return x.unsafe_load[width=chunk[dtype](), alignment=CHUNK](swizzled[dtype](row, place)).cast[DType.float32]()

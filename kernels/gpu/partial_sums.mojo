"""What the warps of a product with few rows add up: the one place where `few_rows.mojo` differs between GPUs.

| body         | for                                   | a slice, by a warp                                                     |
| ------------ | ------------------------------------- | ---------------------------------------------------------------------- |
| TensorCores  | NVIDIA, sm_80; float16, bfloat16      | 32 k: 2 x 2 mma with W on the left, 16 columns by 8 rows of x each     |
| MultiplyAdds | any GPU, any dtype                    | 8 chunks of k, 16 columns: 8 lanes for k, 2 or 4 columns a lane        |

The tensor cores are not here for speed but because they spread x: a lane that holds 16 bytes of W multiplies with all
rows of x without holding them. The order of k within a slice does not matter to a sum, so lanes load 16 consecutive
bytes where the instruction would have them hold pairs 16 bytes apart; both operands are permuted alike.
"""

from max.gpu import WARP_SIZE, block_dim, lane_id, thread_idx
from max.gpu.primitives import warp
from std.collections import Array
from std.memory import bitcast

from ..data import Data
from .memory import Shared, chunk, commit_copies, copy_chunk, load_chunk
from .tensor_core import MMA_M, multiply_add
from .tile import THREADS

comptime MAX_ROWS = 16
"""Largest M."""

comptime WARPS = THREADS // WARP_SIZE
"""Warps of a group: each takes every WARPS-th slice of k."""

comptime PITCH = 32 + 4
"""Floats from row to row of partial sums: no two lanes that store or load at once collide."""


@fieldwise_init
struct Operand[dtype: DType](TrivialRegisterPassable):
    """Rows of K elements, of which some exist."""

    var start: Data[Self.dtype]
    var rows: Int32
    var depth: Int32

    @always_inline
    def load(self, row: Int32, k: Int32) -> SIMD[Self.dtype, chunk[Self.dtype]()]:
        """Loads a chunk, zero where there is none."""
        var y = SIMD[Self.dtype, chunk[Self.dtype]()](0)
        if row < self.rows and k < self.depth:
            y = load_chunk(self.start, Int(row) * Int(self.depth) + Int(k))
        return y

    @always_inline
    def start_copy[slice: Int, slices: Int](self, k: Int32, target: Shared[Self.dtype]):
        """Starts to copy 8 or 16 rows of some slices to shared memory, with zeros where there is nothing.

        Parameters:
            slice: Elements of a slice.
            slices: How many.

        Args:
            k: Start of the first slice; the others follow.
            target: (slices, MAX_ROWS, slice): what lanes load at once lies side by side.
        """
        comptime width = chunk[Self.dtype]()
        comptime in_slice = slice // width
        var rows = 8 if self.rows <= 8 else MAX_ROWS
        for i in range(Int(thread_idx.x), slices * rows * in_slice, Int(block_dim.x)):
            var place = i % in_slice
            var row = i // in_slice % rows
            var number = i // in_slice // rows
            var at = k + Int32(number * slice + place * width)
            copy_chunk(
                self.start.unsafe_offset(row * Int(self.depth) + Int(at)),
                target.unsafe_offset((number * MAX_ROWS + row) * slice + place * width),
                Int32(row) < self.rows and at < self.depth,
            )
        commit_copies()


trait PartialSums(Deinitable):
    """What a warp adds up of its group's columns."""

    comptime dtype: DType
    comptime SLICE: Int
    """Elements of k that a warp takes at a time."""
    comptime IN_FLIGHT: Int
    """Slices whose loads are started before the first is used; those of a warp start WARPS slices apart."""
    comptime COLUMNS: Int
    """Columns of a group."""
    comptime CHUNKS: Int
    """Chunks of W that a lane holds."""
    comptime MOST_GROUPS: Int
    """As many as registers allow in a block."""

    def __init__(out self):
        """All sums zero."""
        ...

    @staticmethod
    def load(
        weight: Operand[Self.dtype], column: Int32, k: Int32
    ) -> Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS]:
        """Loads the weights of a warp's slices.

        Args:
            weight: All columns.
            column: First column of the group.
            k: Start of the warp's first slice.
        """
        ...

    def add(
        mut self,
        x: Shared[Self.dtype],
        rows: Int32,
        columns: Int32,
        left: Int32,
        weight: Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS],
    ):
        """Adds the products of a warp's slices.

        Args:
            x: Of the warp's first slice, see `Operand.start_copy`.
            rows: How many rows x has.
            columns: How many columns the group has; what is added for others does not matter.
            left: Elements of k from the start of the warp's first slice to the end.
            weight: What `load` gave.
        """
        ...

    def write(mut self, sums: Shared[DType.float32], rows: Int32):
        """Writes the sums of the warp.

        Args:
            sums: (MAX_ROWS, PITCH): row of x, column.
            rows: How many rows x has.
        """
        ...


struct TensorCores[type: DType](PartialSums):
    """Tensor cores of NVIDIA GPUs: D (16 columns, 8 rows of x) = W @ x^T, for two groups of columns and two of rows."""

    comptime dtype = Self.type
    comptime SLICE = 32
    comptime IN_FLIGHT = 2
    comptime COLUMNS = 32
    comptime TILES = Self.COLUMNS // MMA_M
    comptime CHUNKS = Self.IN_FLIGHT * Self.TILES * 2
    comptime MOST_GROUPS = 5
    comptime Chunk = SIMD[Self.type, chunk[Self.type]()]

    var low: Array[SIMD[DType.float32, 4], Self.TILES]
    """For rows 0 to 7 of x."""
    var high: Array[SIMD[DType.float32, 4], Self.TILES]
    """For rows 8 to 15."""

    @always_inline
    def __init__(out self):
        self.low = Array[SIMD[DType.float32, 4], Self.TILES](fill=0)
        self.high = Array[SIMD[DType.float32, 4], Self.TILES](fill=0)

    @staticmethod
    @always_inline
    def load(
        weight: Operand[Self.dtype], column: Int32, k: Int32
    ) -> Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS]:
        var w = Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS](fill=0)
        var row = column + Int32(lane_id()) // 4
        var first = k + Int32(lane_id()) % 4 * 8
        comptime for i in range(Self.IN_FLIGHT):
            comptime for half in range(Self.TILES * 2):
                w[i * Self.TILES * 2 + half] = weight.load(row + Int32(half * 8), first + Int32(i * WARPS * Self.SLICE))
        return w^

    @always_inline
    def add(
        mut self,
        x: Shared[Self.dtype],
        rows: Int32,
        columns: Int32,
        left: Int32,
        weight: Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS],
    ):
        comptime HALF = MAX_ROWS // 2 * Self.SLICE
        comptime for i in range(Self.IN_FLIGHT):
            if Int32(i * WARPS * Self.SLICE) < left:
                var at = i * WARPS * MAX_ROWS * Self.SLICE + Int(lane_id()) * 8
                var x_low = Self._load(x, at)
                comptime for tile in range(Self.TILES):
                    comptime w = (i * Self.TILES + tile) * 2
                    if Int32(tile * MMA_M) < columns:
                        Self._multiply(self.low[tile], weight[w], weight[w + 1], x_low)
                if rows > 8:
                    var x_high = Self._load(x, at + HALF)
                    comptime for tile in range(Self.TILES):
                        comptime w = (i * Self.TILES + tile) * 2
                        if Int32(tile * MMA_M) < columns:
                            Self._multiply(self.high[tile], weight[w], weight[w + 1], x_high)

    @staticmethod
    @always_inline
    def _load(x: Shared[Self.dtype], at: Int) -> SIMD[Self.dtype, 8]:
        """A chunk of shared memory, as words: elements of bfloat16 would be loaded by halves, whose lanes collide."""
        return bitcast[Self.dtype, 8](
            x.unsafe_bitcast[UInt32]().unsafe_load[width=4, alignment=16, volatile=True](at // 2)
        )

    @staticmethod
    @always_inline
    def _multiply(
        mut sums: SIMD[DType.float32, 4],
        w_low: SIMD[Self.type, chunk[Self.type]()],
        w_high: SIMD[Self.type, chunk[Self.type]()],
        x: SIMD[Self.type, 8],
    ):
        comptime for i in range(0, 8, 4):
            var a_low = w_low.slice[4, offset=i]()
            var a_high = w_high.slice[4, offset=i]()
            var a = (
                a_low.slice[2, offset=0]()
                .join(a_high.slice[2, offset=0]())
                .join(a_low.slice[2, offset=2]().join(a_high.slice[2, offset=2]()))
            )
            multiply_add(sums, a, x.slice[2, offset=i](), x.slice[2, offset=i + 2]())

    @always_inline
    def write(mut self, sums: Shared[DType.float32], rows: Int32):
        var column = Int(lane_id()) // 4
        var row = Int(lane_id()) % 4 * 2
        comptime for tile in range(Self.TILES):
            comptime for i in range(4):
                var at = (row + i % 2) * PITCH + column + tile * MMA_M + i // 2 * 8
                sums.unsafe_store(at, self.low[tile][i])
                sums.unsafe_store(at + 8 * PITCH, self.high[tile][i])


struct MultiplyAdds[type: DType](PartialSums):
    """Multiply-adds of any GPU: 8 lanes for k, the others for columns; a lane has 4 columns (2 in warps of 64)."""

    comptime dtype = Self.type
    comptime SLICE = 8 * chunk[Self.type]()
    comptime IN_FLIGHT = 2
    comptime COLUMNS = 16
    comptime LANES = WARP_SIZE // 8
    comptime OWN = Self.COLUMNS // Self.LANES
    comptime CHUNKS = Self.IN_FLIGHT * Self.OWN
    comptime MOST_GROUPS = 2

    var sums: Array[SIMD[DType.float32, Self.OWN], MAX_ROWS]

    @always_inline
    def __init__(out self):
        self.sums = Array[SIMD[DType.float32, Self.OWN], MAX_ROWS](fill=0)

    @staticmethod
    @always_inline
    def load(
        weight: Operand[Self.dtype], column: Int32, k: Int32
    ) -> Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS]:
        var w = Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS](fill=0)
        var own = column + Int32(lane_id()) // 8
        var first = k + Int32(lane_id()) % 8 * Int32(chunk[Self.dtype]())
        comptime for i in range(Self.IN_FLIGHT):
            comptime for j in range(Self.OWN):
                w[i * Self.OWN + j] = weight.load(own + Int32(j * Self.LANES), first + Int32(i * WARPS * Self.SLICE))
        return w^

    @always_inline
    def add(
        mut self,
        x: Shared[Self.dtype],
        rows: Int32,
        columns: Int32,
        left: Int32,
        weight: Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS],
    ):
        comptime width = chunk[Self.dtype]()
        var place = Int(lane_id()) % 8 * width
        comptime for i in range(Self.IN_FLIGHT):
            if Int32(i * WARPS * Self.SLICE) < left:
                comptime for row in range(MAX_ROWS):
                    if Int32(row) < rows:
                        var at = (i * WARPS * MAX_ROWS + row) * Self.SLICE + place
                        var part = x.unsafe_load[width=width, alignment=16](at).cast[DType.float32]()
                        comptime for j in range(Self.OWN):
                            var w = weight[i * Self.OWN + j].cast[DType.float32]()
                            comptime for e in range(width):
                                self.sums[row][j] = part[e].fma(w[e], self.sums[row][j])

    @always_inline
    def write(mut self, sums: Shared[DType.float32], rows: Int32):
        comptime for row in range(MAX_ROWS):
            if Int32(row) < rows:
                comptime for j in range(Self.OWN):
                    var y = self.sums[row][j]
                    comptime for step in range(3):
                        y += warp.shuffle_xor(y, UInt32(1 << step))
                    if lane_id() % 8 == 0:
                        sums.unsafe_store(row * PITCH + Int(lane_id()) // 8 + j * Self.LANES, y)

"""What the warps of a product with few rows add up: the one place where `few_rows.mojo` differs between GPUs.

| body         | for                                   | a slice, by a warp                                                     |
| ------------ | ------------------------------------- | ---------------------------------------------------------------------- |
| TensorCores  | NVIDIA, sm_80; float16, bfloat16      | 32 k: 2 mma with W on the left, 16 columns by 8 rows of x each         |
| MultiplyAdds | any GPU, any dtype                    | 8 chunks of k, 16 columns: 8 lanes for k, 2 or 4 columns a lane        |

The tensor cores are not here for speed but because they spread x: a lane that holds 16 bytes of W multiplies with all
rows of x and holds 16 bytes of one.
"""

from max.gpu import WARP_SIZE, lane_id
from max.gpu.primitives import warp
from std.collections import Array
from std.math import sqrt

from ..data import Data
from .memory import Shared, chunk, load_chunk
from .tensor_core import MMA_M, multiply_add_chunks

comptime MAX_ROWS = 16
"""Largest M."""

comptime TILES = 1
"""Groups of 16 columns that a block makes."""

comptime COLUMNS = TILES * MMA_M

comptime PITCH = COLUMNS + 4
"""Floats from row to row of partial sums: no two lanes that store or load at once collide. Two of the others are moments."""


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


@fieldwise_init
struct Norm(TrivialRegisterPassable):
    """A layer norm of the rows, whose gamma and beta are in the weight and the bias already; see `few_rows.mojo`."""

    var sums: Data[DType.float32]
    """(N), those of the weight's rows."""
    var share: Float32
    """1 / K."""
    var epsilon: Float32

    @always_inline
    def load(self, column: Int32) -> SIMD[DType.float32, TILES]:
        """The sums of a thread's columns."""
        return self.sums.unsafe_load[width=TILES, alignment=4 * TILES](Int(column))

    @always_inline
    def apply(
        self, products: SIMD[DType.float32, TILES], sums: SIMD[DType.float32, TILES], moments: SIMD[DType.float32, 2]
    ) -> SIMD[DType.float32, TILES]:
        """Makes of the products of a row those of the normalised row.

        Args:
            products: Of the row and some of the weight's.
            sums: Theirs.
            moments: The sum of the row and that of its squares.
        """
        var mean = moments[0] * self.share
        var variance = max(moments[1] * self.share - mean * mean, 0)
        return (products - mean * sums) * (1 / sqrt(variance + self.epsilon))


trait PartialSums(Deinitable):
    """What a warp adds up of its block's columns."""

    comptime dtype: DType
    comptime SLICE: Int
    """Elements of k that a warp takes at a time."""
    comptime IN_FLIGHT: Int
    """Slices whose loads are started before the first is used."""
    comptime CHUNKS: Int
    """Chunks of W that a lane holds."""
    comptime MOMENTS: Bool
    """Whether the sum of each row and that of its squares are added up, too."""

    def __init__(out self):
        """All sums zero."""
        ...

    @staticmethod
    def load(
        weight: Operand[Self.dtype], column: Int32, k: Int32, distance: Int32
    ) -> Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS]:
        """Loads the weights of a warp's slices.

        Args:
            weight: All columns.
            column: First column of the block.
            k: Start of the first slice.
            distance: How far one slice starts behind the other.
        """
        ...

    def add(
        mut self,
        x: Operand[Self.dtype],
        weight: Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS],
        k: Int32,
        distance: Int32,
    ):
        """Adds the products of a warp's slices.

        Args:
            x: All rows.
            weight: What `load` gave.
            k: Start of the first slice.
            distance: How far one slice starts behind the other.
        """
        ...

    def write(mut self, sums: Shared[DType.float32], rows: Int32):
        """Writes the sums of the warp.

        Args:
            sums: (MAX_ROWS, PITCH): row of x, column; the moments of the row behind the columns.
            rows: How many rows x has.
        """
        ...


struct TensorCores[type: DType, moments: Bool](PartialSums):
    """Tensor cores of NVIDIA GPUs: D (16 columns, 8 rows of x) = W @ x^T, once or twice for 16 rows."""

    comptime dtype = Self.type
    comptime SLICE = 32
    comptime IN_FLIGHT = 4
    comptime CHUNKS = Self.IN_FLIGHT * TILES * 2
    comptime MOMENTS = Self.moments
    comptime Chunk = SIMD[Self.type, chunk[Self.type]()]
    comptime Rows = Array[Self.Chunk, Self.IN_FLIGHT]
    """A lane's chunks of one row of x, one of each slice."""

    var low: Array[SIMD[DType.float32, 4], TILES]
    """For rows 0 to 7 of x."""
    var high: Array[SIMD[DType.float32, 4], TILES]
    """For rows 8 to 15."""
    var low_moments: SIMD[DType.float32, 2]
    """What this lane saw of row lane / 4: its sum and that of its squares."""
    var high_moments: SIMD[DType.float32, 2]
    """Of row lane / 4 + 8."""

    @always_inline
    def __init__(out self):
        self.low = Array[SIMD[DType.float32, 4], TILES](fill=0)
        self.high = Array[SIMD[DType.float32, 4], TILES](fill=0)
        self.low_moments = 0
        self.high_moments = 0

    @staticmethod
    @always_inline
    def load(
        weight: Operand[Self.dtype], column: Int32, k: Int32, distance: Int32
    ) -> Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS]:
        var w = Array[Self.Chunk, Self.CHUNKS](fill=0)
        var row = column + Int32(lane_id()) // 4
        var first = k + Int32(lane_id()) % 4 * 8
        comptime for i in range(Self.IN_FLIGHT):
            comptime for half in range(TILES * 2):
                w[i * TILES * 2 + half] = weight.load(row + Int32(half * 8), first + Int32(i) * distance)
        return w^

    @always_inline
    def add(
        mut self,
        x: Operand[Self.dtype],
        weight: Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS],
        k: Int32,
        distance: Int32,
    ):
        var x_low = Self.Rows(fill=0)
        var x_high = Self.Rows(fill=0)
        var row = Int32(lane_id()) // 4
        var first = k + Int32(lane_id()) % 4 * 8
        comptime for i in range(Self.IN_FLIGHT):
            x_low[i] = x.load(row, first + Int32(i) * distance)
        if x.rows > 8:
            comptime for i in range(Self.IN_FLIGHT):
                x_high[i] = x.load(row + 8, first + Int32(i) * distance)
        comptime if Self.moments:
            comptime for i in range(Self.IN_FLIGHT):
                self.low_moments += _moments(x_low[i])
            if x.rows > 8:
                comptime for i in range(Self.IN_FLIGHT):
                    self.high_moments += _moments(x_high[i])
        comptime for i in range(Self.IN_FLIGHT):
            if k + Int32(i) * distance < x.depth:
                comptime for tile in range(TILES):
                    comptime at = (i * TILES + tile) * 2
                    multiply_add_chunks(self.low[tile], weight[at], weight[at + 1], x_low[i])
                    if x.rows > 8:
                        multiply_add_chunks(self.high[tile], weight[at], weight[at + 1], x_high[i])

    @always_inline
    def write(mut self, sums: Shared[DType.float32], rows: Int32):
        var column = Int(lane_id()) // 4
        var row = Int(lane_id()) % 4 * 2
        comptime for tile in range(TILES):
            comptime for i in range(4):
                var at = (row + i % 2) * PITCH + column + tile * MMA_M + i // 2 * 8
                sums.unsafe_store(at, self.low[tile][i])
                if rows > 8:
                    sums.unsafe_store(at + 8 * PITCH, self.high[tile][i])
        comptime if Self.moments:
            var at = column * PITCH + COLUMNS  # of row lane / 4
            var low = _over_a_row(self.low_moments)
            var high = _over_a_row(self.high_moments)
            if lane_id() % 4 == 0:
                sums.unsafe_store[alignment=8](at, low)
                if rows > 8:
                    sums.unsafe_store[alignment=8](at + 8 * PITCH, high)


@always_inline
def _moments[dtype: DType, width: Int, //](x: SIMD[dtype, width]) -> SIMD[DType.float32, 2]:
    """The sum of some numbers and that of their squares."""
    var y = x.cast[DType.float32]()
    return {y.reduce_add(), (y * y).reduce_add()}


@always_inline
def _over_a_row(own: SIMD[DType.float32, 2]) -> SIMD[DType.float32, 2]:
    """Adds up what the four lanes saw that hold the chunks of one row."""
    var y = own
    comptime for step in range(2):
        y += {warp.shuffle_xor(y[0], UInt32(1 << step)), warp.shuffle_xor(y[1], UInt32(1 << step))}
    return y


struct MultiplyAdds[type: DType](PartialSums):
    """Multiply-adds of any GPU: 8 lanes for k, the others for columns; a lane has 4 columns (2 in warps of 64)."""

    comptime dtype = Self.type
    comptime SLICE = 8 * chunk[Self.type]()
    comptime IN_FLIGHT = 1
    comptime LANES = WARP_SIZE // 8
    comptime OWN = COLUMNS // Self.LANES
    comptime CHUNKS = Self.OWN
    comptime MOMENTS = False
    comptime Chunk = SIMD[Self.type, chunk[Self.type]()]

    comptime AT_ONCE = 4
    """Rows of x whose loads are started before the first is used."""

    var sums: Array[SIMD[DType.float32, Self.OWN], MAX_ROWS]

    @always_inline
    def __init__(out self):
        self.sums = Array[SIMD[DType.float32, Self.OWN], MAX_ROWS](fill=0)

    @staticmethod
    @always_inline
    def load(
        weight: Operand[Self.dtype], column: Int32, k: Int32, distance: Int32
    ) -> Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS]:
        var w = Array[Self.Chunk, Self.CHUNKS](fill=0)
        var own = column + Int32(lane_id()) // 8
        var first = k + Int32(lane_id()) % 8 * Int32(chunk[Self.dtype]())
        comptime for j in range(Self.OWN):
            w[j] = weight.load(own + Int32(j * Self.LANES), first)
        return w^

    @always_inline
    def add(
        mut self,
        x: Operand[Self.dtype],
        weight: Array[SIMD[Self.dtype, chunk[Self.dtype]()], Self.CHUNKS],
        k: Int32,
        distance: Int32,
    ):
        comptime width = chunk[Self.dtype]()
        var first = k + Int32(lane_id()) % 8 * Int32(width)
        comptime for some in range(0, MAX_ROWS, Self.AT_ONCE):
            if Int32(some) < x.rows:
                var parts = Array[Self.Chunk, Self.AT_ONCE](fill=0)
                comptime for i in range(Self.AT_ONCE):
                    parts[i] = x.load(Int32(some + i), first)
                comptime for i in range(Self.AT_ONCE):
                    var part = parts[i].cast[DType.float32]()
                    comptime for j in range(Self.OWN):
                        var w = weight[j].cast[DType.float32]()
                        comptime for e in range(width):
                            self.sums[some + i][j] = part[e].fma(w[e], self.sums[some + i][j])

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

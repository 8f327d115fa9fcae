"""Matrix product for at most 16 rows, as decoding needs it: y = f(x @ W^T + b) [+ r], bound by reading W.

Shapes: x (M <= 16, K), W (N, K) row-major, b (N), y and r (M, N).

A block makes 32 columns of y. Its warps share k: each takes every fourth slice, so W is read once, x once a block, both 16
bytes a lane, and the partial sums meet in shared memory at the end.

        W   warp 0  warp 1  warp 2  warp 3  warp 0 ...           With all 32 lanes of a warp on the same slice of k, no two
       .-  +-------+-------+-------+-------+-------              blocks read the same W, and no warp reads x that another
    32 |   |       |       |       |       |                     of its block has read.
       '-  +-------+-------+-------+-------+-------

| body         | for                                   | a slice, by a warp                                                     |
| ------------ | ------------------------------------- | ---------------------------------------------------------------------- |
| TensorCores  | NVIDIA, sm_80; float16, bfloat16      | 32 k: 2 x 2 mma with W on the left, 16 columns by 8 rows of x each     |
| MultiplyAdds | any GPU, any dtype                    | 8 chunks of k, 16 columns twice: 8 lanes for k, 2 or 4 columns a lane  |

The tensor cores are not here for speed but because they spread x: a lane that holds 16 bytes of W multiplies with all
rows of x without holding them. The order of k within a slice does not matter to a sum, so lanes load 16 consecutive
bytes where the instruction would have them hold pairs 16 bytes apart; both operands are permuted alike.

Cost: 2*M*N*K operations (M rounded up to 8 on tensor cores); (N*K + M*K * N/32 + N + M*N [+ M*N]) elements, of which the
rereads of x come from the level-2 cache. In requested bytes that is 1 + M/32 times W: 1.03 for one row, 1.16 for five. More
columns a block would read x less often and leave multiprocessors idle: 384 columns make 12 blocks as it is.

Occupancy: latency is hidden by loads in flight, 8 chunks of W a lane (4 KB a warp), not by many warps; at most 96 registers a
thread on tensor cores (5 blocks of 4 warps on all of sm_80 to sm_90), 168 otherwise (3 blocks), 9 KB of shared memory.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, WARP_SIZE, barrier, block_idx, lane_id, thread_idx, warp_id
from max.gpu.host import DeviceContext
from max.gpu.primitives import warp
from std.collections import Array
from std.math import ceildiv
from std.sys import is_nvidia_gpu
from std.utils import StaticTuple

from ..data import Data
from .epilogue import Epilogue
from .memory import Shared, chunk, load_chunk, shared_memory
from .tensor_core import MMA_M, multiply_add
from .tile import THREADS

comptime MAX_ROWS = 16
"""Largest M."""

comptime COLUMNS = 32
"""Columns of y that a block makes."""

comptime _WARPS = THREADS // WARP_SIZE
comptime _PITCH = COLUMNS + 4  # floats from row to row of partial sums: no two lanes that store or load at once collide


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


trait PartialSums(Deinitable):
    """What a warp adds up of a block's columns."""

    comptime dtype: DType
    comptime SLICE: Int
    """Elements of k that a warp takes at a time."""
    comptime IN_FLIGHT: Int
    """Slices whose loads are started before the first is used."""
    comptime COLUMNS: Int
    """Columns that it takes at once, of those of the block."""

    def __init__(out self):
        """All sums zero."""
        ...

    def add(mut self, x: Operand[Self.dtype], weight: Operand[Self.dtype], column: Int32, k: Int32):
        """Adds the products of some slices of k.

        Args:
            x: All rows.
            weight: All columns.
            column: First of the columns.
            k: Start of the first slice; the next start _WARPS slices apart.
        """
        ...

    def write(mut self, sums: Shared[DType.float32], rows: Int32):
        """Writes the sums of the warp.

        Args:
            sums: (MAX_ROWS, _PITCH): row of x, column.
            rows: How many rows x has.
        """
        ...


struct TensorCores[type: DType](PartialSums):
    """Tensor cores of NVIDIA GPUs: D (16 columns, 8 rows of x) = W @ x^T, for two groups of columns and two of rows."""

    comptime dtype = Self.type
    comptime SLICE = 32
    comptime IN_FLIGHT = 2
    comptime COLUMNS = COLUMNS
    comptime GROUPS = Self.COLUMNS // MMA_M
    comptime Chunk = SIMD[Self.type, chunk[Self.type]()]

    var low: Array[SIMD[DType.float32, 4], Self.GROUPS]
    """For rows 0 to 7 of x."""
    var high: Array[SIMD[DType.float32, 4], Self.GROUPS]
    """For rows 8 to 15."""

    @always_inline
    def __init__(out self):
        self.low = Array[SIMD[DType.float32, 4], Self.GROUPS](fill=0)
        self.high = Array[SIMD[DType.float32, 4], Self.GROUPS](fill=0)

    @always_inline
    def add(mut self, x: Operand[Self.dtype], weight: Operand[Self.dtype], column: Int32, k: Int32):
        comptime DISTANCE = Int32(_WARPS * Self.SLICE)
        var g = Int32(lane_id()) // 4
        var first = k + Int32(lane_id()) % 4 * 8
        var w = Array[Self.Chunk, Self.IN_FLIGHT * Self.GROUPS * 2](fill=0)
        var x_low = Array[Self.Chunk, Self.IN_FLIGHT](fill=0)
        comptime for i in range(Self.IN_FLIGHT):
            x_low[i] = x.load(g, first + Int32(i) * DISTANCE)
            comptime for half in range(Self.GROUPS * 2):
                w[i * Self.GROUPS * 2 + half] = weight.load(column + g + Int32(half * 8), first + Int32(i) * DISTANCE)
        comptime for i in range(Self.IN_FLIGHT):
            if k + Int32(i) * DISTANCE < x.depth:
                comptime for group in range(Self.GROUPS):
                    comptime at = (i * Self.GROUPS + group) * 2
                    Self._multiply(self.low[group], w[at], w[at + 1], x_low[i])
        if x.rows > 8:
            comptime for i in range(Self.IN_FLIGHT):
                if k + Int32(i) * DISTANCE < x.depth:
                    var x_high = x.load(g + 8, first + Int32(i) * DISTANCE)
                    comptime for group in range(Self.GROUPS):
                        comptime at = (i * Self.GROUPS + group) * 2
                        Self._multiply(self.high[group], w[at], w[at + 1], x_high)

    @staticmethod
    @always_inline
    def _multiply(mut sums: SIMD[DType.float32, 4], w_low: Self.Chunk, w_high: Self.Chunk, x: Self.Chunk):
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
        comptime for group in range(Self.GROUPS):
            comptime for i in range(4):
                var at = (row + i % 2) * _PITCH + column + group * MMA_M + i // 2 * 8
                sums.unsafe_store(at, self.low[group][i])
                sums.unsafe_store(at + 8 * _PITCH, self.high[group][i])


struct MultiplyAdds[type: DType](PartialSums):
    """Multiply-adds of any GPU: 8 lanes for k, the others for columns; a lane has 4 columns (2 in warps of 64)."""

    comptime dtype = Self.type
    comptime SLICE = 8 * chunk[Self.type]()
    comptime IN_FLIGHT = 4
    comptime COLUMNS = 16
    comptime LANES = WARP_SIZE // 8
    comptime OWN = Self.COLUMNS // Self.LANES

    var sums: Array[SIMD[DType.float32, Self.OWN], MAX_ROWS]

    @always_inline
    def __init__(out self):
        self.sums = Array[SIMD[DType.float32, Self.OWN], MAX_ROWS](fill=0)

    @always_inline
    def add(mut self, x: Operand[Self.dtype], weight: Operand[Self.dtype], column: Int32, k: Int32):
        comptime width = chunk[Self.dtype]()
        var first = k + Int32(lane_id()) % 8 * Int32(width)
        var own = column + Int32(lane_id()) // 8
        comptime for slice in range(Self.IN_FLIGHT):
            var at = first + Int32(slice * _WARPS * Self.SLICE)
            var w = Array[SIMD[DType.float32, width], Self.OWN](fill=0)
            comptime for j in range(Self.OWN):
                w[j] = weight.load(own + Int32(j * Self.LANES), at).cast[DType.float32]()
            comptime for row in range(MAX_ROWS):
                if Int32(row) < x.rows:
                    var part = x.load(Int32(row), at).cast[DType.float32]()
                    comptime for i in range(width):
                        comptime for j in range(Self.OWN):
                            self.sums[row][j] = part[i].fma(w[j][i], self.sums[row][j])

    @always_inline
    def write(mut self, sums: Shared[DType.float32], rows: Int32):
        comptime for row in range(MAX_ROWS):
            if Int32(row) < rows:
                comptime for j in range(Self.OWN):
                    var y = self.sums[row][j]
                    comptime for step in range(3):
                        y += warp.shuffle_xor(y, UInt32(1 << step))
                    if lane_id() % 8 == 0:
                        sums.unsafe_store(row * _PITCH + Int(lane_id()) // 8 + j * Self.LANES, y)


@always_inline
def _few_rows[
    apply_gelu: Bool, add_residual: Bool, //, P: PartialSums
](x: Operand[P.dtype], weight: Operand[P.dtype], epilogue: Epilogue[P.dtype, apply_gelu, add_residual]):
    comptime PASS = Int32(P.IN_FLIGHT * _WARPS * P.SLICE)
    comptime width = chunk[P.dtype]()
    var sums = shared_memory[DType.float32, _WARPS * MAX_ROWS * _PITCH]()
    var row = Int(thread_idx.x) % MAX_ROWS
    var part = Int(thread_idx.x) // MAX_ROWS * width
    for group in range(COLUMNS // P.COLUMNS):
        var column = Int32(block_idx.x) * Int32(COLUMNS) + Int32(group * P.COLUMNS)
        var partial = P()
        var k = Int32(warp_id()) * Int32(P.SLICE)
        while k < x.depth:
            partial.add(x, weight, column, k)
            k += PASS
        partial.write(sums.unsafe_offset(Int(warp_id()) * MAX_ROWS * _PITCH), x.rows)
        barrier()
        if part < P.COLUMNS and Int32(row) < x.rows:
            var y = SIMD[DType.float32, width](0)
            comptime for i in range(_WARPS):
                y += sums.unsafe_load[width=width, alignment=16]((i * MAX_ROWS + row) * _PITCH + part)
            epilogue.store(Int32(row), column + Int32(part), y, epilogue.load_bias(column + Int32(part)))
        comptime if P.COLUMNS < COLUMNS:
            barrier()  # the sums have been read: the next group's may be written


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
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
):
    """A block's columns; the arguments are those of `multiply_few_rows`."""
    var a = Operand[dtype](x, rows, depth)
    var b = Operand[dtype](weight, columns, depth)
    var epilogue = Epilogue[dtype, apply_gelu, add_residual](output, bias, residual, rows, columns)
    comptime if is_nvidia_gpu() and dtype.is_half_float():
        _few_rows[TensorCores[dtype]](a, b, epilogue)
    else:
        _few_rows[MultiplyAdds[dtype]](a, b, epilogue)


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
    ctx.enqueue_function[few_rows_kernel[dtype, apply_gelu, add_residual]](
        output,
        x,
        weight,
        bias,
        residual,
        Int32(rows),
        Int32(columns),
        Int32(depth),
        grid_dim=ceildiv(columns, COLUMNS),
        block_dim=THREADS,
    )

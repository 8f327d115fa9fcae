"""What follows a product, applied to the sums while they are in registers: y = f(sums + bias) [+ r], f the identity or GELU.

A thread comes with some consecutive elements of a row of y, 16 bytes if not said otherwise. If N is a multiple of that they
are loaded and stored at once; otherwise rows of y start anywhere, and elements go one by one.
"""

from std.sys import size_of

from ..data import Data
from ..math import gelu, gelu_to_half
from .memory import chunk


@fieldwise_init
struct Epilogue[dtype: DType, apply_gelu: Bool, add_residual: Bool, width: Int = chunk[dtype]()](
    TrivialRegisterPassable
):
    """Bias, then optionally GELU, then optionally a residual of the output's shape."""

    var output: Data[Self.dtype]
    var bias: Data[Self.dtype]
    var residual: Data[Self.dtype]
    var rows: Int32
    var columns: Int32

    comptime Chunk = SIMD[DType.float32, Self.width]
    """Sums of neighbours in one row."""
    comptime Loaded = SIMD[Self.dtype, Self.width]
    """What is added to them, as it was loaded: fewer registers until then."""
    comptime ALIGNMENT = Self.width * size_of[Self.dtype]()

    @always_inline
    def load(self, x: Data[Self.dtype], at: Int64, column: Int32) -> Self.Loaded:
        """Loads a chunk, zero beyond the last column.

        Args:
            x: The bias or the residual.
            at: Offset of the first element.
            column: Column of the first element.
        """
        var y = Self.Loaded(0)
        if self.columns % Int32(Self.width) == 0:
            if column < self.columns:
                y = x.unsafe_load[width=Self.width, alignment=Self.ALIGNMENT](Int(at))
        else:
            comptime for i in range(Self.width):
                if column + Int32(i) < self.columns:
                    y[i] = x.unsafe_load(Int(at) + i)
        return y

    @always_inline
    def load_bias(self, column: Int32) -> Self.Loaded:
        """The bias of a chunk of columns, to be loaded once for all rows."""
        return self.load(self.bias, Int64(column), column)

    @always_inline
    def load_residual(self, row: Int32, column: Int32) -> Self.Loaded:
        """The residual of a chunk within (rows, columns), zero if there is none."""
        comptime if Self.add_residual:
            return self.load(self.residual, Int64(row) * Int64(self.columns) + Int64(column), column)
        else:
            return 0

    @always_inline
    def load_residual_within(self, row: Int32, column: Int32) -> Self.Loaded:
        """The residual of a chunk, zero if there is none or the row is beyond the last."""
        var y = Self.Loaded(0)
        comptime if Self.add_residual:
            if row < self.rows:
                y = self.load_residual(row, column)
        return y

    @always_inline
    def store_within(self, row: Int32, column: Int32, sums: Self.Chunk, bias: Self.Loaded, residual: Self.Loaded):
        """Stores a chunk of y, what of it lies within (rows, columns), whose residual was loaded before."""
        if row < self.rows and column < self.columns:
            self.store(row, column, sums, bias, residual)

    @always_inline
    def store(self, row: Int32, column: Int32, sums: Self.Chunk, bias: Self.Loaded):
        """Stores a chunk of y, what of it lies within (rows, columns).

        Args:
            row: Row of y.
            column: First column of the chunk.
            sums: Its sums.
            bias: What `load_bias` gave for the column.
        """
        if row < self.rows and column < self.columns:
            self.store(row, column, sums, bias, self.load_residual(row, column))

    @always_inline
    def store(self, row: Int32, column: Int32, sums: Self.Chunk, bias: Self.Loaded, residual: Self.Loaded):
        """Stores a chunk of y within (rows, columns), whose residual was loaded before."""
        var y = sums + bias.cast[DType.float32]()
        comptime if Self.apply_gelu:
            comptime if Self.dtype.is_half_float():
                y = gelu_to_half(y)
            else:
                y = gelu(y)
        y += residual.cast[DType.float32]()
        var at = Int64(row) * Int64(self.columns) + Int64(column)
        var rounded = y.cast[Self.dtype]()
        if self.columns % Int32(Self.width) == 0:
            self.output.unsafe_store[alignment=Self.ALIGNMENT](Int(at), rounded)
        else:
            comptime for i in range(Self.width):
                if column + Int32(i) < self.columns:
                    self.output.unsafe_store(Int(at) + i, rounded[i])

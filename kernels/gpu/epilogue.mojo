"""What follows a product, applied to the sums while they are in registers: y = f(sums + bias) [+ r], f the identity or GELU.

A thread comes with 16 consecutive bytes of a row of y. If N is a multiple of that chunk they are loaded and stored at once;
otherwise rows of y start anywhere, and elements go one by one.
"""

from ..data import Data
from ..math import gelu
from .memory import chunk, load_chunk, store_chunk


@fieldwise_init
struct Epilogue[dtype: DType, apply_gelu: Bool, add_residual: Bool](TrivialRegisterPassable):
    """Bias, then optionally GELU, then optionally a residual of the output's shape."""

    var output: Data[Self.dtype]
    var bias: Data[Self.dtype]
    var residual: Data[Self.dtype]
    var rows: Int32
    var columns: Int32

    comptime WIDTH = chunk[Self.dtype]()
    comptime Chunk = SIMD[DType.float32, Self.WIDTH]
    """A chunk of sums of one row."""

    @always_inline
    def load(self, x: Data[Self.dtype], at: Int64, column: Int32) -> Self.Chunk:
        """Loads a chunk, zero beyond the last column.

        Args:
            x: The bias or the residual.
            at: Offset of the first element.
            column: Column of the first element.
        """
        var y = Self.Chunk(0)
        if self.columns % Int32(Self.WIDTH) == 0:
            if column < self.columns:
                y = load_chunk(x, Int(at)).cast[DType.float32]()
        else:
            comptime for i in range(Self.WIDTH):
                if column + Int32(i) < self.columns:
                    y[i] = x.unsafe_load(Int(at) + i).cast[DType.float32]()
        return y

    @always_inline
    def load_bias(self, column: Int32) -> Self.Chunk:
        """The bias of a chunk of columns, to be loaded once for all rows."""
        return self.load(self.bias, Int64(column), column)

    @always_inline
    def store(self, row: Int32, column: Int32, sums: Self.Chunk, bias: Self.Chunk):
        """Stores a chunk of y, what of it lies within (rows, columns).

        Args:
            row: Row of y.
            column: First column of the chunk.
            sums: Its sums.
            bias: What `load_bias` gave for the column.
        """
        if row >= self.rows or column >= self.columns:
            return
        var y = sums + bias
        comptime if Self.apply_gelu:
            y = gelu(y)
        var at = Int64(row) * Int64(self.columns) + Int64(column)
        comptime if Self.add_residual:
            y += self.load(self.residual, at, column)
        var rounded = y.cast[Self.dtype]()
        if self.columns % Int32(Self.WIDTH) == 0:
            store_chunk(self.output, Int(at), rounded)
        else:
            comptime for i in range(Self.WIDTH):
                if column + Int32(i) < self.columns:
                    self.output.unsafe_store(Int(at) + i, rounded[i])

"""An operand of a matrix product: rows of an array, of which a convolution's overlap."""

from ..data import Data
from .memory import Shared, copy_chunk


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

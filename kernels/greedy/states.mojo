"""The hidden states whose logits are wanted, and their logits in full: logit[b, v] = sum over k of h[b, k] * E[v, k].

E is the vocabulary (V, D), row by row. Cost of a logit: 2*D operations, D elements of E from memory.
"""

from std.collections import Array
from std.memory.alloc import unsafe_alloc

from ..cpu.epilogue import Epilogue
from ..cpu.threads import Workers
from ..cpu.tile import WIDTH, widened
from ..data import Data
from ..math import multiply_add

comptime _SUMS = 4
"""Sums side by side, so that no addition waits for the one before."""


@fieldwise_init
struct StoreEpilogue(Epilogue):
    """Stores the sums as they are."""

    var output: Data[DType.float32]
    var stride: Int

    @always_inline
    def store[width: Int](self, row: Int, column: Int, sums: SIMD[DType.float32, width]):
        """Stores one piece of a row."""
        self.output.unsafe_store(row * self.stride + column, sums)


struct States(TrivialRegisterPassable):
    """Copies of hidden states in float32, one behind the other."""

    var data: Data[DType.float32]
    """`count x depth`."""
    var count: Int
    """States."""
    var depth: Int
    """D."""

    def __init__(out self, count: Int, depth: Int):
        """Takes room for states; `free` is to be called.

        Args:
            count: How many.
            depth: D.
        """
        self.data = unsafe_alloc[Float32](count * depth, alignment=64)
        self.count = count
        self.depth = depth

    def fill[
        dtype: DType, W: Workers, //
    ](self, hidden: Data[dtype], at: Data[DType.int32], batch: Int, length: Int, workers: W):
        """Copies `hidden[b, at[b]]` for every b where `at[b]` is not negative, as many as there is room for: one loop.

        Parameters:
            dtype: Of the hidden states.
            W: The kind of threads.

        Args:
            hidden: `batch x length x depth`.
            at: `batch`.
            batch: B.
            length: T.
            workers: The threads.
        """

        @always_inline
        def all_rows(begin: Int, end: Int) {imm}:
            var row = 0
            for b in range(batch):
                var t = Int(at[unsafe_offset=b])
                if t >= 0:
                    var state = hidden.unsafe_offset((b * length + t) * self.depth)
                    for k in range(self.depth):
                        self.data[unsafe_offset=row * self.depth + k] = state[unsafe_offset=k].cast[DType.float32]()
                    row += 1

        workers.share(all_rows, 1)

    def free(self):
        """Releases the copies."""
        self.data.unsafe_free()

    @no_inline
    def logit[dtype: DType, //](self, row: Int, vocabulary: Data[dtype], token: Int) -> Float32:
        """Computes one logit in full.

        Parameters:
            dtype: Of the vocabulary.

        Args:
            row: The state.
            vocabulary: Rows of `depth`.
            token: Which of them.
        """
        comptime step = _SUMS * WIDTH
        var h = self.data.unsafe_offset(row * self.depth)
        var e = vocabulary.unsafe_offset(token * self.depth)
        var sums = Array[SIMD[DType.float32, WIDTH], _SUMS](fill=SIMD[DType.float32, WIDTH](0))
        var whole = self.depth // step * step
        for k in range(0, whole, step):
            comptime for i in range(_SUMS):
                var x = h.unsafe_load[width=WIDTH](k + i * WIDTH)
                sums[i] = multiply_add(widened(e, k + i * WIDTH), x, sums[i])
        var total = ((sums[0] + sums[1]) + (sums[2] + sums[3])).reduce_add()
        for k in range(whole, self.depth):
            total = multiply_add(e[unsafe_offset=k].cast[DType.float32](), h[unsafe_offset=k], total)
        return total

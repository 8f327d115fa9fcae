"""Linear layer: y = f(x @ W^T + b) [+ r].

Shapes: x (M, K) row-major, W (N, K) packed in panels of 16 columns (`cpu/tile.mojo`), b (N), r and y (M, N) row-major; f is the
identity or GELU in its erf form, x/2 * (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel, arXiv:1606.08415).

Cost: 2*M*N*K operations; (M*K + N*K + N + M*N [+ M*N]) elements moved. The bias, the activation and the residual are
applied to the sums while they are in registers, so they cost no pass over memory.
"""

from ..cpu.epilogue import Epilogue
from ..data import Data
from ..math import gelu, gelu_to_half


@fieldwise_init
struct BiasEpilogue[dtype: DType, apply_gelu: Bool, add_residual: Bool, rounded: Bool = False](Epilogue):
    """Bias, then optionally GELU, then optionally a residual of the output's shape.

    Parameters:
        dtype: Element type of the output.
        apply_gelu: Whether to apply GELU.
        add_residual: Whether to add a residual.
        rounded: Whether weights are rounded to bfloat16 or int8: GELU then is as exact as they are.
    """

    comptime heavy = Self.apply_gelu

    var output: Data[Self.dtype]
    var bias: Data[Self.dtype]
    var residual: Data[Self.dtype]
    var columns: Int

    @always_inline
    def store[width: Int](self, row: Int, column: Int, sums: SIMD[DType.float32, width]):
        """Stores one piece of a row of y."""
        var y = sums + self.bias.unsafe_load[width=width](column).cast[DType.float32]()
        comptime if Self.apply_gelu:
            comptime if Self.rounded:
                y = gelu_to_half(y)
            else:
                y = gelu(y)
        var at = row * self.columns + column
        comptime if Self.add_residual:
            y += self.residual.unsafe_load[width=width](at).cast[DType.float32]()
        self.output.unsafe_store(at, y.cast[Self.dtype]())

"""1-D convolution of width 3 with bias and GELU: y[t] = gelu( sum over j in 0..2 of W_j x[s*t + j - 1] + b ) [+ p[t]].

Shapes: x (B, T, C) time-major, zeros beyond both ends; W packed in panels, 3*C deep, with k = j*C + c for tap j
and channel c; b (N); p (T_out, N) the positional embedding, added last; y (B, T_out, N), T_out = (T - 1) / s + 1 for
stride s.

Time-major rows make the convolution a matrix product without any copy: the three taps of y[t] are 3*C consecutive
elements of x, and the next row of the product starts s*C elements later.

    x:  | x0 | x1 | x2 | x3 | x4 | ...          A (stride 1)   row 1: x0 x1 x2
          `--- row 1 ---'                                      row 2: x1 x2 x3
               `--- row 2 ---'                  A (stride 2)   row 1: x1 x2 x3

Only the rows that reach beyond an end read a padded copy of 3*C elements.

Cost: 2 * B*T_out*N*3*C operations; (B*T*C + 3*C*N + B*T_out*N) elements moved.
"""

from ..cpu.epilogue import Epilogue
from ..cpu.matmul import multiply
from ..cpu.threads import ForkJoin
from ..cpu.tile import is_rounded
from ..data import Data
from ..math import gelu, gelu_to_half

comptime TAPS = 3
"""Width of the convolution."""


@fieldwise_init
struct ConvolutionEpilogue[dtype: DType, weight_type: DType, add_positions: Bool](Epilogue):
    """Bias, GELU, as exact as the weights, and optionally the positional embedding."""

    var output: Data[Self.dtype]
    var bias: Data[Self.dtype]
    var positions: Data[Self.dtype]
    var columns: Int

    @always_inline
    def store[width: Int](self, row: Int, column: Int, sums: SIMD[DType.float32, width]):
        """Stores one piece of y[row]."""
        var y = sums + self.bias.unsafe_load[width=width](column).cast[DType.float32]()
        comptime if is_rounded[Self.weight_type]:
            y = gelu_to_half(y)
        else:
            y = gelu(y)
        var at = row * self.columns + column
        comptime if Self.add_positions:
            y += self.positions.unsafe_load[width=width](at).cast[DType.float32]()
        self.output.unsafe_store(at, y.cast[Self.dtype]())

    def from_row(self, row: Int) -> Self:
        """The same epilogue for a product whose row 0 is y[row]."""
        return Self(
            self.output.unsafe_offset(row * self.columns),
            self.bias,
            self.positions.unsafe_offset(row * self.columns),
            self.columns,
        )


def convolve[
    dtype: DType, weight_type: DType, //, add_positions: Bool
](
    x: Data[dtype],
    length: Int,
    channels: Int,
    weight: Data[weight_type],
    stride: Int,
    epilogue: ConvolutionEpilogue[dtype, weight_type, add_positions],
):
    """Convolves one batch row.

    Args:
        x: (length, channels).
        length: T.
        channels: C.
        weight: Panels of N columns, 3*C deep.
        stride: 1 or 2.
        epilogue: Receives y[t] as row t.
    """
    var rows = (length - 1) // stride + 1
    var depth = TAPS * channels
    var inside_end = max((length - 2) // stride + 1, 1)  # rows 1 ..< inside_end reach beyond no end
    for row in [0, rows - 1]:
        if row == 0 or row >= inside_end:
            _edge_row(x, length, channels, weight, stride, row, epilogue)
    if inside_end > 1:
        multiply(
            x.unsafe_offset((stride - 1) * channels),
            stride * channels,
            weight,
            inside_end - 1,
            epilogue.columns,
            depth,
            epilogue.from_row(1),
            ForkJoin(),
        )


def _edge_row[
    dtype: DType, weight_type: DType, //, add_positions: Bool
](
    x: Data[dtype],
    length: Int,
    channels: Int,
    weight: Data[weight_type],
    stride: Int,
    row: Int,
    epilogue: ConvolutionEpilogue[dtype, weight_type, add_positions],
):
    var taps = List[Scalar[dtype]](length=TAPS * channels, fill=0)
    for tap in range(TAPS):
        var t = row * stride + tap - 1
        if 0 <= t < length:
            for c in range(channels):
                taps[tap * channels + c] = x[unsafe_offset=t * channels + c]
    multiply(
        taps.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        TAPS * channels,
        weight,
        1,
        epilogue.columns,
        TAPS * channels,
        epilogue.from_row(row),
        ForkJoin(),
    )
    _ = taps^  # lives until the product has read it

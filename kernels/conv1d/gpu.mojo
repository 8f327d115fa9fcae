"""1-D convolution of width 3 with bias and GELU on GPUs: y[t] = gelu( sum over j of W_j x[s*t + j - 1] + b ) [+ p[t]].

Shapes: x (B, T, C) time-major, zeros beyond both ends; W (N, 3*C) with column j*C + c for tap j and channel c; b (N); p (T_out,
N) the positional embedding, added last; y (B, T_out, N), T_out = (T - 1) / s + 1 for stride s.

An implicit matrix product: the three taps of y[t] are 3*C consecutive elements of x, starting at s*t*C - C. A row of A is
that piece of x; nothing is gathered, and what lies before x or behind it is zero. A chunk of 16 bytes lies in one tap if C
is a multiple of a chunk, so it is either inside x or outside.

    x[n]:        | x0 | x1 | x2 | x3 | x4 |
    row 0:  | 0  | x0 | x1 |
    row 1, s = 1:| x0 | x1 | x2 |              row 1, s = 2:   | x1 | x2 | x3 |

Cost: 2 * B*T_out*N*3*C operations on the tiles of `gpu/matmul.mojo`; overlapping rows of a tile are read up to three times (3/s),
from the level-1 and level-2 caches but once.
"""

from max.gpu.host import DeviceContext

from ..data import Data
from ..gpu.matmul import multiply
from .cpu import TAPS


def convolve[
    dtype: DType, //, add_positions: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    positions: Data[dtype],
    *,
    batch: Int,
    length: Int,
    channels: Int,
    columns: Int,
    stride: Int,
    ctx: DeviceContext,
) raises:
    """Launches the convolution; pointers are aligned to a chunk.

    Args:
        output: (batch, T_out, columns).
        x: (batch, length, channels).
        weight: (columns, 3 * channels).
        bias: (columns).
        positions: (T_out, columns), not read unless add_positions.
        batch: B.
        length: T.
        channels: C, a multiple of a chunk.
        columns: N.
        stride: 1 or 2.
        ctx: The device.
    """
    multiply[apply_gelu=True, add_residual=add_positions](
        output,
        x,
        weight,
        bias,
        positions,
        batch=batch,
        x_size=length * channels,
        stride=stride * channels,
        origin=channels,
        rows=(length - 1) // stride + 1,
        columns=columns,
        depth=TAPS * channels,
        ctx=ctx,
    )

"""Linear layer on GPUs: y = f(x @ W^T + b) [+ r].

Shapes: x (M, K), W (N, K), b (N), r and y (M, N), all row-major and of one dtype; f is the identity or GELU in its erf form.

| M        | bound by                   | body                                                                           |
| -------- | -------------------------- | ------------------------------------------------------------------------------ |
| 1 to 16  | reading W, once            | `gpu/few_rows.mojo`: warps of a block share k (decoding: a row a beam)         |
| from 17  | the multiplications, or L2 | `gpu/matmul.mojo`: tiles of 128 x 64 in shared memory (encoder: 1500 rows each) |

With M rows W is used M times: at 2*M operations for 2 bytes a GPU that does 150 operations in the time of one byte (A100: 312
TFLOP/s over 2 TB/s) is bound by memory up to M = 150; between 17 and there the tile's idle rows cost nothing that matters.
"""

from max.gpu.host import DeviceContext

from ..data import Data
from ..gpu.few_rows import MAX_ROWS, multiply_few_rows
from ..gpu.matmul import multiply


def linear[
    dtype: DType, //, apply_gelu: Bool, add_residual: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    residual: Data[dtype],
    rows: Int,
    columns: Int,
    depth: Int,
    ctx: DeviceContext,
) raises:
    """Launches the layer; pointers are aligned to a chunk.

    Args:
        output: (rows, columns).
        x: (rows, depth).
        weight: (columns, depth).
        bias: (columns).
        residual: (rows, columns), not read unless add_residual.
        rows: M.
        columns: N.
        depth: K, a multiple of a chunk.
        ctx: The device.
    """
    if rows == 0:
        return
    if rows <= MAX_ROWS:
        multiply_few_rows[apply_gelu, add_residual](
            output, x, weight, bias, residual, rows=rows, columns=columns, depth=depth, ctx=ctx
        )
    else:
        multiply[apply_gelu, add_residual](
            output,
            x,
            weight,
            bias,
            residual,
            batch=1,
            x_size=rows * depth,
            stride=depth,
            origin=0,
            rows=rows,
            columns=columns,
            depth=depth,
            ctx=ctx,
        )

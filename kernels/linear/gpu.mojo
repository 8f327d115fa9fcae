"""Linear layer on GPUs: y = f(x @ W^T + b) [+ r].

Shapes: x (M, K), W (N, K), b (N), r and y (M, N), all row-major and of one dtype; f is the identity or GELU in its erf form.

| M        | bound by                   | body                                                                           |
| -------- | -------------------------- | ------------------------------------------------------------------------------ |
| 1 to 16  | reading W, once            | `gpu/few_rows.mojo`: warps of a block share k (decoding: a row a beam)         |
| from 17  | the multiplications, or L2 | `gpu/matmul.mojo`: tiles in shared memory (encoder: 1500 rows a window)         |

With M rows W is used M times: at 2*M operations for 2 bytes a GPU that does 150 operations in the time of one byte (A100: 312
TFLOP/s over 2 TB/s) is bound by memory up to M = 150; between 17 and there the tile's idle rows cost nothing that matters.
"""

from max.gpu.host import DeviceContext

from ..data import Data
from ..gpu.few_rows import MAX_ROWS, multiply_few_rows, normalises
from ..gpu.matmul import multiply
from ..layer_norm.gpu import enqueue_layer_norm


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
        var no_sums = x.unsafe_bitcast[Float32]()
        multiply_few_rows[apply_gelu, add_residual, normalise=False](
            output, x, weight, bias, no_sums, residual, rows=rows, columns=columns, depth=depth, epsilon=0, ctx=ctx
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


def norm_linear[
    dtype: DType, //, apply_gelu: Bool
](
    output: Data[dtype],
    x: Data[dtype],
    weight: Data[dtype],
    bias: Data[dtype],
    sums: Data[DType.float32],
    rows: Int,
    columns: Int,
    depth: Int,
    epsilon: Float32,
    ctx: DeviceContext,
) raises:
    """Launches the layer of normalised rows: in one launch where the product can normalise them, otherwise in two.

    Args:
        output: (rows, columns).
        x: (rows, depth).
        weight: (columns, depth), with gamma in it.
        bias: (columns), with beta in it.
        sums: (columns), those of the weight's rows.
        rows: M.
        columns: N.
        depth: K, a multiple of a chunk.
        epsilon: Added to the variance.
        ctx: The device.
    """
    if rows == 0:
        return
    if normalises[dtype](rows, ctx):
        comptime if dtype.is_half_float():
            multiply_few_rows[apply_gelu, add_residual=False, normalise=True](
                output,
                x,
                weight,
                bias,
                sums,
                x,
                rows=rows,
                columns=columns,
                depth=depth,
                epsilon=epsilon,
                ctx=ctx,
            )
    else:
        var buffer = ctx.enqueue_create_buffer[dtype](rows * depth)
        var normalised = buffer.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        enqueue_layer_norm[add_residual=False, affine=False](
            normalised, normalised, x, x, x, x, rows, depth, epsilon, ctx
        )
        linear[apply_gelu, add_residual=False](output, normalised, weight, bias, x, rows, columns, depth, ctx)
        _ = buffer^

"""The ops of layer norm."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from ..cpu.threads import ForkJoin
from ..data import data, require, require_contiguous, require_size
from ..layer_norm.cpu import add_layer_norm, layer_norm
from ..layer_norm.gpu import MAX_COLUMNS, enqueue_layer_norm
from .weights import require_aligned, require_chunks, require_countable


@extensibility.register("whisper_layer_norm")
struct LayerNorm:
    """Normalises each row to mean 0 and variance 1, then scales and shifts it: x (..., D), gamma (D), beta (D) -> (..., D).
    """

    @staticmethod
    def execute[
        dtype: DType, rank: Int, //, target: StaticString, epsilon: Float32
    ](
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        gamma: InputTensor[dtype=dtype, rank=1, ...],
        beta: InputTensor[dtype=dtype, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var columns = x.dim_size(rank - 1)
        _check_layer_norm[target](output, x, gamma, beta)
        comptime if target == "cpu":
            layer_norm(
                data(output), data(x), data(gamma), data(beta), x.size() // columns, columns, epsilon, ForkJoin()
            )
        else:
            enqueue_layer_norm[add_residual=False](
                data(output),
                data(output),
                data(x),
                data(x),
                data(gamma),
                data(beta),
                x.size() // columns,
                columns,
                epsilon,
                ctx,
            )


@extensibility.register("whisper_add_layer_norm")
struct AddLayerNorm:
    """Computes s = x + r and its layer norm: x and r (..., D), gamma (D), beta (D) -> s (..., D), normalised (..., D).
    """

    @staticmethod
    def execute[
        dtype: DType, rank: Int, //, target: StaticString, epsilon: Float32
    ](
        total: OutputTensor[dtype=dtype, rank=rank, ...],
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        residual: InputTensor[dtype=dtype, rank=rank, ...],
        gamma: InputTensor[dtype=dtype, rank=1, ...],
        beta: InputTensor[dtype=dtype, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var columns = x.dim_size(rank - 1)
        _check_layer_norm[target](output, x, gamma, beta)
        comptime for axis in range(rank):
            require_size(residual.dim_size(axis), x.dim_size(axis), "layer_norm", "a dimension of the residual")
            require_size(total.dim_size(axis), x.dim_size(axis), "layer_norm", "a dimension of the sum")
        require_contiguous(residual, "layer_norm", "residual")
        comptime if target == "cpu":
            add_layer_norm(
                data(total),
                data(output),
                data(x),
                data(residual),
                data(gamma),
                data(beta),
                x.size() // columns,
                columns,
                epsilon,
                ForkJoin(),
            )
        else:
            if x.size() > 0:
                require_aligned(data(residual), "layer_norm", "residual")
            enqueue_layer_norm[add_residual=True](
                data(total),
                data(output),
                data(x),
                data(residual),
                data(gamma),
                data(beta),
                x.size() // columns,
                columns,
                epsilon,
                ctx,
            )


def _check_layer_norm[
    dtype: DType, rank: Int, //, target: StaticString
](
    output: OutputTensor[dtype=dtype, rank=rank, ...],
    x: InputTensor[dtype=dtype, rank=rank, ...],
    gamma: InputTensor[dtype=dtype, rank=1, ...],
    beta: InputTensor[dtype=dtype, rank=1, ...],
) raises:
    var columns = x.dim_size(rank - 1)
    require(columns > 0, "layer_norm", "D must be positive")
    require_size(gamma.dim_size(0), columns, "layer_norm", "D of gamma")
    require_size(beta.dim_size(0), columns, "layer_norm", "D of beta")
    comptime for axis in range(rank):
        require_size(output.dim_size(axis), x.dim_size(axis), "layer_norm", "a dimension of the output")
    require_contiguous(x, "layer_norm", "x")
    comptime if target != "cpu":
        require_chunks[dtype](columns, "layer_norm", "D")
        require(columns <= MAX_COLUMNS, "layer_norm", String("D is ", columns, ", on a GPU at most ", MAX_COLUMNS))
        require_countable(x.size() // columns, "layer_norm", "M")
        if x.size() > 0:  # what is empty may have any address
            require_aligned(data(x), "layer_norm", "x")
            require_aligned(data(gamma), "layer_norm", "gamma")
            require_aligned(data(beta), "layer_norm", "beta")

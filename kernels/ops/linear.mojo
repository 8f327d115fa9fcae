"""The ops of the linear layer."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from ..cpu.matmul import multiply
from ..cpu.threads import ForkJoin
from ..cpu.tile import is_rounded
from ..data import Data, data, require, require_contiguous, require_size
from ..gpu.tile import MOST_ROWS, TILE_M
from ..layer_norm.gpu import MAX_COLUMNS
from ..linear.cpu import BiasEpilogue
from ..linear.gpu import linear, norm_linear
from .weights import require_aligned, require_chunks, require_countable, require_matrix, require_packed


@extensibility.register("whisper_linear")
struct Linear:
    """Computes y = f(x @ W^T + b), f the identity or GELU: x (..., K), weight, bias (N) -> (..., N).

    The weight is packed on CPUs, (N, K) on GPUs.
    """

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, rank: Int, weight_rank: Int, //, target: StaticString, gelu: Bool
    ](
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        weight: InputTensor[dtype=weight_type, rank=weight_rank, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        _linear[target, gelu=gelu, add_residual=False](output, x, weight, bias, x, ctx)


@extensibility.register("whisper_linear_residual")
struct LinearResidual:
    """Computes y = f(x @ W^T + b) + r: as `whisper_linear`, with residual r (..., N)."""

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, rank: Int, weight_rank: Int, //, target: StaticString, gelu: Bool
    ](
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        weight: InputTensor[dtype=weight_type, rank=weight_rank, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        residual: InputTensor[dtype=dtype, rank=rank, ...],
        ctx: DeviceContext,
    ) raises:
        comptime for axis in range(rank):
            require_size(residual.dim_size(axis), output.dim_size(axis), "linear", "a dimension of the residual")
        require_contiguous(residual, "linear", "residual")
        _linear[target, gelu=gelu, add_residual=True](output, x, weight, bias, residual, ctx)


@extensibility.register("whisper_norm_linear")
struct NormLinear:
    """Computes y = f(norm(x) @ W^T + b) on a GPU: as `whisper_linear`, of the layer norm of x (..., K) whose gamma and beta are in
    weight and bias already; the sums (N) of the weight's rows -> (..., N).
    """

    @staticmethod
    def execute[
        dtype: DType, rank: Int, //, target: StaticString, gelu: Bool, epsilon: Float32
    ](
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        weight: InputTensor[dtype=dtype, rank=2, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        sums: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target != "cpu", "a CPU normalises with whisper_layer_norm"
        var depth = x.dim_size(rank - 1)
        var columns = bias.dim_size(0)
        _check_linear(output, x, columns, depth)
        require_size(sums.dim_size(0), columns, "linear", "N of the sums")
        require(
            depth <= MAX_COLUMNS, "linear", String("K of x is ", depth, ", at most ", MAX_COLUMNS, " can be normalised")
        )
        _check_on_gpu(x, weight, columns, depth)
        if x.size() == 0:
            return
        require_aligned(data(x), "linear", "x")
        require_aligned(data(bias), "linear", "bias")
        norm_linear[gelu](
            data(output),
            data(x),
            data(weight),
            data(bias),
            data(sums),
            x.size() // depth,
            columns,
            depth,
            epsilon,
            ctx,
        )


def _linear[
    dtype: DType,
    weight_type: DType,
    rank: Int,
    weight_rank: Int,
    //,
    target: StaticString,
    gelu: Bool,
    add_residual: Bool,
](
    output: OutputTensor[dtype=dtype, rank=rank, ...],
    x: InputTensor[dtype=dtype, rank=rank, ...],
    weight: InputTensor[dtype=weight_type, rank=weight_rank, ...],
    bias: InputTensor[dtype=dtype, rank=1, ...],
    residual: InputTensor[dtype=dtype, rank=rank, ...],
    ctx: DeviceContext,
) raises:
    var depth = x.dim_size(rank - 1)
    var columns = bias.dim_size(0)
    _check_linear(output, x, columns, depth)
    comptime if target == "cpu":
        require_packed(weight, columns, depth, "linear")
        multiply(
            data(x),
            depth,
            data(weight),
            x.size() // depth,
            columns,
            depth,
            BiasEpilogue[dtype, gelu, add_residual, is_rounded[weight_type]](
                data(output), data(bias), data(residual), columns
            ),
            ForkJoin(),
        )
    else:
        comptime assert weight_type == dtype, "on GPUs weights have the dtype of x"
        _check_on_gpu(x, weight, columns, depth)
        if x.size() == 0:
            return  # no rows: what is empty has no address to check
        require_aligned(data(x), "linear", "x")
        require_aligned(data(bias), "linear", "bias")
        require_aligned(data(residual), "linear", "residual")
        linear[gelu, add_residual](
            data(output),
            data(x),
            rebind[Data[dtype]](data(weight)),
            data(bias),
            data(residual),
            x.size() // depth,
            columns,
            depth,
            ctx,
        )


def _check_linear[
    dtype: DType, rank: Int, //
](
    output: OutputTensor[dtype=dtype, rank=rank, ...],
    x: InputTensor[dtype=dtype, rank=rank, ...],
    columns: Int,
    depth: Int,
) raises:
    """Raises unless x (..., K) and the output (..., N) fit each other."""
    require(depth > 0 and columns > 0, "linear", "K and N must be positive")
    require_size(output.dim_size(rank - 1), columns, "linear", "N of the output")
    require_size(output.size() * depth, x.size() * columns, "linear", "M * K * N of the output")
    require_contiguous(x, "linear", "x")


def _check_on_gpu[
    dtype: DType, weight_type: DType, rank: Int, weight_rank: Int, //
](
    x: InputTensor[dtype=dtype, rank=rank, ...],
    weight: InputTensor[dtype=weight_type, rank=weight_rank, ...],
    columns: Int,
    depth: Int,
) raises:
    """Raises unless a GPU's body can read x (..., K) and the weight (N, K)."""
    require_chunks[dtype](depth, "linear", "K of x")
    require_matrix(weight, columns, depth, "linear")
    require_countable(x.size() + TILE_M * depth, "linear", "(M + 128) * K")
    require(
        x.size() <= MOST_ROWS * depth, "linear", String("M is ", x.size() // depth, ", on a GPU at most ", MOST_ROWS)
    )

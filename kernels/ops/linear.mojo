"""The ops of the linear layer."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from ..cpu.matmul import multiply
from ..data import data, require, require_contiguous, require_size
from ..linear.cpu import BiasEpilogue
from .packed import require_packed


@extensibility.register("whisper_linear")
struct Linear:
    """Computes y = f(x @ W^T + b), f the identity or GELU: x (..., K), packed weight, bias (N) -> (..., N)."""

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, rank: Int, //, target: StaticString, gelu: Bool
    ](
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        weight: InputTensor[dtype=weight_type, rank=3, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        _linear[target, gelu=gelu, add_residual=False](output, x, weight, bias, x, ctx)


@extensibility.register("whisper_linear_residual")
struct LinearResidual:
    """Computes y = f(x @ W^T + b) + r: as `whisper_linear`, with residual r (..., N)."""

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, rank: Int, //, target: StaticString, gelu: Bool
    ](
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        weight: InputTensor[dtype=weight_type, rank=3, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        residual: InputTensor[dtype=dtype, rank=rank, ...],
        ctx: DeviceContext,
    ) raises:
        comptime for axis in range(rank):
            require_size(residual.dim_size(axis), output.dim_size(axis), "linear", "a dimension of the residual")
        require_contiguous(residual, "linear", "residual")
        _linear[target, gelu=gelu, add_residual=True](output, x, weight, bias, residual, ctx)


def _linear[
    dtype: DType, weight_type: DType, rank: Int, //, target: StaticString, gelu: Bool, add_residual: Bool
](
    output: OutputTensor[dtype=dtype, rank=rank, ...],
    x: InputTensor[dtype=dtype, rank=rank, ...],
    weight: InputTensor[dtype=weight_type, rank=3, ...],
    bias: InputTensor[dtype=dtype, rank=1, ...],
    residual: InputTensor[dtype=dtype, rank=rank, ...],
    ctx: DeviceContext,
) raises:
    comptime assert target == "cpu", "linear has a CPU body only, so far"
    var depth = x.dim_size(rank - 1)
    var columns = bias.dim_size(0)
    require(depth > 0 and columns > 0, "linear", "K and N must be positive")
    require_packed(weight, columns, depth, "linear")
    require_size(output.dim_size(rank - 1), columns, "linear", "N of the output")
    require_size(output.size() * depth, x.size() * columns, "linear", "M * K * N of the output")
    require_contiguous(x, "linear", "x")
    multiply(
        data(x),
        depth,
        data(weight),
        x.size() // depth,
        columns,
        depth,
        BiasEpilogue[dtype, gelu, add_residual](data(output), data(bias), data(residual), columns),
    )

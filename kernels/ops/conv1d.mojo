"""The ops of the convolution."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from ..conv1d import cpu, gpu
from ..conv1d.cpu import TAPS
from ..data import Data, data, require, require_contiguous, require_size
from ..gpu.memory import MOST_BLOCKS
from ..gpu.tile import TILE_M
from .weights import require_aligned, require_chunks, require_countable, require_matrix, require_packed


@extensibility.register("whisper_conv1d")
struct Conv1d:
    """Computes y = gelu(conv1d(x, W, b)), width 3, padding 1: x (B, T, C), weight (N, 3*C), bias (N)
    -> (B, (T-1)/stride + 1, N). The weight is packed on CPUs."""

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, weight_rank: Int, //, target: StaticString, stride: Int
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        x: InputTensor[dtype=dtype, rank=3, ...],
        weight: InputTensor[dtype=weight_type, rank=weight_rank, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        _conv1d[target, stride, add_positions=False](output, x, weight, bias, data(bias), ctx)


@extensibility.register("whisper_conv1d_positions")
struct Conv1dPositions:
    """Computes y = gelu(conv1d(x, W, b)) + p: as `whisper_conv1d`, with positions p (T_out, N)."""

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, weight_rank: Int, //, target: StaticString, stride: Int
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        x: InputTensor[dtype=dtype, rank=3, ...],
        weight: InputTensor[dtype=weight_type, rank=weight_rank, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        positions: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        require_size(positions.dim_size(0), output.dim_size(1), "conv1d", "the number of positions")
        require_size(positions.dim_size(1), output.dim_size(2), "conv1d", "N of the positions")
        require_contiguous(positions, "conv1d", "positions")
        _conv1d[target, stride, add_positions=True](output, x, weight, bias, data(positions), ctx)


def _conv1d[
    dtype: DType, weight_type: DType, weight_rank: Int, //, target: StaticString, stride: Int, add_positions: Bool
](
    output: OutputTensor[dtype=dtype, rank=3, ...],
    x: InputTensor[dtype=dtype, rank=3, ...],
    weight: InputTensor[dtype=weight_type, rank=weight_rank, ...],
    bias: InputTensor[dtype=dtype, rank=1, ...],
    positions: Data[dtype],
    ctx: DeviceContext,
) raises:
    comptime assert stride == 1 or stride == 2, "Whisper's convolutions have stride 1 or 2"
    var length = x.dim_size(1)
    var channels = x.dim_size(2)
    var columns = bias.dim_size(0)
    require(length > 0 and channels > 0 and columns > 0, "conv1d", "T, C and N must be positive")
    require_size(output.dim_size(0), x.dim_size(0), "conv1d", "B of the output")
    require_size(output.dim_size(1), (length - 1) // stride + 1, "conv1d", "T of the output")
    require_size(output.dim_size(2), columns, "conv1d", "N of the output")
    require_contiguous(x, "conv1d", "x")
    comptime if target == "cpu":
        require_packed(weight, columns, TAPS * channels, "conv1d")
        for b in range(x.dim_size(0)):
            cpu.convolve(
                data(x).unsafe_offset(b * length * channels),
                length,
                channels,
                data(weight),
                stride,
                cpu.ConvolutionEpilogue[dtype, weight_type, add_positions](
                    data(output).unsafe_offset(b * output.dim_size(1) * columns), data(bias), positions, columns
                ),
            )
    else:
        comptime assert weight_type == dtype, "on GPUs weights have the dtype of x"
        require_chunks[dtype](channels, "conv1d", "C of x")
        require_matrix(weight, columns, TAPS * channels, "conv1d")
        require_countable(stride * (output.dim_size(1) + TILE_M) * channels, "conv1d", "stride * (T_out + 128) * C")
        require(
            x.dim_size(0) <= MOST_BLOCKS, "conv1d", String("B is ", x.dim_size(0), ", on a GPU at most ", MOST_BLOCKS)
        )
        if x.size() == 0:
            return  # no batch: what is empty has no address to check
        require_aligned(data(x), "conv1d", "x")
        require_aligned(data(bias), "conv1d", "bias")
        require_aligned(positions, "conv1d", "positions")
        gpu.convolve[add_positions](
            data(output),
            data(x),
            rebind[Data[dtype]](data(weight)),
            data(bias),
            positions,
            batch=x.dim_size(0),
            length=length,
            channels=channels,
            columns=columns,
            stride=stride,
            ctx=ctx,
        )

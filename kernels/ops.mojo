"""Every op of the package: its name, shapes and dtypes, its checks, and which body runs where.

An op checks its arguments on the host and hands addresses and sizes to a body named after the algorithm. `M` stands for
the product of all leading dimensions. Weights come packed (see `cpu/tile.mojo`); batch is always the first dimension.
"""

import extensibility
from extensibility import InputTensor, OutputTensor, _MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv

from .attention.cpu import HEAD, Attention
from .attention.heads import store_heads
from .conv1d.cpu import TAPS, ConvolutionEpilogue, convolve
from .cpu.matmul import multiply
from .cpu.tile import PANEL
from .data import Data, data, require, require_contiguous, require_size
from .linear.cpu import BiasEpilogue


@extensibility.register("whisper_linear")
struct Linear:
    """Computes y = f(x @ W^T + b), f the identity or GELU: x (..., K), weight (ceil(N/16), K, 16), bias (N) -> (..., N)."""

    @staticmethod
    def execute[
        dtype: DType, rank: Int, //, target: StaticString, gelu: Bool
    ](
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        weight: InputTensor[dtype=dtype, rank=3, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        _linear[target, gelu=gelu, add_residual=False](output, x, weight, bias, x, ctx)


@extensibility.register("whisper_linear_residual")
struct LinearResidual:
    """Computes y = f(x @ W^T + b) + r: as `whisper_linear`, with residual r (..., N)."""

    @staticmethod
    def execute[
        dtype: DType, rank: Int, //, target: StaticString, gelu: Bool
    ](
        output: OutputTensor[dtype=dtype, rank=rank, ...],
        x: InputTensor[dtype=dtype, rank=rank, ...],
        weight: InputTensor[dtype=dtype, rank=3, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        residual: InputTensor[dtype=dtype, rank=rank, ...],
        ctx: DeviceContext,
    ) raises:
        comptime for axis in range(rank):
            require_size(residual.dim_size(axis), output.dim_size(axis), "linear", "a dimension of the residual")
        require_contiguous(residual, "linear", "residual")
        _linear[target, gelu=gelu, add_residual=True](output, x, weight, bias, residual, ctx)


def _linear[
    dtype: DType, rank: Int, //, target: StaticString, gelu: Bool, add_residual: Bool
](
    output: OutputTensor[dtype=dtype, rank=rank, ...],
    x: InputTensor[dtype=dtype, rank=rank, ...],
    weight: InputTensor[dtype=dtype, rank=3, ...],
    bias: InputTensor[dtype=dtype, rank=1, ...],
    residual: InputTensor[dtype=dtype, rank=rank, ...],
    ctx: DeviceContext,
) raises:
    comptime assert target == "cpu", "linear has a CPU body only, so far"
    var depth = x.dim_size(rank - 1)
    var columns = bias.dim_size(0)
    require(depth > 0 and columns > 0, "linear", "K and N must be positive")
    require_size(weight.dim_size(1), depth, "linear", "K of the packed weight")
    require_size(weight.dim_size(0), ceildiv(columns, PANEL), "linear", "the number of packed panels")
    require_size(weight.dim_size(2), PANEL, "linear", "the width of a panel")
    require_size(output.dim_size(rank - 1), columns, "linear", "N of the output")
    require_size(output.size() * depth, x.size() * columns, "linear", "M * K * N of the output")
    require_contiguous(x, "linear", "x")
    require_contiguous(weight, "linear", "weight")
    multiply(
        data(x),
        depth,
        data(weight),
        x.size() // depth,
        columns,
        depth,
        BiasEpilogue[dtype, gelu, add_residual](data(output), data(bias), data(residual), columns),
    )


@extensibility.register("whisper_conv1d")
struct Conv1d:
    """Computes y = gelu(conv1d(x, W, b)), width 3, padding 1: x (B, T, C), weight (ceil(N/16), 3*C, 16), bias (N)
    -> (B, (T-1)/stride + 1, N)."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString, stride: Int
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        x: InputTensor[dtype=dtype, rank=3, ...],
        weight: InputTensor[dtype=dtype, rank=3, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        _conv1d[target, stride, add_positions=False](output, x, weight, bias, data(bias), ctx)


@extensibility.register("whisper_conv1d_positions")
struct Conv1dPositions:
    """Computes y = gelu(conv1d(x, W, b)) + p: as `whisper_conv1d`, with positions p (T_out, N)."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString, stride: Int
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        x: InputTensor[dtype=dtype, rank=3, ...],
        weight: InputTensor[dtype=dtype, rank=3, ...],
        bias: InputTensor[dtype=dtype, rank=1, ...],
        positions: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        require_size(positions.dim_size(0), output.dim_size(1), "conv1d", "the number of positions")
        require_size(positions.dim_size(1), output.dim_size(2), "conv1d", "N of the positions")
        require_contiguous(positions, "conv1d", "positions")
        _conv1d[target, stride, add_positions=True](output, x, weight, bias, data(positions), ctx)


def _conv1d[
    dtype: DType, //, target: StaticString, stride: Int, add_positions: Bool
](
    output: OutputTensor[dtype=dtype, rank=3, ...],
    x: InputTensor[dtype=dtype, rank=3, ...],
    weight: InputTensor[dtype=dtype, rank=3, ...],
    bias: InputTensor[dtype=dtype, rank=1, ...],
    positions: Data[dtype],
    ctx: DeviceContext,
) raises:
    comptime assert target == "cpu", "conv1d has a CPU body only, so far"
    comptime assert stride == 1 or stride == 2, "Whisper's convolutions have stride 1 or 2"
    var length = x.dim_size(1)
    var channels = x.dim_size(2)
    var columns = bias.dim_size(0)
    require(length > 0 and channels > 0 and columns > 0, "conv1d", "T, C and N must be positive")
    require_size(weight.dim_size(0), ceildiv(columns, PANEL), "conv1d", "the number of packed panels")
    require_size(weight.dim_size(1), TAPS * channels, "conv1d", "3 * C of the packed weight")
    require_size(weight.dim_size(2), PANEL, "conv1d", "the width of a panel")
    require_size(output.dim_size(0), x.dim_size(0), "conv1d", "B of the output")
    require_size(output.dim_size(1), (length - 1) // stride + 1, "conv1d", "T of the output")
    require_size(output.dim_size(2), columns, "conv1d", "N of the output")
    require_contiguous(x, "conv1d", "x")
    require_contiguous(weight, "conv1d", "weight")
    for b in range(x.dim_size(0)):
        convolve(
            data(x).unsafe_offset(b * length * channels),
            length,
            channels,
            data(weight),
            stride,
            ConvolutionEpilogue[dtype, add_positions](
                data(output).unsafe_offset(b * output.dim_size(1) * columns), data(bias), positions, columns
            ),
        )


@extensibility.register("whisper_pack_heads")
struct PackHeads:
    """Packs keys and values for attention: rows (B, S, N), whose last 2*H*64 columns are keys and values,
    -> keys (B, H, ceil(S/16), 64, 16), values (B, H, S, 64)."""

    @staticmethod
    def execute[
        dtype: DType, cache_type: DType, //, target: StaticString
    ](
        keys: OutputTensor[dtype=cache_type, rank=5, ...],
        values: OutputTensor[dtype=cache_type, rank=4, ...],
        rows: InputTensor[dtype=dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "pack_heads has a CPU body only, so far"
        var heads = values.dim_size(1)
        require_size(values.dim_size(0), rows.dim_size(0), "pack_heads", "B of the values")
        require_size(values.dim_size(2), rows.dim_size(1), "pack_heads", "S of the values")
        require_size(values.dim_size(3), HEAD, "pack_heads", "the size of a head")
        require_size(keys.dim_size(0), rows.dim_size(0), "pack_heads", "B of the keys")
        require_size(keys.dim_size(1), heads, "pack_heads", "H of the keys")
        require_size(keys.dim_size(2), ceildiv(rows.dim_size(1), PANEL), "pack_heads", "the number of panels of keys")
        require_size(keys.dim_size(3), HEAD, "pack_heads", "the size of a head of the keys")
        require_size(keys.dim_size(4), PANEL, "pack_heads", "the width of a panel of keys")
        require(
            rows.dim_size(2) >= 2 * heads * HEAD,
            "pack_heads",
            String("rows have ", rows.dim_size(2), " columns, expected at least ", 2 * heads * HEAD),
        )
        require_contiguous(rows, "pack_heads", "rows")
        store_heads(
            data(keys),
            data(values),
            rows.dim_size(1),
            data(rows),
            rows.dim_size(2),
            None,
            rows.dim_size(0),
            heads,
            rows.dim_size(1),
        )


@extensibility.register("whisper_attention")
struct AttentionOp:
    """Computes attention over all keys: queries (B, T, N) whose first H*64 columns are read, keys
    (B, H, ceil(S/16), 64, 16), values (B, H, S, 64) -> (B, T, H*64)."""

    @staticmethod
    def execute[
        dtype: DType, cache_type: DType, //, target: StaticString
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        queries: InputTensor[dtype=dtype, rank=3, ...],
        keys: InputTensor[dtype=cache_type, rank=5, ...],
        values: InputTensor[dtype=cache_type, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "attention has a CPU body only, so far"
        var batch = queries.dim_size(0)
        var heads = values.dim_size(1)
        var capacity = values.dim_size(2)
        require(capacity > 0, "attention", "there must be at least one key")
        require_size(values.dim_size(0), batch, "attention", "B of the values")
        require_size(values.dim_size(3), HEAD, "attention", "the size of a head")
        require_size(keys.dim_size(0), batch, "attention", "B of the keys")
        require_size(keys.dim_size(1), heads, "attention", "H of the keys")
        require_size(keys.dim_size(2), ceildiv(capacity, PANEL), "attention", "the number of panels of keys")
        require_size(keys.dim_size(3), HEAD, "attention", "the size of a head of the keys")
        require_size(keys.dim_size(4), PANEL, "attention", "the width of a panel of keys")
        require(
            queries.dim_size(2) >= heads * HEAD,
            "attention",
            String("queries have ", queries.dim_size(2), " columns, expected at least ", heads * HEAD),
        )
        require_size(output.dim_size(0), batch, "attention", "B of the output")
        require_size(output.dim_size(1), queries.dim_size(1), "attention", "T of the output")
        require_size(output.dim_size(2), heads * HEAD, "attention", "H * 64 of the output")
        require_contiguous(queries, "attention", "queries")
        require_contiguous(keys, "attention", "keys")
        require_contiguous(values, "attention", "values")
        Attention(
            data(output),
            data(queries),
            queries.dim_size(2),
            data(keys),
            data(values),
            capacity,
            None,
            batch,
            heads,
            queries.dim_size(1),
        ).run[causal=False]()


@extensibility.register("whisper_cached_attention")
struct CachedAttention:
    """Computes causal attention over a KV cache, after appending to it in place: rows (B, T, 3*H*64) of queries, keys and
    values, past (B) the keys each row of the cache holds, cache keys (B, H, ceil(C/16), 64, 16) and values
    (B, H, C, 64) -> (B, T, H*64)."""

    @staticmethod
    def execute[
        dtype: DType, cache_type: DType, //, target: StaticString
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        rows: InputTensor[dtype=dtype, rank=3, ...],
        past: InputTensor[dtype=DType.int32, rank=1, ...],
        keys: _MutableInputTensor[dtype=cache_type, rank=5, ...],
        values: _MutableInputTensor[dtype=cache_type, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "cached_attention has a CPU body only, so far"
        var batch = rows.dim_size(0)
        var length = rows.dim_size(1)
        var heads = values.dim_size(1)
        var capacity = values.dim_size(2)
        require_size(values.dim_size(0), batch, "cached_attention", "B of the values")
        require_size(values.dim_size(3), HEAD, "cached_attention", "the size of a head")
        require_size(keys.dim_size(0), batch, "cached_attention", "B of the keys")
        require_size(keys.dim_size(1), heads, "cached_attention", "H of the keys")
        require_size(keys.dim_size(2), ceildiv(capacity, PANEL), "cached_attention", "the number of panels of keys")
        require_size(keys.dim_size(3), HEAD, "cached_attention", "the size of a head of the keys")
        require_size(keys.dim_size(4), PANEL, "cached_attention", "the width of a panel of keys")
        require_size(rows.dim_size(2), 3 * heads * HEAD, "cached_attention", "3 * H * 64 of the rows")
        require_size(past.dim_size(0), batch, "cached_attention", "B of past")
        require_size(output.dim_size(0), batch, "cached_attention", "B of the output")
        require_size(output.dim_size(1), length, "cached_attention", "T of the output")
        require_size(output.dim_size(2), heads * HEAD, "cached_attention", "H * 64 of the output")
        require_contiguous(rows, "cached_attention", "rows")
        for b in range(batch):
            require(
                0 <= Int(past[b]) <= capacity - length,
                "cached_attention",
                String(
                    "row ", b, " holds ", past[b], " keys and ", length, " more are to come, the cache takes ", capacity
                ),
            )
        store_heads(
            data(keys), data(values), capacity, data(rows), rows.dim_size(2), data(past), batch, heads, length
        )
        Attention(
            data(output),
            data(rows),
            rows.dim_size(2),
            data(keys),
            data(values),
            capacity,
            data(past),
            batch,
            heads,
            length,
        ).run[causal=True]()

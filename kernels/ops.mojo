"""Every op of the package: its name, shapes and dtypes, its checks, and which body runs where.

An op checks its arguments on the host and hands addresses and sizes to a body named after the algorithm. `M` stands for
the product of all leading dimensions. Weights come packed (see `cpu/tile.mojo`); batch is always the first dimension.
"""

import extensibility
from extensibility import InputTensor, OutputTensor, Tensor, TileTensorable, _MutableInputTensor
from layout.coord import coord_to_index_list
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.utils import IndexList

from .attention.cpu import HEAD, Attention
from .attention.heads import store_heads
from .conv1d.cpu import TAPS, ConvolutionEpilogue, convolve
from .cpu.matmul import multiply
from .cpu.tile import PANEL
from .data import Data, data, require, require_between, require_contiguous, require_size
from .embedding.cpu import embed
from .greedy.cpu import greedy, logits, token_probability
from .layer_norm.cpu import add_layer_norm, layer_norm
from .linear.cpu import BiasEpilogue
from .log_mel.cpu import Filters, HOP, REACH, log_mel
from .log_mel.dft import BINS


@extensibility.register("whisper_log_mel")
struct LogMel:
    """Computes the log-mel spectrogram of samples and `padding` zeros behind them.

    samples (B, n_samples), padding (1), runs (n_mels, 2) and weights (sum of the runs' lengths) -> (B, n_mels, frames)
    with frames = (n_samples + padding) / 160, rounded down. B and n_mels may be anything, n_samples 0 if there is padding.
    """

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        samples: InputTensor[dtype=dtype, rank=2, ...],
        padding: InputTensor[dtype=DType.int32, rank=1, ...],
        runs: InputTensor[dtype=DType.int32, rank=2, ...],
        weights: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "log_mel has a CPU body only, so far"
        var batch = samples.dim_size(0)
        var count = samples.dim_size(1)
        var mels = runs.dim_size(0)
        var zeros = Int(padding[0])
        var frames = _log_mel_frames(count, zeros)
        require_size(output.dim_size(0), batch, "log_mel", "B of the output")
        require_size(output.dim_size(1), mels, "log_mel", "n_mels of the output")
        require_size(output.dim_size(2), frames, "log_mel", "the number of frames of the output")
        require_size(runs.dim_size(1), 2, "log_mel", "the length of a run's description")
        require_contiguous(samples, "log_mel", "samples")
        require_contiguous(runs, "log_mel", "runs")
        require_contiguous(weights, "log_mel", "weights")
        var total = 0
        for m in range(mels):
            var bins = Int(runs[m, 1])
            require_between(bins, 0, BINS, "log_mel", "runs", m, 1)
            require_between(Int(runs[m, 0]), 0, BINS - bins, "log_mel", "runs", m, 0)
            total += bins
        require_size(weights.dim_size(0), total, "log_mel", "the number of weights")
        var filters = Filters(data(runs), data(weights), mels)
        for b in range(batch):
            log_mel(
                data(samples).unsafe_offset(b * count),
                count,
                zeros,
                filters,
                data(output).unsafe_offset(b * mels * frames),
            )


@extensibility.register_shape_function("whisper_log_mel")
def log_mel_shape(
    samples: Some[Tensor], padding: Some[TileTensorable], runs: Some[Tensor], weights: Some[Tensor]
) raises -> IndexList[3]:
    """B, n_mels, (n_samples + padding) // 160."""
    var sizes = coord_to_index_list(samples.shape().tuple())
    require_size(coord_to_index_list(padding.shape().tuple())[0], 1, "log_mel", "the size of padding")
    var zeros = Int(padding.to_tile_tensor()[0])
    return IndexList[3](sizes[0], coord_to_index_list(runs.shape().tuple())[0], _log_mel_frames(sizes[1], zeros))


def _log_mel_frames(count: Int, padding: Int) raises -> Int:
    """Number of frames, if there are samples enough to mirror at both ends."""
    require(padding >= 0, "log_mel", String("padding is ", padding, ", expected at least 0"))
    require(
        count + padding > REACH,
        "log_mel",
        String("n_samples + padding is ", count + padding, ", expected at least ", REACH + 1, ": pad with zeros"),
    )
    return (count + padding) // HOP


@extensibility.register("whisper_linear")
struct Linear:
    """Computes y = f(x @ W^T + b), f the identity or GELU: x (..., K), weight (ceil(N/16), K, 16), bias (N) -> (..., N).
    """

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
        store_heads(data(keys), data(values), capacity, data(rows), rows.dim_size(2), data(past), batch, heads, length)
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
        comptime assert target == "cpu", "layer_norm has a CPU body only, so far"
        var columns = x.dim_size(rank - 1)
        _check_layer_norm(output, x, gamma, beta)
        layer_norm(data(output), data(x), data(gamma), data(beta), x.size() // columns, columns, epsilon)


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
        comptime assert target == "cpu", "add_layer_norm has a CPU body only, so far"
        var columns = x.dim_size(rank - 1)
        _check_layer_norm(output, x, gamma, beta)
        comptime for axis in range(rank):
            require_size(residual.dim_size(axis), x.dim_size(axis), "layer_norm", "a dimension of the residual")
            require_size(total.dim_size(axis), x.dim_size(axis), "layer_norm", "a dimension of the sum")
        require_contiguous(residual, "layer_norm", "residual")
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
        )


def _check_layer_norm[
    dtype: DType, rank: Int, //
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


@extensibility.register("whisper_embed")
struct Embed:
    """Computes E[tokens[b, t]] + P[past[b] + t]: tokens (B, T), past (B), E (ceil(V/16), D, 16), P (n_ctx, D) -> (B, T, D).
    """

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString, n_vocab: Int
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        tokens: InputTensor[dtype=DType.int32, rank=2, ...],
        past: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=dtype, rank=3, ...],
        positions: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "embed has a CPU body only, so far"
        var batch = tokens.dim_size(0)
        var length = tokens.dim_size(1)
        var depth = positions.dim_size(1)
        _check_vocabulary(vocabulary, depth, n_vocab, "embed")
        require_size(past.dim_size(0), batch, "embed", "B of past")
        require_size(output.dim_size(0), batch, "embed", "B of the output")
        require_size(output.dim_size(1), length, "embed", "T of the output")
        require_size(output.dim_size(2), depth, "embed", "D of the output")
        require_contiguous(tokens, "embed", "tokens")
        require_contiguous(positions, "embed", "positions")
        for b in range(batch):
            require_between(Int(past[b]), 0, positions.dim_size(0) - length, "embed", "past", b)
            for t in range(length):
                require_between(Int(tokens[b, t]), 0, n_vocab - 1, "embed", "tokens", b, t)
        embed(data(output), data(tokens), data(past), data(vocabulary), data(positions), batch, length, depth)


@extensibility.register("whisper_greedy")
struct Greedy:
    """Picks each row's most probable token among those that its rules allow, and the log of its probability among them.

    hidden (B, T, D), at (B) the position of each row that counts, vocabulary (ceil(V/16), D, 16), suppress_mask (V),
    rules (B, 4) -> tokens (B), log probabilities (B). A row of rules is:

        suppress_bits     no token v where suppress_mask[v] & suppress_bits != 0; 128 stands for the rule below instead
        text_begin        of the tokens in front of timestamp_begin only those from here on
        timestamps_from   of the timestamps only those from here on ...
        timestamps_to     ... and in front of here

    The rule of bit 128: if the timestamps together are more probable than any text token, no text token is allowed.
    """

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString, timestamp_begin: Int
    ](
        picked: OutputTensor[dtype=DType.int32, rank=1, ...],
        log_probs: OutputTensor[dtype=DType.float32, rank=1, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=dtype, rank=3, ...],
        suppress_mask: InputTensor[dtype=DType.uint8, rank=1, ...],
        rules: InputTensor[dtype=DType.int32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "greedy has a CPU body only, so far"
        comptime assert timestamp_begin >= 0, "timestamp_begin must not be negative"
        var batch = hidden.dim_size(0)
        var tokens = suppress_mask.dim_size(0)
        _check_rows(hidden, at, vocabulary, tokens, 0, "greedy")
        require_size(rules.dim_size(0), batch, "greedy", "B of the rules")
        require_size(rules.dim_size(1), 4, "greedy", "the number of rules")
        require_size(picked.dim_size(0), batch, "greedy", "B of the tokens")
        require_size(log_probs.dim_size(0), batch, "greedy", "B of the log probabilities")
        require_contiguous(suppress_mask, "greedy", "suppress_mask")
        require_contiguous(rules, "greedy", "rules")
        for b in range(batch):
            require_between(Int(rules[b, 0]), 0, 255, "greedy", "rules", b, 0)
        greedy(
            data(picked),
            data(log_probs),
            data(hidden),
            data(at),
            data(vocabulary),
            data(suppress_mask),
            data(rules),
            batch,
            hidden.dim_size(1),
            hidden.dim_size(2),
            tokens,
            timestamp_begin,
        )


@extensibility.register("whisper_token_probability")
struct TokenProbability:
    """Computes the probability of one token among all V, without rules: hidden (B, T, D), at (B) the position of each
    row that counts or -1 for none, vocabulary (ceil(V/16), D, 16) -> (B), NaN where there is none."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString, n_vocab: Int, token: Int
    ](
        output: OutputTensor[dtype=DType.float32, rank=1, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "token_probability has a CPU body only, so far"
        comptime assert 0 <= token < n_vocab, "the token must be in the vocabulary"
        _check_rows(hidden, at, vocabulary, n_vocab, -1, "token_probability")
        require_size(output.dim_size(0), hidden.dim_size(0), "token_probability", "B of the output")
        token_probability(
            data(output),
            data(hidden),
            data(at),
            data(vocabulary),
            hidden.dim_size(0),
            hidden.dim_size(1),
            hidden.dim_size(2),
            n_vocab,
            token,
        )


@extensibility.register("whisper_logits")
struct Logits:
    """Computes the logits of all V tokens: hidden (B, T, D), at (B), vocabulary (ceil(V/16), D, 16) -> (B, V)."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        output: OutputTensor[dtype=DType.float32, rank=2, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "logits has a CPU body only, so far"
        _check_rows(hidden, at, vocabulary, output.dim_size(1), 0, "logits")
        require_size(output.dim_size(0), hidden.dim_size(0), "logits", "B of the output")
        logits(
            data(output),
            data(hidden),
            data(at),
            data(vocabulary),
            hidden.dim_size(0),
            hidden.dim_size(1),
            hidden.dim_size(2),
            output.dim_size(1),
        )


def _check_vocabulary(vocabulary: InputTensor[rank=3, ...], depth: Int, tokens: Int, op: StaticString) raises:
    require(depth > 0 and tokens > 0, op, "D and V must be positive")
    require_size(vocabulary.dim_size(0), (tokens + PANEL - 1) // PANEL, op, "the number of vocabulary panels")
    require_size(vocabulary.dim_size(1), depth, op, "D of the vocabulary")
    require_size(vocabulary.dim_size(2), PANEL, op, "the width of a panel")
    require_contiguous(vocabulary, op, "vocabulary")


def _check_rows[
    dtype: DType, //
](
    hidden: InputTensor[dtype=dtype, rank=3, ...],
    at: InputTensor[dtype=DType.int32, rank=1, ...],
    vocabulary: InputTensor[dtype=dtype, rank=3, ...],
    tokens: Int,
    lowest: Int,
    op: StaticString,
) raises:
    _check_vocabulary(vocabulary, hidden.dim_size(2), tokens, op)
    require_size(at.dim_size(0), hidden.dim_size(0), op, "B of at")
    require_contiguous(hidden, op, "hidden")
    for b in range(at.dim_size(0)):
        require_between(Int(at[b]), lowest, hidden.dim_size(1) - 1, op, "at", b)

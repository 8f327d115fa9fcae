"""The kernels as functions on graph values: call one inside a `max.graph.Graph` whose `custom_extensions` hold KERNELS.

    with Graph("mlp", input_types=[...], custom_extensions=[ops.KERNELS]) as graph:
        x, weight, bias = (value.tensor for value in graph.inputs)
        graph.output(ops.linear(x, weight, bias, gelu=True))

Shapes are written with M for the product of all leading dimensions; weights are packed by `max_whisper.packing` for the
device that reads them. All tensors of an op are on one device, except where it says "on the host".
What each op checks and computes stands in `kernels/ops/`.
"""

from collections.abc import Sequence
from pathlib import Path

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, Dim, DimLike, TensorType, TensorValue, ops

from max_whisper import packing
from max_whisper.config import HEAD_DIM as HEAD
from max_whisper.target import Factors

KERNELS = Path(__file__).resolve().parent / "kernels"
"""The Mojo package with the kernels, as `Graph(custom_extensions=[KERNELS])` takes it."""


def log_mel(
    samples: TensorValue, padding: TensorValue, runs: TensorValue, weights: TensorValue, *, frames: str = "frames"
) -> TensorValue:
    """Log-mel spectrogram, as Whisper's encoder takes it.

    Args:
        samples: (B, n_samples), 16 kHz, finite.
        padding: (1) int32, on the host: zeros to be heard behind the samples; with them, a row has at least 201.
        runs: (n_mels, 2) int16, see `packing.pack_filters`.
        weights: (total length of the runs) float32.
        frames: What the graph calls the dimension (n_samples + padding) // 160.

    Returns:
        (B, n_mels, frames), the dtype of samples.
    """
    out = _like(samples, [samples.shape[0], runs.shape[0], frames])
    return _custom("whisper_log_mel", [samples, padding, runs, weights], [out])[0]


def linear(
    x: TensorValue, weight: TensorValue, bias: TensorValue, residual: TensorValue | None = None, *, gelu: bool = False
) -> TensorValue:
    """Linear layer with everything that follows it fused: f(x W^T + b) + r.

    Args:
        x: (..., K).
        weight: (N, K), packed by `packing.pack_linear`.
        bias: (N).
        residual: (..., N), added last.
        gelu: Whether f is GELU (erf form) instead of the identity.

    Returns:
        (..., N), the dtype of x.
    """
    out = _like(x, [*x.shape[:-1], bias.shape[0]])
    if residual is None:
        return _custom("whisper_linear", [x, weight, bias], [out], gelu=gelu)[0]
    return _custom("whisper_linear_residual", [x, weight, bias, residual], [out], gelu=gelu)[0]


def norm_linear(
    x: TensorValue,
    weight: TensorValue,
    bias: TensorValue,
    sums: TensorValue,
    *,
    gelu: bool = False,
    epsilon: float = 1e-5,
) -> TensorValue:
    """Linear layer of the layer norm of x: f(norm(x) W^T + b), on a GPU, in one launch where there are few rows.

    Args:
        x: (..., K).
        weight: (N, K), with the norm's gamma in it: this and the next two as `packing.fold_norm` makes them.
        bias: (N), with its beta in it.
        sums: (N), float32, those of the weight's rows.
        gelu: Whether f is GELU (erf form) instead of the identity.
        epsilon: Added to the variance.

    Returns:
        (..., N), the dtype of x.
    """
    out = _like(x, [*x.shape[:-1], bias.shape[0]])
    return _custom("whisper_norm_linear", [x, weight, bias, sums], [out], gelu=gelu, epsilon=epsilon)[0]


def conv1d(
    x: TensorValue, weight: TensorValue, bias: TensorValue, positions: TensorValue | None = None, *, stride: int = 1
) -> TensorValue:
    """Convolution of width 3 and padding 1 with GELU and the positional embedding fused: gelu(conv(x)) + p.

    Args:
        x: (B, T, C), time-major.
        weight: (N, 3 * C), packed by `packing.pack_conv1d`.
        bias: (N).
        positions: (T_out, N), added last.
        stride: 1 or 2.

    Returns:
        (B, T_out, N) with T_out = (T - 1) // stride + 1.
    """
    batch, length, _ = x.shape
    out = _like(x, [batch, (length - 1) // stride + 1, bias.shape[0]])
    if positions is None:
        return _custom("whisper_conv1d", [x, weight, bias], [out], stride=stride)[0]
    return _custom("whisper_conv1d_positions", [x, weight, bias, positions], [out], stride=stride)[0]


def keys_shape(batch: DimLike, heads: int, length: int | Dim, device: DeviceRef) -> list[DimLike]:
    """Shape of the keys that attention reads on a device, see `packing.keys_shape`."""
    return packing.keys_shape(batch, heads, length, "gpu" if device.is_gpu() else "cpu")


def pack_heads(
    rows: TensorValue, *, heads: int, dtype: DType | None = None, terms: int = 1
) -> tuple[TensorValue, TensorValue]:
    """Lays keys and values out as `attention` reads them.

    Args:
        rows: (B, S, N); the last 2 * heads * 64 columns are the keys and the values of all heads.
        heads: H.
        dtype: Element type of keys and values; that of the rows if not given, and always on a GPU.
        terms: With bfloat16 on a CPU, how many numbers stand for one: 1, or 2 for `self_attention`.

    Returns:
        keys, see `keys_shape`, and values (B, H, S, 64); on a CPU in bfloat16 `packing.pairs_shapes`, in int16
        `packing.integers_shapes`, in int8 `packing.bytes_shapes`.
    """
    batch, length, _ = rows.shape
    shapes = keys_shape(batch, heads, length, rows.device), [batch, heads, length, HEAD]
    if rows.device.is_cpu() and dtype == DType.bfloat16:
        shapes = packing.pairs_shapes(batch, heads, length, terms)
    if rows.device.is_cpu() and dtype == DType.int16:
        shapes = packing.integers_shapes(batch, heads, length)
    if rows.device.is_cpu() and dtype == DType.int8:
        shapes = packing.bytes_shapes(batch, heads, length)
    types = [TensorType(dtype or rows.dtype, shape, device=rows.device) for shape in shapes]
    keys, values = _custom("whisper_pack_heads", [rows], types)
    return keys, values


def attention(
    queries: TensorValue, keys: TensorValue, values: TensorValue, *, rounded: bool = False, key_count: int = 0
) -> TensorValue:
    """Fused attention over all keys: softmax(Q K^T / 8) V, head by head.

    Args:
        queries: (B, T, N >= H * 64); the first H * 64 columns are the queries of all heads.
        keys: See `keys_shape` and `pack_heads`.
        values: (B, H, S, 64).
        rounded: Whether a CPU may round keys and values of float16 to bfloat16 where it multiplies that, for many queries.
        key_count: S, where keys and values are bytes, whose shapes don't tell.

    Returns:
        (B, T, H * 64).
    """
    out = _like(queries, [queries.shape[0], queries.shape[1], values.shape[1] * HEAD])
    return _custom("whisper_attention", [queries, keys, values], [out], rounded=rounded, key_count=key_count)[0]


def self_attention(rows: TensorValue, *, heads: int, factors: Factors | None = None) -> TensorValue:
    """Fused attention of all rows over all rows. A GPU reads keys and values where they lie, a CPU packs them first.

    Args:
        rows: (B, S, 3 * heads * 64): queries, keys and values.
        heads: H.
        factors: What a CPU makes of queries, keys, values and weights before it multiplies them; None multiplies them
            as they are.

    Returns:
        (B, S, H * 64).
    """
    out = _like(rows, [rows.shape[0], rows.shape[1], heads * HEAD])
    if rows.device.is_cpu():
        if factors is None:
            return attention(rows, *pack_heads(rows, heads=heads))
        packed = pack_heads(rows, heads=heads, dtype=DType[factors.dtype], terms=factors.terms)
        return _custom("whisper_packed_self_attention", [rows, *packed], [out])[0]
    return _custom("whisper_self_attention", [rows], [out])[0]


ENCODER_BLOCK = ("attn_ln", "attn.qkv", "attn.out", "mlp_ln", "mlp.0", "mlp.2")
"""What a block of the encoder has weights and biases for, in the order of use."""


def encoder_block(
    x: TensorValue, weights: Sequence[TensorValue], *, dtype: DType, epsilon: float = 1e-5
) -> TensorValue:
    """A block of the encoder on a CPU, whose attention rounds its factors: self-attention and MLP, each added to its input.

    Args:
        x: (B, S, d) float32, d a multiple of 64.
        weights: For each of ENCODER_BLOCK gamma and beta (d), or weight, packed by `packing.pack_linear`, and bias.
        dtype: What attention rounds to: bfloat16 or int16.
        epsilon: Added to the variances.

    Returns:
        (B, S, d).
    """
    out = _like(x, x.shape)
    return _custom("whisper_encoder_block", [x, *weights], [out], factor_type=dtype, epsilon=epsilon)[0]


def cached_attention(rows: TensorValue, past: TensorValue, keys: BufferValue, values: BufferValue) -> TensorValue:
    """Appends new keys and values to a KV cache in place, then causal attention over it.

    Args:
        rows: (B, T, 3 * H * 64): queries, keys and values of the T new tokens of each row.
        past: (B) int32: tokens that row b of the cache holds already.
        keys: See `keys_shape`.
        values: (B, H, C, 64).

    Returns:
        (B, T, H * 64); query t of row b sees the first past[b] + t + 1 keys.
    """
    out = _like(rows, [rows.shape[0], rows.shape[1], values.shape[1] * HEAD])
    results = ops.inplace_custom(
        "whisper_cached_attention", device=rows.device, values=[rows, past, keys, values], out_types=[out]
    )
    return results[0].tensor


def audio_heads(
    states: TensorValue, weight: TensorValue, bias: TensorValue, *, heads: int, dtype: DType
) -> tuple[TensorValue, TensorValue]:
    """Keys and values of the audio for all blocks of a decoder on a CPU.

    Args:
        states: (B, S, H * 64) float32.
        weight: Of L layers, (2 * H * 64, H * 64) packed by `packing.pack_linear`, one behind the other.
        bias: (L, 2 * H * 64).
        heads: H.
        dtype: Element type of keys and values.

    Returns:
        keys, see `keys_shape`, and values (B, H, S, 64), in int8 `packing.bytes_shapes`, of each block: (L, B, ...).
    """
    batch, length, _ = states.shape
    types = [
        TensorType(dtype, [weight.shape[0], *shape], device=states.device)
        for shape in audio_shapes(batch, heads, length, dtype, states.device)
    ]
    keys, values = _custom("whisper_audio_heads", [states, weight, bias], types)
    return keys, values


def audio_shapes(
    batch: DimLike, heads: int, length: int | Dim, dtype: DType, device: DeviceRef
) -> tuple[list[DimLike], list[DimLike]]:
    """Shapes of one block's keys and values of the audio."""
    if device.is_cpu() and dtype == DType.int8:
        return packing.bytes_shapes(batch, heads, length)
    return keys_shape(batch, heads, length, device), [batch, heads, length, HEAD]


DECODER_BLOCK = (
    *("attn_ln", "attn.qkv", "attn.out"),
    *("cross_attn_ln", "cross_attn.query", "cross_attn.out"),
    *("mlp_ln", "mlp.0", "mlp.2"),
)
"""What a block of the decoder has weights and biases for, in the order of use."""


def decoder(
    rows: Sequence[TensorValue],
    picks: tuple[BufferValue, BufferValue],
    cache: tuple[BufferValue, BufferValue],
    audio: tuple[TensorValue, TensorValue],
    embeddings: Sequence[TensorValue],
    blocks: Sequence[TensorValue],
    *,
    audio_length: int,
    end: int,
    timestamp_begin: int,
    epsilon: float = 1e-5,
) -> TensorValue:
    """The whole decoder on a CPU: takes tokens in, picks one for each row, and goes on with what it picked.

    The rules of the first pick are given, those of later ones follow: see `rules.TokenRules`. The run ends after S picks,
    or when a row that had not ended picks the end of text.

    Args:
        rows: tokens (B, T); past (B), how many tokens each row's cache holds; last (B), the position of each row's last
            valid token; rules (B, 4), see `greedy`; said (B, 3), the token before the newest that was picked, the newest
            and the newest timestamp, -1 where there is none; all int32; and the suppress_mask (V), uint8. Rows whose
            newest token is the end of text have ended, and pick it again.
        picks: Updated in place: tokens (B, S), int32, -1 behind the last one, and log probabilities (B, S), float32.
        cache: Keys, see `keys_shape`, and values (B', H, C, 64) of the text for each block, (L, B', ...), B' >= B,
            updated in place.
        audio: Keys and values of the audio, made by `audio_heads`, of B' rows.
        embeddings: The vocabulary (V, d), its rotation and screen, the positions (n_ctx, d), gamma and beta of the last
            norm.
        blocks: For each of DECODER_BLOCK gamma and beta (L, d), or weight, packed by `packing.pack_linear`, and bias, of
            all L blocks one behind the other.
        audio_length: S of the audio.
        end: The end of text.
        timestamp_begin: The first timestamp.
        epsilon: Added to the variances.

    Returns:
        The normalised states of the tokens taken in, (B, T, d).
    """
    tokens, positions = rows[0], embeddings[3]
    results = ops.inplace_custom(
        "whisper_decoder",
        device=tokens.device,
        values=[*rows, *picks, *cache, *audio, *embeddings, *blocks],
        out_types=[_like(positions, [*tokens.shape, positions.shape[1]])],
        parameters={
            "epsilon": epsilon,
            "audio_length": audio_length,
            "end": end,
            "timestamp_begin": timestamp_begin,
        },
    )
    return results[0].tensor


def layer_norm(x: TensorValue, gamma: TensorValue, beta: TensorValue, *, epsilon: float = 1e-5) -> TensorValue:
    """Layer normalisation of the last dimension, with float32 statistics.

    Args:
        x: (..., D).
        gamma: (D), scale.
        beta: (D), shift.
        epsilon: Added to the variance.

    Returns:
        (..., D), the dtype of x.
    """
    return _custom("whisper_layer_norm", [x, gamma, beta], [_like(x, x.shape)], epsilon=epsilon)[0]


def add_layer_norm(
    x: TensorValue, residual: TensorValue, gamma: TensorValue, beta: TensorValue, *, epsilon: float = 1e-5
) -> tuple[TensorValue, TensorValue]:
    """Adds a residual and normalises the sum, in one pass over memory.

    Args:
        x: (..., D).
        residual: (..., D).
        gamma: (D), scale.
        beta: (D), shift.
        epsilon: Added to the variance.

    Returns:
        x + residual and its layer norm, both (..., D), the dtype of x.
    """
    out = _like(x, x.shape)
    total, normalised = _custom("whisper_add_layer_norm", [x, residual, gamma, beta], [out, out], epsilon=epsilon)
    return total, normalised


def embed(
    tokens: TensorValue, past: TensorValue, vocabulary: TensorValue, positions: TensorValue, *, n_vocab: int
) -> TensorValue:
    """Token embedding plus position: E[tokens[b, t]] + P[past[b] + t].

    Args:
        tokens: (B, T), int32.
        past: (B), int32, how many tokens row b's cache holds already.
        vocabulary: E (V, D).
        positions: P (n_ctx, D).
        n_vocab: V.

    Returns:
        (B, T, D), the dtype of the positions.
    """
    out = _like(positions, [*tokens.shape, positions.shape[1]])
    return _custom("whisper_embed", [tokens, past, vocabulary, positions], [out], n_vocab=n_vocab)[0]


def greedy(
    hidden: TensorValue,
    at: TensorValue,
    vocabulary: TensorValue,
    suppress_mask: TensorValue,
    rules: TensorValue,
    rotation: TensorValue | None = None,
    screen: TensorValue | None = None,
    *,
    timestamp_begin: int,
) -> tuple[TensorValue, TensorValue]:
    """Picks each row's most probable token among those that its rules allow; the logits stay in the kernel.

    Args:
        hidden: (B, T, D), the decoder's last states.
        at: (B), int32, which of the T states of a row is used.
        vocabulary: (V, D).
        suppress_mask: (V), uint8, for each token the bits that suppress it.
        rules: (B, 4), int32: suppress_bits (128: the timestamps win if all of them together are more probable than any
            text token), text_begin, timestamps_from, timestamps_to; see `kernels/ops/`.
        rotation: Of the vocabulary, made by `screen.pack_rotation`; for a CPU, which reads the vocabulary where it must.
        screen: Of the vocabulary, made by `screen.pack_screen`; for a CPU.
        timestamp_begin: The first timestamp token.

    Returns:
        tokens (B), int32, and the logs of their probabilities among the allowed tokens (B), float32, on a CPU to 2e-3. Of
        equally probable tokens the first is picked.
    """
    name, screened = _screened("greedy", hidden, rotation, screen)
    tokens, log_probs = _custom(
        name,
        [hidden, at, vocabulary, suppress_mask, rules, *screened],
        [_of(DType.int32, hidden, [hidden.shape[0]]), _of(DType.float32, hidden, [hidden.shape[0]])],
        timestamp_begin=timestamp_begin,
    )
    return tokens, log_probs


def greedy_step(
    hidden: TensorValue,
    at: TensorValue,
    vocabulary: TensorValue,
    suppress_mask: TensorValue,
    rows: Sequence[BufferValue],
    picks: tuple[BufferValue, BufferValue],
    *,
    end: int,
    timestamp_begin: int,
) -> None:
    """Picks as `greedy`, on a GPU, and makes of what a step was told what the next one is to be told: all in place.

    Args:
        hidden: (B, T, D), the decoder's last states.
        at: (B), int32, which of the T states of a row is used.
        vocabulary: (V, D).
        suppress_mask: (V), uint8, for each token the bits that suppress it.
        rows: tokens (B), the newest of each row, not read; past (B), how many tokens each row's cache held before this
            step, afterwards `at` + 1 more; rules (B, 4), see `greedy`; said (B, 3), see `decoder`. All int32.
        picks: tokens (B, S), int32, and log probabilities (B, S), float32: of each row column (past + at) modulo S is
            written. A row whose newest token is the end of text says it again, with a log probability of 0.
        end: The end of text.
        timestamp_begin: The first timestamp.
    """
    ops.inplace_custom(
        "whisper_greedy_step",
        device=hidden.device,
        values=[hidden, at, vocabulary, suppress_mask, *rows, *picks],
        out_types=[],
        parameters={"end": end, "timestamp_begin": timestamp_begin},
    )


def token_probability(
    hidden: TensorValue,
    at: TensorValue,
    vocabulary: TensorValue,
    rotation: TensorValue | None = None,
    screen: TensorValue | None = None,
    *,
    n_vocab: int,
    token: int,
) -> TensorValue:
    """Computes the probability of one token among all, without rules; of <|nospeech|>: that nobody speaks.

    Args:
        hidden: (B, T, D), the decoder's last states.
        at: (B), int32, which of the T states of a row is used; -1 for none.
        vocabulary: (V, D).
        rotation: As for `greedy`.
        screen: As for `greedy`.
        n_vocab: V.
        token: The token.

    Returns:
        (B), float32, on a CPU to 0.2 %; NaN for rows without a state. If no row has one, nothing is read.
    """
    name, screened = _screened("token_probability", hidden, rotation, screen)
    out = _of(DType.float32, hidden, [hidden.shape[0]])
    return _custom(name, [hidden, at, vocabulary, *screened], [out], n_vocab=n_vocab, token=token)[0]


def logits(hidden: TensorValue, at: TensorValue, vocabulary: TensorValue, *, n_vocab: int) -> TensorValue:
    """Computes the logits of all tokens: to detect a language, and for tests.

    Args:
        hidden: (B, T, D), the decoder's last states.
        at: (B), int32, which of the T states of a row is used.
        vocabulary: (V, D).
        n_vocab: V.

    Returns:
        (B, V), float32.
    """
    out = _of(DType.float32, hidden, [hidden.shape[0], n_vocab])
    return _custom("whisper_logits", [hidden, at, vocabulary], [out])[0]


def _screened(
    op: str, hidden: TensorValue, rotation: TensorValue | None, screen: TensorValue | None
) -> tuple[str, list[TensorValue]]:
    """The op's name on the device of the hidden states, and the screen that it takes there."""
    if hidden.device.is_gpu():
        return f"whisper_{op}", []
    if rotation is None or screen is None:
        raise ValueError(f"{op}: on a CPU it takes the vocabulary's rotation and screen, see max_whisper.screen")
    return f"whisper_screened_{op}", [rotation, screen]


def _like(x: TensorValue, shape: Sequence[DimLike]) -> TensorType:
    return _of(x.dtype, x, shape)


def _of(dtype: DType, x: TensorValue, shape: Sequence[DimLike]) -> TensorType:
    return TensorType(dtype, shape, device=x.device)


def _custom(
    name: str, values: list[TensorValue], out_types: list[TensorType], **parameters: bool | int | float | str | DType
) -> list[TensorValue]:
    results = ops.custom(name, device=values[0].device, values=values, out_types=out_types, parameters=parameters)
    return [result.tensor for result in results]

"""Float64 references: each op's definition in the plainest NumPy, on unpacked weights."""

import math

import numpy as np

from max_whisper import target
from max_whisper.packing import to_bfloat16

erf = np.vectorize(math.erf, otypes=[np.float64])


HEAD = 64


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU in its erf form."""
    return 0.5 * x * (1 + erf(x / math.sqrt(2))) if x.size else x


def unpack_linear(packed: np.ndarray, columns: int, depth: int) -> np.ndarray:
    """Panels of float, bfloat16 (as uint16) or int8 -> (N, K) float64."""
    panels, _, size = packed.shape
    scales = np.ones((panels, 16))
    if packed.dtype == np.uint16:
        packed = (packed.astype(np.uint32) << 16).view(np.float32)
    elif packed.dtype == np.int8:
        scales = packed[:, 0].copy().view(np.float32)
        packed = packed[:, 1:]
    values = packed.astype(np.float64).reshape(panels, -1, 16, size // 16).swapaxes(1, 2).reshape(panels, 16, -1)
    return (values * scales[..., None]).reshape(panels * 16, -1)[:columns, :depth]


# What activations are rounded to where more rows than a register tile holds meet narrow weights (fewer: 12 bits with int8):
# the table of kernels/cpu/operand.mojo. By CPU level: the steps for int8's activations, and whether bfloat16's are rounded.
_OPERANDS = {
    "sapphirerapids": (127, True),
    "cooperlake": (127, True),
    "cascadelake": (127, False),
    "emulated-amx": (127, True),
    "emulated-avx512": (127, True),
}
_ROWS = {"x86-64-v2": 3, "x86-64-v3": 6, "host": 6}


def as_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, widened."""
    return (to_bfloat16(x.astype(np.float32)).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def as_multiplied(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Rows (M, K) of one product as the CPU's body for such weights multiplies them."""
    if weight.dtype.kind == "f":
        return x
    few = len(x) <= _ROWS.get(target.host_level(), 12)
    steps, rounds_bfloat16 = (2047, False) if few else _OPERANDS.get(target.cpu_target(), (2047, False))
    x32 = x.astype(np.float32)
    if weight.dtype == np.uint16:
        return as_bfloat16(x) if rounds_bfloat16 else x
    scale = np.abs(x32).max(1, keepdims=True) / np.float32(steps)
    inverse = np.float32(1) / np.where(scale > 0, scale, np.float32(np.inf))
    return np.rint(x32.astype(np.float64) * inverse) * scale


def linear(x, weight, bias, residual=None, *, gelu: bool = False):
    rows = as_multiplied(x.reshape(-1, x.shape[-1]), weight).reshape(x.shape)
    y = rows @ unpack_linear(weight, len(bias), x.shape[-1]).T + bias
    if gelu:
        y = globals()["gelu"](y)
    return y if residual is None else y + residual


def attention(queries, keys, values, *, first_visible: int | None = None):
    """Softmax attention on packed heads; query t sees `first_visible + t` keys, or all."""
    batch, heads, length, head = values.shape
    k = keys.swapaxes(3, 4).reshape(batch, heads, -1, head)[:, :, :length]
    return attention_of_heads(queries, k, values, first_visible=first_visible)


def pack_bytes(rows: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of rows (B, S, >= 2 * H * 64) in bytes: kernels/attention/bytes.mojo."""
    batch, length, _ = rows.shape
    kv = (
        rows[..., -2 * heads * HEAD :]
        .astype(np.float32)
        .reshape(batch, length, 2, heads, HEAD)
        .transpose(2, 0, 3, 1, 4)
    )
    centred = kv[0] - kv[0].astype(np.float64).mean(2, keepdims=True).astype(np.float32)

    def padded(x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Integers (B, H, n, size, 64) and scales (B, H, n, size)."""
        scales = abs(x).max(-1) / np.float32(127)
        integers = np.rint(x * np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)[..., None])
        count = -(-length // size)
        result = np.zeros((2, batch, heads, count * size, HEAD + 1), np.float32)
        result[0, :, :, :length, :HEAD], result[1, :, :, :length, HEAD] = integers, scales
        shape = (batch, heads, count, size)
        return result[0, ..., :HEAD].reshape(*shape, HEAD), result[1, ..., HEAD].reshape(shape)

    def bytes_of(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x).view(np.int8).reshape(*x.shape[:3], -1, HEAD)

    integers, scales = padded(centred, 16)
    there = np.arange(integers.shape[2] * 16).reshape(-1, 16, 1) < length
    words = (integers + np.where(there, 128, 0)).astype(np.uint8).reshape(*scales.shape, 16, 4).swapaxes(3, 4)
    keys = np.concatenate([bytes_of(scales), bytes_of(words)], axis=3)
    integers, scales = padded(kv[1], 64)
    words = integers.astype(np.int8).reshape(*scales.shape[:3], 4, 16, 4, 16).transpose(0, 1, 2, 5, 4, 6, 3)
    return keys, np.concatenate([bytes_of(scales), bytes_of(words)], axis=3)


def unpack_bytes(keys: np.ndarray, values: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that bytes stand for, less the mean of the keys: (B, H, S, 64) each."""
    shape = keys.shape[:3]
    scales = np.ascontiguousarray(keys[:, :, :, 0]).view(np.float32).astype(np.float64)
    k = np.ascontiguousarray(keys[:, :, :, 1:]).view(np.uint8).reshape(*shape, 16, 16, 4).swapaxes(3, 4)
    k = (k.reshape(*shape, 16, HEAD) - 128.0) * scales[..., None]
    shape = values.shape[:3]
    scales = np.ascontiguousarray(values[:, :, :, :4]).view(np.float32).reshape(*shape, 64).astype(np.float64)
    v = values[:, :, :, 4:].reshape(*shape, 4, 16, 16, 4).transpose(0, 1, 2, 6, 4, 3, 5).reshape(*shape, 64, HEAD)
    k, v = (x.reshape(*x.shape[:2], -1, HEAD)[:, :, :length] for x in (k, v * scales[..., None]))
    return k, v


def integers(x: np.ndarray, steps: int, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """The nearest integers of at most `steps`, and the scales that they have along an axis, in float32."""
    scales = abs(x).max(axis, keepdims=True) / np.float32(steps)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(x.astype(np.float64) * inverse).astype(np.int16), scales


def heads_of(rows: np.ndarray, parts: int) -> np.ndarray:
    """The last columns of rows (B, S, N), as (parts, B, H, S, 64)."""
    batch, length, columns = rows.shape
    return rows.reshape(batch, length, parts, columns // parts // HEAD, HEAD).transpose(2, 0, 3, 1, 4)


def pack_integers(rows: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of rows (B, S, >= 2 * H * 64) in int16: kernels/attention/integers.mojo."""
    batch = len(rows)
    k, v = heads_of(rows[..., -2 * heads * HEAD :], 2)

    def panels(x: np.ndarray, columns: int, numbers: int) -> np.ndarray:
        """(B, H, n, columns, numbers) of int16: pairs of numbers 16 apart, column by column."""
        return x.reshape(*x.shape[:3], columns, numbers // 32, 2, 16).transpose(0, 1, 2, 4, 6, 3, 5)

    def with_scales(numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
        words = numbers.reshape(*numbers.shape[:3], 32, 32)
        scales = np.ascontiguousarray(scales, np.float32).view(np.int16).reshape(*numbers.shape[:3], 1, 32)
        return np.concatenate([scales, words], axis=3)

    def padded(x: np.ndarray, size: int) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % size), (0, 0)))

    numbers, scales = (padded(x, 16).reshape(batch, heads, -1, 16, x.shape[-1]) for x in integers(k, 4095))
    keys = with_scales(panels(numbers, 16, HEAD), scales)
    groups = padded(v, 64).reshape(batch, heads, -1, 64, HEAD)
    numbers, scales = (x.swapaxes(3, 4).reshape(batch, heads, -1, 16, x.shape[3]) for x in integers(groups, 2047, 3))
    return keys, with_scales(panels(numbers, 16, 64), scales)


def self_attention_in_int16(rows):
    """Attention of all rows over all rows, of rounded queries, keys and values (B, S, 3 * H * 64), and what weights of 14
    bits, each within 7.5e-5 of itself before it is rounded, may move it by: distances from the mean, so weighted."""
    q, k, v = heads_of(rows, 3)
    batch, heads, length, _ = q.shape
    q, k = (np.multiply(*integers(x, steps), dtype=np.float64) for x, steps in ((q, 8191), (k, 4095)))
    groups = np.pad(v, ((0, 0), (0, 0), (0, -length % 64), (0, 0))).reshape(batch, heads, -1, 64, HEAD)
    v = np.multiply(*integers(groups, 2047, 3), dtype=np.float64).reshape(batch, heads, -1, HEAD)[:, :, :length]
    return _attention_and_error(q, k, v, lambda p: 0.5 / 16383 + 7.5e-5 * p)


def attention_of_heads(queries, k, v, *, first_visible: int | None = None):
    """Softmax attention over keys and values (B, H, S, 64); query t sees `first_visible + t` keys, or all."""
    batch, heads, length, head = v.shape
    q = queries[..., : heads * head].reshape(batch, -1, heads, head).swapaxes(1, 2)
    scores = q @ k.swapaxes(2, 3) / math.sqrt(head)
    if first_visible is not None:
        visible = first_visible + np.arange(q.shape[2])
        scores = np.where(np.arange(length) < visible[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(batch, -1, heads * head)


def self_attention(rows, *, heads: int):
    """Attention of all rows over all rows: queries, keys and values (B, S, 3 * H * 64)."""
    batch, length, _ = rows.shape
    k, v = rows[..., heads * HEAD :].reshape(batch, length, 2, heads, HEAD).transpose(2, 0, 3, 1, 4)
    return attention_of_heads(rows, k, v)


def self_attention_in_bfloat16(rows):
    """Attention of all rows over all rows, of rounded queries, keys and values (B, S, 3 * H * 64), and the mean of |v - o|
    with the same weights: what an error of theirs is multiplied with."""
    q, k, v = heads_of(as_bfloat16(rows), 3)
    return _attention_and_error(q, k, v, lambda p: p)


def _attention_and_error(q, k, v, error_of):
    """Attention (B, S, H * 64) of heads (B, H, S, 64), and what errors of weights, functions of their ratio to a query's
    largest, may move it by: the sum of theirs times |v - o|."""
    batch, heads, length, head = q.shape
    scores = q @ k.swapaxes(2, 3) / math.sqrt(head)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    total = p.sum(-1, keepdims=True)
    o = p @ v / total
    errors = error_of(p)
    far = [np.einsum("bhqk,bhqk->bhq", errors, abs(v[..., j][:, :, None] - o[..., j, None])) for j in range(head)]
    error = np.stack(far, -1) / total
    return tuple(x.swapaxes(1, 2).reshape(batch, length, heads * head) for x in (o, error))


def conv1d(x, weight, bias, positions=None, *, stride: int):
    """Three taps, zeros beyond both ends, GELU, positions."""
    channels = x.shape[2]
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    windows = np.concatenate([padded[:, j : padded.shape[1] - 2 + j : stride] for j in range(3)], axis=2)
    inside = slice(1, max((x.shape[1] - 2) // stride + 1, 1))  # the others reach beyond an end: a product for each
    for window in windows:
        window[inside] = as_multiplied(window[inside], weight)
        for edge in {0, len(window) - 1} - set(range(*inside.indices(len(window)))):
            window[edge] = as_multiplied(window[[edge]], weight)[0]
    y = gelu(windows @ unpack_linear(weight, len(bias), 3 * channels).T + bias)
    return y if positions is None else y + positions


def layer_norm(x, gamma, beta, *, epsilon: float = 1e-5):
    deviation = x - x.mean(-1, keepdims=True)
    return deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def add_layer_norm(x, residual, gamma, beta, *, epsilon: float = 1e-5):
    return x + residual, layer_norm(x + residual, gamma, beta, epsilon=epsilon)


def embed(tokens, past, vocabulary, positions, *, n_vocab: int):
    return vocabulary[tokens] + positions[past[:, None] + np.arange(tokens.shape[1])]


def logits(hidden, at, vocabulary, *, n_vocab: int):
    return hidden[np.arange(len(at)), at] @ vocabulary.T


def log_softmax(x):
    """Over the last axis; -inf where x is."""
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def token_probability(hidden, at, vocabulary, rotation=None, screen=None, *, n_vocab: int, token: int):
    probability = np.exp(log_softmax(logits(hidden, np.maximum(at, 0), vocabulary, n_vocab=n_vocab)))[:, token]
    return np.where(at < 0, np.nan, probability)


def allowed_tokens(suppress_mask, rules, *, timestamp_begin: int):
    """(B, V): what the rules of each row allow, but for the one that compares probabilities."""
    suppress_bits, text_begin, timestamps_from, timestamps_to = (rules[:, i, None] for i in range(4))
    token = np.arange(len(suppress_mask))
    text = (token >= text_begin) & (token < timestamp_begin)
    timestamps = (token >= timestamps_from) & (token < timestamps_to) & (token >= timestamp_begin)
    return (text | timestamps) & (suppress_mask & suppress_bits & 127 == 0)


def greedy(hidden, at, vocabulary, suppress_mask, rules, rotation=None, screen=None, *, timestamp_begin: int):
    allowed = allowed_tokens(suppress_mask, rules, timestamp_begin=timestamp_begin)
    masked = np.where(allowed, logits(hidden, at, vocabulary, n_vocab=len(suppress_mask)), -np.inf)
    for row, bits in zip(masked, rules[:, 0], strict=True):
        text, timestamps = row[:timestamp_begin], row[timestamp_begin:]
        if bits & 128 and np.logaddexp.reduce(timestamps, initial=-np.inf) > text.max():
            text[:] = -np.inf
    picked = masked.argmax(-1)
    return picked, log_softmax(masked)[np.arange(len(picked)), picked]


def unpack_filters(runs, weights, bins: int = 201):
    """(n, 2) and weights -> (n, bins)."""
    filters = np.zeros((len(runs), bins))
    ends = np.cumsum(runs[:, 1])
    for row, (first, count), end in zip(filters, runs, ends, strict=True):
        row[first : first + count] = weights[end - count : end]
    return filters


def log_mel(samples, padding, runs, weights):
    """Cut into frames, windowed, transformed and filtered, one whole array after another."""
    samples = np.pad(samples, ((0, 0), (0, int(padding[0]))))
    mirrored = np.pad(samples, ((0, 0), (200, 200)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, 400, axis=1)[:, ::160][:, : samples.shape[1] // 160]
    power = np.abs(np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)))) ** 2
    logs = np.log10(np.maximum(unpack_filters(runs, weights) @ power.transpose(0, 2, 1), 1e-10))
    return (np.maximum(logs, logs.max(axis=(1, 2), keepdims=True) - 8) + 4) / 4

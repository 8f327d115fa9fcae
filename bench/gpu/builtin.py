"""The same functions as our ops, as graphs of what MAX brings: its built-in ops and the kernels of `max.nn.kernels`.

Written as a user of MAX would who wants speed: weights (N, K) as `max.nn.Linear` has them, so that the compiler fuses the
transposition into the product and bias, GELU and residual behind it; attention through MAX's flash attention, the cache
in MAX's pages. All sizes but the number of rows are known when these graphs are compiled, and matrices are padded to whole
tiles (multiples of 128 columns, of 32 in depth): with others, and always in float16, MAX calls cuBLAS instead of a kernel
of its own.
"""

import os

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, DeviceRef, TensorValue, ops
from max.nn.attention import MHAMaskVariant
from max.nn.kernels import (
    flash_attention_gpu,
    flash_attention_padded_kv_cache,
    kv_cache_store_paged_padded,
)
from max.nn.kv_cache import MHAKVCacheParams, PagedCacheValues

from max_whisper.ops import HEAD

os.unsetenv("PYTHONEXECUTABLE")
"""`max.nn` has just set it, unseen by `os.environ`, to the first Python on PATH: every child would be that one."""

SCALE = HEAD**-0.5


def linear(
    x: TensorValue, weight: TensorValue, bias: TensorValue, residual: TensorValue | None = None, *, gelu: bool = False
) -> TensorValue:
    """As `ops.linear`: x (M, K), weight (N, K)."""
    y = ops.matmul(x, ops.transpose(weight, 0, 1)) + bias
    if gelu:
        y = ops.gelu(y)
    return y if residual is None else y + residual


def conv1d(
    x: TensorValue, weight: TensorValue, bias: TensorValue, positions: TensorValue | None = None, *, stride: int
) -> TensorValue:
    """As `ops.conv1d`: three neighbouring frames side by side, then a product; x (B, T, C), weight (N, 3 * C).

    Written so that no vendor's library is needed, whose machine code the phantom cannot run.
    """
    batch, length, channels = x.shape
    padded = ops.pad(x, [0, 0, 1, 1, 0, 0])
    taps = [padded[:, j : j + int(length) : stride] for j in range(3)]
    rows = ops.reshape(ops.concat(taps, axis=2), [batch * (int(length) // stride), 3 * int(channels)])
    y = ops.reshape(linear(rows, weight, bias, gelu=True), [batch, int(length) // stride, weight.shape[0]])
    return y if positions is None else y + positions


def layer_norm(x: TensorValue, gamma: TensorValue, beta: TensorValue) -> TensorValue:
    """As `ops.layer_norm`."""
    return ops.layer_norm(x, gamma, beta, 1e-5)


def add_layer_norm(
    x: TensorValue, residual: TensorValue, gamma: TensorValue, beta: TensorValue
) -> tuple[TensorValue, TensorValue]:
    """As `ops.add_layer_norm`."""
    total = x + residual
    return total, layer_norm(total, gamma, beta)


def norm_linear(
    x: TensorValue, gamma: TensorValue, beta: TensorValue, weight: TensorValue, bias: TensorValue, *, gelu: bool
) -> TensorValue:
    """As `ops.norm_linear`."""
    return linear(layer_norm(x, gamma, beta), weight, bias, gelu=gelu)


def self_attention(rows: TensorValue, *, heads: int) -> TensorValue:
    """As `ops.self_attention`: rows (B, S, 3 * heads * 64)."""
    batch, length, _ = rows.shape
    parts = ops.split(rows, [heads * HEAD] * 3, axis=2)
    q, k, v = (ops.reshape(part, [batch, length, heads, HEAD]) for part in parts)
    y = flash_attention_gpu(q, k, v, mask_variant=MHAMaskVariant.NULL_MASK, scale=SCALE)
    return ops.reshape(y, [batch, length, heads * HEAD])


def attention(queries: TensorValue, keys: TensorValue, values: TensorValue) -> TensorValue:
    """As `ops.attention`, with keys and values (B, S, H, 64), which is how MAX reads them."""
    batch, length, _ = queries.shape
    heads = keys.shape[2]
    q = ops.reshape(queries, [batch, length, heads, HEAD])
    y = flash_attention_gpu(q, keys, values, mask_variant=MHAMaskVariant.NULL_MASK, scale=SCALE)
    return ops.reshape(y, [batch, length, heads * HEAD])


def cached_attention(
    rows: TensorValue,
    past: TensorValue,
    lengths: TensorValue,
    pages: TensorValue,
    longest: TensorValue,
    total: TensorValue,
    cache: BufferValue,
    *,
    heads: int,
) -> TensorValue:
    """As `ops.cached_attention`, over MAX's paged cache: keys and values (pages, 2, 1, page size, heads, 64) in one buffer.

    Args:
        rows: (B, T, 3 * heads * 64).
        past: (B) uint32: tokens in the cache.
        lengths: (B) uint32: T of each row.
        pages: (B, 1) uint32: the page of each row.
        longest: (1) uint32, on the host: the largest of `lengths`.
        total: (1) uint32, on the host: tokens after this step.
        cache: The pages.
        heads: H.
    """
    batch, length, _ = rows.shape
    parts = ops.split(rows, [heads * HEAD] * 3, axis=2)
    q, k, v = (ops.reshape(part, [batch, length, heads, HEAD]) for part in parts)
    packed = ops.constant([-1], DType.int64, device=DeviceRef.CPU())
    layer = ops.constant(0, DType.uint32, device=DeviceRef.CPU())
    paged = PagedCacheValues(cache, past, pages, longest, total, packed)
    for which, new in enumerate((k, v)):
        kv_cache_store_paged_padded(paged, new, lengths, layer, key_or_value=which)
    params = MHAKVCacheParams(dtype=rows.dtype, head_dim=HEAD, num_layers=1, devices=[rows.device], n_kv_heads=heads)
    y = flash_attention_padded_kv_cache(params, q, paged, layer, lengths, MHAMaskVariant.CAUSAL_MASK, SCALE)
    return ops.reshape(y, [batch, length, heads * HEAD])


def embed(tokens: TensorValue, at: TensorValue, vocabulary: TensorValue, positions: TensorValue) -> TensorValue:
    """As `ops.embed`; the positions at (B, T) stand for the numbers of tokens in the caches."""
    return ops.gather(vocabulary, tokens, axis=0) + ops.gather(positions, at, axis=0)


def greedy(
    hidden: TensorValue, vocabulary: TensorValue, mask: TensorValue, text: TensorValue, *, timestamp_begin: int
) -> tuple[TensorValue, TensorValue]:
    """As `ops.greedy`: hidden (B, D), vocabulary (V, D) -> tokens and log probabilities (B, 1). Both masks (V) are
    float32 and added to logits: what is suppressed, and all text."""
    logits = ops.cast(ops.matmul(hidden, ops.transpose(vocabulary, 0, 1)), DType.float32) + mask
    log_probs = ops.logsoftmax(logits)
    timestamps = ops.sum(ops.exp(log_probs[:, timestamp_begin:]), axis=-1)
    best_text = ops.exp(ops.max(log_probs[:, :timestamp_begin], axis=-1))
    log_probs = ops.logsoftmax(ops.where(timestamps > best_text, logits + text, logits))
    return ops.argmax(log_probs, axis=-1), ops.max(log_probs, axis=-1)


def log_mel(frames: TensorValue, dft: TensorValue, filters: TensorValue, *, mels: int) -> TensorValue:
    """As `ops.log_mel`, from frames (T, 416) that the host has cut, windowed and padded: the DFT as a matrix, 256 rows of
    cosines and 256 of sines, powers, filters (128, 256), logarithm -> (mels, T)."""
    bins = int(filters.shape[1])
    squares = ops.matmul(frames, ops.transpose(dft, 0, 1)) ** 2
    powers = squares[:, :bins] + squares[:, bins:]
    energies = ops.transpose(ops.matmul(powers, ops.transpose(filters, 0, 1))[:, :mels], 0, 1)
    logs = ops.log(ops.max(energies, 1e-10)) / float(np.log(10))
    top = ops.max(ops.max(logs, axis=0), axis=1)
    return (ops.max(logs, top - 8) + 4) / 4


def pack_heads(rows: TensorValue, *, heads: int) -> tuple[TensorValue, TensorValue]:
    """As `ops.pack_heads`: keys and values (B, S, H, 64), as MAX's attention reads them."""
    batch, length, _ = rows.shape
    keys, values = ops.split(rows, [heads * HEAD] * 2, axis=2)
    return ops.reshape(keys, [batch, length, heads, HEAD]), ops.reshape(values, [batch, length, heads, HEAD])

"""Attention, and how keys and values lie for it, `kernels/ops/attention.mojo`."""

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, Dim, DimLike, TensorType, TensorValue

from max_whisper import packing
from max_whisper.config import HEAD_DIM as HEAD
from max_whisper.ops.call import call, call_in_place, like
from max_whisper.target import Factors


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
    keys, values = call("whisper_pack_heads", [rows], types)
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
    out = like(queries, [queries.shape[0], queries.shape[1], values.shape[1] * HEAD])
    return call("whisper_attention", [queries, keys, values], [out], rounded=rounded, key_count=key_count)[0]


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
    out = like(rows, [rows.shape[0], rows.shape[1], heads * HEAD])
    if rows.device.is_cpu():
        if factors is None:
            return attention(rows, *pack_heads(rows, heads=heads))
        packed = pack_heads(rows, heads=heads, dtype=DType[factors.dtype], terms=factors.terms)
        return call("whisper_packed_self_attention", [rows, *packed], [out])[0]
    return call("whisper_self_attention", [rows], [out])[0]


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
    out = like(rows, [rows.shape[0], rows.shape[1], values.shape[1] * HEAD])
    return call_in_place("whisper_cached_attention", [rows, past, keys, values], [out])[0]

"""The ops of attention: laying keys and values out, attention over all keys, causal attention over a KV cache."""

import extensibility
from extensibility import InputTensor, OutputTensor, _MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv

from ..attention.cpu import HEAD, Attention
from ..attention.heads import store_heads
from ..cpu.tile import PANEL
from ..data import data, require, require_contiguous, require_size


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

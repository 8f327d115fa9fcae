"""The ops of attention: laying keys and values out, attention over all keys, causal attention over a KV cache.

Keys lie in panels of 16 on a CPU, (B, H, ceil(S/16), 64, 16), and like values on a GPU, (B, H, S, 64). In bfloat16 and int16 on
a CPU both lie in pairs: `attention/pairs.mojo` and `attention/integers.mojo`; in bytes as `attention/bytes.mojo` says."""

import extensibility
from extensibility import InputTensor, OutputTensor, _MutableInputTensor
from max.gpu.host import DeviceContext
from std.utils import IndexList

from ..attention.bytes import byte_rows
from ..attention.cpu import Attention, attend
from ..attention.gpu.launch import AttentionOnGPU, enqueue_pack_heads
from ..attention.heads import store_heads
from ..attention.integers import integer_rows
from ..attention.pairs import Pairs, may_pair, pair_rows
from ..attention.strip import HEAD, StripSoftmax
from ..attention.strip_bfloat16 import Bfloat16Strips
from ..attention.strip_float32 import Float32Strips
from ..attention.strip_int16 import Int16Strips
from ..attention.strip_split import SplitStrips
from ..cpu.split_amx import TERMS
from ..cpu.threads import ForkJoin
from ..data import Data, data, require, require_contiguous, require_size
from .caches import (
    require_audio,
    require_bytes,
    require_integers,
    require_keys_and_values,
    require_pairs,
    require_room,
)


@extensibility.register("whisper_pack_heads")
struct PackHeads:
    """Packs keys and values for attention: rows (B, S, N), whose last 2*H*64 columns are keys and values,
    -> keys and values of the device's layout."""

    @staticmethod
    def execute[
        dtype: DType, cache_type: DType, keys_rank: Int, values_rank: Int, //, target: StaticString
    ](
        keys: OutputTensor[dtype=cache_type, rank=keys_rank, ...],
        values: OutputTensor[dtype=cache_type, rank=values_rank, ...],
        rows: InputTensor[dtype=dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        comptime op = "pack_heads"
        var batch = rows.dim_size(0)
        var length = rows.dim_size(1)
        var columns = rows.dim_size(2)
        var heads = values.dim_size(1)
        _require_columns[op](columns, 2 * heads * HEAD, "rows")
        require_contiguous(rows, op, "rows")
        comptime if target == "cpu" and cache_type == DType.bfloat16:
            var terms = require_pairs[op](keys.shape(), values.shape(), batch, length)
            comptime for t in range(1, TERMS + 1):
                if t == terms:
                    pair_rows[t](
                        _as[DType.bfloat16](data(keys)),
                        _as[DType.bfloat16](data(values)),
                        _as[DType.float32](data(rows)),
                        columns,
                        batch,
                        heads,
                        length,
                    )
        elif target == "cpu" and cache_type == DType.int16:
            require_integers[op](keys.shape(), values.shape(), batch, length)
            integer_rows(
                _as[DType.int16](data(keys)),
                _as[DType.int16](data(values)),
                _as[DType.float32](data(rows)),
                columns,
                batch,
                heads,
                length,
            )
        elif target == "cpu" and cache_type == DType.int8:
            require_bytes[op](keys.shape(), values.shape(), batch, length)
            byte_rows(
                _as[DType.int8](data(keys)),
                _as[DType.int8](data(values)),
                _as[DType.float32](data(rows)),
                columns,
                batch,
                heads,
                length,
                ForkJoin(),
            )
        else:
            require_keys_and_values[target, op](keys.shape(), values.shape(), batch)
            require_size(values.dim_size(2), length, op, "S of the values")
            comptime if target == "cpu":
                store_heads(
                    data(keys), data(values), length, data(rows), columns, None, batch, heads, length, ForkJoin()
                )
            else:
                var first = data(rows).unsafe_offset(columns - 2 * heads * HEAD)
                enqueue_pack_heads(
                    _as[dtype](data(keys)), _as[dtype](data(values)), first, columns, batch, heads, length, ctx
                )


@extensibility.register("whisper_attention")
struct AttentionOp:
    """Computes attention over all keys: queries (B, T, N) whose first H*64 columns are read, keys, values (B, H, S, 64)
    -> (B, T, H*64).

    Whether they are rounded says whether float16 may become bfloat16 on a CPU that multiplies it: `attention/cpu.mojo`. Of keys
    and values of bytes, whose shapes don't tell, S is a parameter.
    """

    @staticmethod
    def execute[
        dtype: DType,
        cache_type: DType,
        keys_rank: Int,
        values_rank: Int,
        //,
        target: StaticString,
        rounded: Bool,
        key_count: Int,
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        queries: InputTensor[dtype=dtype, rank=3, ...],
        keys: InputTensor[dtype=cache_type, rank=keys_rank, ...],
        values: InputTensor[dtype=cache_type, rank=values_rank, ...],
        ctx: DeviceContext,
    ) raises:
        comptime op = "attention"
        var batch = queries.dim_size(0)
        var length = queries.dim_size(1)
        var columns = queries.dim_size(2)
        var heads = values.dim_size(1)
        var capacity = require_audio[cache_type, target, op](keys.shape(), values.shape(), batch, key_count)
        require(capacity > 0, op, "there must be at least one key")
        _require_columns[op](columns, heads * HEAD, "queries")
        _require_output[op](output.shape(), batch, length, heads)
        require_contiguous(queries, op, "queries")
        require_contiguous(keys, op, "keys")
        require_contiguous(values, op, "values")
        comptime if target == "cpu":
            var pairs = Pairs(may_pair[cache_type](rounded), batch * heads, capacity, length)
            attend[rounded=rounded](
                data(output),
                data(queries),
                columns,
                data(keys),
                data(values),
                capacity,
                batch,
                heads,
                length,
                pairs,
                ForkJoin(),
            )
            pairs.free()
        else:
            AttentionOnGPU(
                data(output),
                data(queries),
                columns,
                _as[dtype](data(keys)),
                _as[dtype](data(values)),
                capacity,
                data(queries),
                columns,
                0,
                None,
                batch,
                heads,
                length,
            ).enqueue(ctx)


@extensibility.register("whisper_self_attention")
struct SelfAttention:
    """Computes attention of all rows over all rows, on a GPU: rows (B, S, 3*H*64) of queries, keys and values
    -> (B, S, H*64). A CPU packs keys first: `whisper_pack_heads`, then `whisper_attention`."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        rows: InputTensor[dtype=dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target != "cpu", "self_attention has no CPU body: pack_heads, then attention"
        comptime op = "self_attention"
        var batch = rows.dim_size(0)
        var length = rows.dim_size(1)
        var columns = rows.dim_size(2)
        var heads = columns // (3 * HEAD)
        require_size(columns, 3 * heads * HEAD, op, "3 * H * 64 of the rows")
        _require_output[op](output.shape(), batch, length, heads)
        require_contiguous(rows, op, "rows")
        AttentionOnGPU(
            data(output),
            data(rows),
            columns,
            data(rows),
            data(rows),
            0,
            data(rows).unsafe_offset(heads * HEAD),
            columns,
            length,
            None,
            batch,
            heads,
            length,
        ).enqueue(ctx)


@extensibility.register("whisper_packed_self_attention")
struct PackedSelfAttention:
    """Computes attention of all rows over all rows, on a CPU, by products of pairs: rows (B, S, N) whose first H*64 columns
    are queries, their keys and values from `whisper_pack_heads` in int16, or one or two terms of bfloat16 -> (B, S, H*64).
    """

    @staticmethod
    def execute[
        factor_type: DType, //, target: StaticString
    ](
        output: OutputTensor[dtype=DType.float32, rank=3, ...],
        rows: InputTensor[dtype=DType.float32, rank=3, ...],
        keys: InputTensor[dtype=factor_type, rank=5, ...],
        values: InputTensor[dtype=factor_type, rank=5, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "packed_self_attention has no GPU body: self_attention reads rows"
        comptime op = "packed_self_attention"
        var batch = rows.dim_size(0)
        var length = rows.dim_size(1)
        var columns = rows.dim_size(2)
        var heads = values.dim_size(1)
        _require_columns[op](columns, heads * HEAD, "rows")
        _require_output[op](output.shape(), batch, length, heads)
        require_contiguous(rows, op, "rows")
        require_contiguous(keys, op, "keys")
        require_contiguous(values, op, "values")

        def attend_by[Strips: StripSoftmax]() {imm}:
            Attention[Strips](
                data(output).unsafe_bitcast[Scalar[Strips.dtype]](),
                data(rows).unsafe_bitcast[Scalar[Strips.dtype]](),
                columns,
                data(keys).unsafe_bitcast[Scalar[Strips.cache_type]](),
                data(values).unsafe_bitcast[Scalar[Strips.cache_type]](),
                length,
                None,
                batch,
                heads,
                length,
            ).run[causal=False](ForkJoin())

        comptime if factor_type == DType.int16:
            require_integers[op](keys.shape(), values.shape(), batch, length)
            attend_by[Int16Strips]()
        else:
            comptime assert factor_type == DType.bfloat16, "keys and values in pairs are int16 or bfloat16"
            if require_pairs[op](keys.shape(), values.shape(), batch, length) == TERMS:
                attend_by[SplitStrips]()
            else:
                attend_by[Bfloat16Strips]()


@extensibility.register("whisper_cached_attention")
struct CachedAttention:
    """Computes causal attention over a KV cache, after appending to it in place: rows (B, T, 3*H*64) of queries, keys and
    values, past (B) the keys each row of the cache holds, the cache's keys, its values (B, H, C, 64) -> (B, T, H*64).

    On a GPU the host cannot see `past`; the kernels take it for at most C - T and at least 0."""

    @staticmethod
    def execute[
        dtype: DType, cache_type: DType, keys_rank: Int, //, target: StaticString
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        rows: InputTensor[dtype=dtype, rank=3, ...],
        past: InputTensor[dtype=DType.int32, rank=1, ...],
        keys: _MutableInputTensor[dtype=cache_type, rank=keys_rank, ...],
        values: _MutableInputTensor[dtype=cache_type, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        comptime op = "cached_attention"
        var batch = rows.dim_size(0)
        var length = rows.dim_size(1)
        var columns = rows.dim_size(2)
        var heads = values.dim_size(1)
        var capacity = values.dim_size(2)
        require_keys_and_values[target, op](keys.shape(), values.shape(), batch)
        require_size(columns, 3 * heads * HEAD, op, "3 * H * 64 of the rows")
        require_size(past.dim_size(0), batch, op, "B of past")
        _require_output[op](output.shape(), batch, length, heads)
        require_contiguous(rows, op, "rows")
        comptime if target == "cpu":
            require_room[op](past, batch, length, capacity)
            store_heads(
                data(keys), data(values), capacity, data(rows), columns, data(past), batch, heads, length, ForkJoin()
            )
            Attention[Float32Strips[dtype, cache_type]](
                data(output),
                data(rows),
                columns,
                data(keys),
                data(values),
                capacity,
                data(past),
                batch,
                heads,
                length,
            ).run[causal=True](ForkJoin())
        else:
            require(length <= capacity, op, String(length, " keys are to come, the cache takes ", capacity))
            AttentionOnGPU(
                data(output),
                data(rows),
                columns,
                _as[dtype](data(keys)),
                _as[dtype](data(values)),
                capacity,
                data(rows).unsafe_offset(heads * HEAD),
                columns,
                length,
                data(past),
                batch,
                heads,
                length,
            ).enqueue(ctx)


def _as[dtype: DType](x: Data) -> Data[dtype]:
    """The address, once it is sure that the elements have this dtype."""
    comptime assert (
        x.T.dtype == dtype
    ), "on a GPU, keys and values have the dtype of the rows; on a CPU they are made of float32"
    return x.unsafe_bitcast[Scalar[dtype]]()


def _require_columns[op: StaticString](found: Int, least: Int, name: StaticString) raises:
    """Raises unless rows are wide enough."""
    require(found >= least, op, String(name, " have ", found, " columns, expected at least ", least))


def _require_output[op: StaticString](output: IndexList[3, ...], batch: Int, length: Int, heads: Int) raises:
    """Raises unless the output is (B, T, H*64)."""
    require_size(output[0], batch, op, "B of the output")
    require_size(output[1], length, op, "T of the output")
    require_size(output[2], heads * HEAD, op, "H * 64 of the output")

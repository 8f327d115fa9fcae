"""The op of a whole block of the decoder, on a CPU: a GPU runs its kernels one by one."""

import extensibility
from extensibility import InputTensor, OutputTensor, _MutableInputTensor
from std.math import ceildiv

from ..attention.strip import HEAD
from ..cpu.tile import PANEL
from ..data import data, require, require_contiguous, require_size
from ..decoder_block.cpu import Cache, DecoderBlock, Layer, Norm
from .attention import require_audio, require_keys_and_values, require_room
from .weights import require_packed


@extensibility.register("whisper_decoder_block")
struct DecoderBlockOp:
    """Computes self-attention over a KV cache, after appending to it in place, cross-attention and MLP, each added to its
    input: x (B, T, d), past (B), the cache's keys and values (B, H, C, 64), the audio's keys and values (B, H, S, 64) or bytes, and
    of each layer its packed weight and bias, of each norm gamma and beta (d), in the order of use -> (B, T, d)."""

    @staticmethod
    def execute[
        weight_type: DType,
        cache_type: DType,
        audio_type: DType,
        audio_rank: Int,
        //,
        target: StaticString,
        epsilon: Float32,
        audio_length: Int,
    ](
        output: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        past: InputTensor[dtype=DType.int32, rank=1, ...],
        keys: _MutableInputTensor[dtype=cache_type, rank=5, ...],
        values: _MutableInputTensor[dtype=cache_type, rank=4, ...],
        audio_keys: InputTensor[dtype=audio_type, rank=5, ...],
        audio_values: InputTensor[dtype=audio_type, rank=audio_rank, ...],
        gamma: InputTensor[dtype=DType.float32, rank=1, ...],
        beta: InputTensor[dtype=DType.float32, rank=1, ...],
        qkv_weight: InputTensor[dtype=weight_type, rank=3, ...],
        qkv_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        out_weight: InputTensor[dtype=weight_type, rank=3, ...],
        out_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        cross_gamma: InputTensor[dtype=DType.float32, rank=1, ...],
        cross_beta: InputTensor[dtype=DType.float32, rank=1, ...],
        query_weight: InputTensor[dtype=weight_type, rank=3, ...],
        query_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        cross_out_weight: InputTensor[dtype=weight_type, rank=3, ...],
        cross_out_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        mlp_gamma: InputTensor[dtype=DType.float32, rank=1, ...],
        mlp_beta: InputTensor[dtype=DType.float32, rank=1, ...],
        mlp_in_weight: InputTensor[dtype=weight_type, rank=3, ...],
        mlp_in_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        mlp_out_weight: InputTensor[dtype=weight_type, rank=3, ...],
        mlp_out_bias: InputTensor[dtype=DType.float32, rank=1, ...],
    ) raises:
        comptime assert target == "cpu", "a GPU runs the kernels of a block one by one"
        comptime op = "decoder_block"
        var batch = x.dim_size(0)
        var length = x.dim_size(1)
        var d = x.dim_size(2)
        var heads = values.dim_size(1)
        var capacity = values.dim_size(2)
        require_size(d, heads * HEAD, op, "d of x")
        comptime for axis in range(3):
            require_size(output.dim_size(axis), x.dim_size(axis), op, "a dimension of the output")
        require_contiguous(x, op, "x")
        require_keys_and_values[target, op](keys.shape(), values.shape(), batch)
        require_size(past.dim_size(0), batch, op, "B of past")
        require_room[op](past, batch, length, capacity)
        var found = require_audio[target, op](audio_keys.shape(), audio_values.shape(), batch, audio_length)
        require_size(found, audio_length, op, "S of the audio")
        require_size(audio_values.dim_size(1), heads, op, "H of the audio's values")
        require(audio_length > 0, op, "there must be at least one key of the audio")
        require_contiguous(audio_keys, op, "the audio's keys")
        require_contiguous(audio_values, op, "the audio's values")
        var block = DecoderBlock[weight_type, cache_type, audio_type](
            _norm[op](gamma, beta, d, "gamma and beta"),
            _layer[op](qkv_weight, qkv_bias, 3 * d, d, "N of qkv"),
            _layer[op](out_weight, out_bias, d, d, "N of out"),
            _norm[op](cross_gamma, cross_beta, d, "gamma and beta of cross-attention"),
            _layer[op](query_weight, query_bias, d, d, "N of the query"),
            _layer[op](cross_out_weight, cross_out_bias, d, d, "N of cross-attention's out"),
            _norm[op](mlp_gamma, mlp_beta, d, "gamma and beta of the MLP"),
            _layer[op](mlp_in_weight, mlp_in_bias, 4 * d, d, "N of mlp.0"),
            _layer[op](mlp_out_weight, mlp_out_bias, d, 4 * d, "N of mlp.2"),
            Cache(data(keys), data(values), capacity),
            Cache(data(audio_keys), data(audio_values), audio_length),
            data(past),
            batch,
            length,
            heads,
            epsilon,
        )
        block.run(data(output), data(x))


def _norm[
    op: StaticString
](
    gamma: InputTensor[dtype=DType.float32, rank=1, ...],
    beta: InputTensor[dtype=DType.float32, rank=1, ...],
    size: Int,
    name: StaticString,
) raises -> Norm:
    require_size(gamma.dim_size(0), size, op, name)
    require_size(beta.dim_size(0), size, op, name)
    return Norm(data(gamma), data(beta))


def _layer[
    weight_type: DType, //, op: StaticString
](
    weight: InputTensor[dtype=weight_type, rank=3, ...],
    bias: InputTensor[dtype=DType.float32, rank=1, ...],
    columns: Int,
    depth: Int,
    name: StaticString,
) raises -> Layer[weight_type]:
    require_size(bias.dim_size(0), columns, op, name)
    require_packed(weight, columns, depth, op)
    return Layer(data(weight), data(bias))

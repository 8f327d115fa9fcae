"""The ops of the whole decoder, on a CPU: a GPU runs its kernels one by one."""

import extensibility
from extensibility import InputTensor, OutputTensor, _MutableInputTensor
from std.utils import IndexList

from ..attention.strip import HEAD
from ..cpu.layers import Layer, Norm
from ..data import Data, data, require, require_between, require_contiguous, require_size
from ..decoder.audio import audio_heads
from ..decoder.block import Cache, DecoderBlock
from ..decoder.cpu import Decoder
from ..greedy.said import NOTHING, Grammar
from .caches import require_audio, require_keys_and_values
from .vocabulary import check_vocabulary, screened_vocabulary
from .weights import require_packed

comptime _op: StaticString = "decoder"


@extensibility.register("whisper_decoder")
struct DecoderOp:
    """Takes tokens in and picks up to S more for each row, each under the rules that follow from those before it.

    tokens (B, T), past (B), last (B) the position of each row's last valid token, rules (B, 4) of the first pick, as
    `whisper_screened_greedy` has them, said (B, 3) the token before the newest that was picked, the newest, the newest timestamp, -1
    where there is none, suppress_mask (V), the vocabulary, its rotation and screen, positions (n_ctx, d), gamma and beta of the last
    norm; of all L blocks, one behind the other, keys and values of the text (L, B', H, C, 64), in place, keys and values of the audio
    (L, B', H, S, 64) or bytes, of each norm gamma and beta (L, d) and of each layer the packed weight and bias, in the order of use
    -> picked (B, S) and log probabilities (B, S), in place, the states of what was taken in (B, T, d).

    The run ends when a row picks the end of text; behind the last token picked is -1. Caches may have more than B rows.
    """

    @staticmethod
    def execute[
        weight_type: DType,
        cache_type: DType,
        audio_type: DType,
        vocabulary_type: DType,
        audio_rank: Int,
        //,
        target: StaticString,
        epsilon: Float32,
        audio_length: Int,
        end: Int,
        timestamp_begin: Int,
    ](
        states: OutputTensor[dtype=DType.float32, rank=3, ...],
        tokens: InputTensor[dtype=DType.int32, rank=2, ...],
        past: InputTensor[dtype=DType.int32, rank=1, ...],
        last: InputTensor[dtype=DType.int32, rank=1, ...],
        rules: InputTensor[dtype=DType.int32, rank=2, ...],
        said: InputTensor[dtype=DType.int32, rank=2, ...],
        suppress_mask: InputTensor[dtype=DType.uint8, rank=1, ...],
        picked: _MutableInputTensor[dtype=DType.int32, rank=2, ...],
        log_probs: _MutableInputTensor[dtype=DType.float32, rank=2, ...],
        keys: _MutableInputTensor[dtype=cache_type, rank=6, ...],
        values: _MutableInputTensor[dtype=cache_type, rank=5, ...],
        audio_keys: InputTensor[dtype=audio_type, rank=6, ...],
        audio_values: InputTensor[dtype=audio_type, rank=audio_rank, ...],
        vocabulary: InputTensor[dtype=vocabulary_type, rank=2, ...],
        rotation: InputTensor[dtype=DType.float16, rank=3, ...],
        screen: InputTensor[dtype=DType.int8, rank=3, ...],
        positions: InputTensor[dtype=DType.float32, rank=2, ...],
        last_gamma: InputTensor[dtype=DType.float32, rank=1, ...],
        last_beta: InputTensor[dtype=DType.float32, rank=1, ...],
        gamma: InputTensor[dtype=DType.float32, rank=2, ...],
        beta: InputTensor[dtype=DType.float32, rank=2, ...],
        qkv_weight: InputTensor[dtype=weight_type, rank=4, ...],
        qkv_bias: InputTensor[dtype=DType.float32, rank=2, ...],
        out_weight: InputTensor[dtype=weight_type, rank=4, ...],
        out_bias: InputTensor[dtype=DType.float32, rank=2, ...],
        cross_gamma: InputTensor[dtype=DType.float32, rank=2, ...],
        cross_beta: InputTensor[dtype=DType.float32, rank=2, ...],
        query_weight: InputTensor[dtype=weight_type, rank=4, ...],
        query_bias: InputTensor[dtype=DType.float32, rank=2, ...],
        cross_out_weight: InputTensor[dtype=weight_type, rank=4, ...],
        cross_out_bias: InputTensor[dtype=DType.float32, rank=2, ...],
        mlp_gamma: InputTensor[dtype=DType.float32, rank=2, ...],
        mlp_beta: InputTensor[dtype=DType.float32, rank=2, ...],
        mlp_in_weight: InputTensor[dtype=weight_type, rank=4, ...],
        mlp_in_bias: InputTensor[dtype=DType.float32, rank=2, ...],
        mlp_out_weight: InputTensor[dtype=weight_type, rank=4, ...],
        mlp_out_bias: InputTensor[dtype=DType.float32, rank=2, ...],
    ) raises:
        comptime assert target == "cpu", "a GPU runs the kernels of the decoder one by one"
        comptime assert (
            0 <= end < timestamp_begin
        ), "tokens are not negative, and timestamps come behind the end of text"
        var batch = tokens.dim_size(0)
        var length = tokens.dim_size(1)
        var layers = keys.dim_size(0)
        var capacity = values.dim_size(3)
        var heads = values.dim_size(2)
        var room = keys.dim_size(1)
        var d = positions.dim_size(1)
        var steps = picked.dim_size(1)
        var n_vocab = suppress_mask.dim_size(0)

        require_size(d, heads * HEAD, _op, "d of the positions")
        require(layers > 0 and length > 0 and steps > 0, _op, "L, T and S must be positive")
        require(batch <= room, _op, String("B is ", batch, ", the caches have ", room, " rows"))
        require_size(states.dim_size(0), batch, _op, "B of the states")
        require_size(states.dim_size(1), length, _op, "T of the states")
        require_size(states.dim_size(2), d, _op, "d of the states")
        require_size(picked.dim_size(0), batch, _op, "B of the tokens picked")
        require_size(log_probs.dim_size(0), batch, _op, "B of the log probabilities")
        require_size(log_probs.dim_size(1), steps, _op, "S of the log probabilities")
        _require_rows(tokens, past, last, rules, said, n_vocab, min(positions.dim_size(0), capacity), steps)
        require_contiguous(suppress_mask, _op, "suppress_mask")

        require_size(values.dim_size(0), layers, _op, "L of the values")
        require_keys_and_values["cpu", _op](_behind(keys.shape()), _behind(values.shape()), room)
        require_size(audio_keys.dim_size(0), layers, _op, "L of the audio's keys")
        require_size(audio_values.dim_size(0), layers, _op, "L of the audio's values")
        var found = require_audio[audio_type, "cpu", _op](
            _behind(audio_keys.shape()), _behind(audio_values.shape()), audio_keys.dim_size(1), audio_length
        )
        require_size(found, audio_length, _op, "S of the audio")
        require_size(audio_keys.dim_size(1), room, _op, "B of the audio's keys")
        require_size(audio_values.dim_size(2), heads, _op, "H of the audio's values")
        require(audio_length > 0, _op, "there must be at least one key of the audio")
        require_contiguous(audio_keys, _op, "the audio's keys")
        require_contiguous(audio_values, _op, "the audio's values")

        check_vocabulary["cpu"](vocabulary, d, n_vocab, _op)
        require_contiguous(positions, _op, "positions")
        require_size(last_gamma.dim_size(0), d, _op, "gamma of the last norm")
        require_size(last_beta.dim_size(0), d, _op, "beta of the last norm")

        var blocks = List[DecoderBlock[weight_type, cache_type, audio_type]](capacity=layers)
        for i in range(layers):
            blocks.append(
                DecoderBlock[weight_type, cache_type, audio_type](
                    _norm(gamma, beta, i, layers, d, "gamma and beta"),
                    _layer[_op](qkv_weight, qkv_bias, i, layers, 3 * d, d, "N of qkv"),
                    _layer[_op](out_weight, out_bias, i, layers, d, d, "N of out"),
                    _norm(cross_gamma, cross_beta, i, layers, d, "gamma and beta of cross-attention"),
                    _layer[_op](query_weight, query_bias, i, layers, d, d, "N of the query"),
                    _layer[_op](cross_out_weight, cross_out_bias, i, layers, d, d, "N of cross-attention's out"),
                    _norm(mlp_gamma, mlp_beta, i, layers, d, "gamma and beta of the MLP"),
                    _layer[_op](mlp_in_weight, mlp_in_bias, i, layers, 4 * d, d, "N of mlp.0"),
                    _layer[_op](mlp_out_weight, mlp_out_bias, i, layers, d, 4 * d, "N of mlp.2"),
                    Cache(
                        _of(data(keys), keys.size(), i, layers), _of(data(values), values.size(), i, layers), capacity
                    ),
                    Cache(
                        _of(data(audio_keys), audio_keys.size(), i, layers),
                        _of(data(audio_values), audio_values.size(), i, layers),
                        audio_length,
                    ),
                    batch,
                    heads,
                    epsilon,
                )
            )
        var decoder = Decoder(
            blocks^,
            data(positions),
            Norm(data(last_gamma), data(last_beta)),
            screened_vocabulary(vocabulary, rotation, screen, n_vocab, d, _op),
            data(suppress_mask),
            Grammar(Int32(end), Int32(timestamp_begin), Int32(n_vocab)),
            batch,
            heads,
            epsilon,
        )
        decoder.run(
            data(picked),
            data(log_probs),
            data(states),
            data(tokens),
            data(past),
            data(last),
            data(rules),
            data(said),
            length,
            steps,
        )


@extensibility.register("whisper_audio_heads")
struct AudioHeads:
    """Computes the keys and values of the audio for all L blocks: states (B, S, d), packed weights (L, ...) and biases (L, 2*d)
    -> keys and values (L, B, H, ...), as `whisper_decoder` takes them."""

    @staticmethod
    def execute[
        weight_type: DType, cache_type: DType, values_rank: Int, //, target: StaticString
    ](
        keys: OutputTensor[dtype=cache_type, rank=6, ...],
        values: OutputTensor[dtype=cache_type, rank=values_rank, ...],
        states: InputTensor[dtype=DType.float32, rank=3, ...],
        weight: InputTensor[dtype=weight_type, rank=4, ...],
        bias: InputTensor[dtype=DType.float32, rank=2, ...],
    ) raises:
        comptime assert target == "cpu", "a GPU lays out the keys and values of one block at a time"
        comptime op = "audio_heads"
        var count = weight.dim_size(0)
        var batch = states.dim_size(0)
        var length = states.dim_size(1)
        var d = states.dim_size(2)
        var heads = keys.dim_size(2)
        require(count > 0, op, "L must be positive")
        require_size(d, heads * HEAD, op, "d of the states")
        require_contiguous(states, op, "states")
        require_size(keys.dim_size(0), count, op, "L of the keys")
        require_size(values.dim_size(0), count, op, "L of the values")
        var found = require_audio[cache_type, "cpu", op](_behind(keys.shape()), _behind(values.shape()), batch, length)
        require_size(found, length, op, "S of the values")
        var layers = List[Layer[weight_type]](capacity=count)
        for i in range(count):
            layers.append(_layer[op](weight, bias, i, count, 2 * d, d, "N of a layer"))
        audio_heads(
            data(keys),
            keys.size() // count,
            data(values),
            values.size() // count,
            data(states),
            layers,
            batch,
            length,
            heads,
        )


def _require_rows(
    tokens: InputTensor[dtype=DType.int32, rank=2, ...],
    past: InputTensor[dtype=DType.int32, rank=1, ...],
    last: InputTensor[dtype=DType.int32, rank=1, ...],
    rules: InputTensor[dtype=DType.int32, rank=2, ...],
    said: InputTensor[dtype=DType.int32, rank=2, ...],
    n_vocab: Int,
    room: Int,
    steps: Int,
) raises:
    """Raises unless what is said of each row is for B rows, and leads to nothing outside of a table or of `room` positions.
    """
    var batch = tokens.dim_size(0)
    var length = tokens.dim_size(1)
    require_size(past.dim_size(0), batch, _op, "B of past")
    require_size(last.dim_size(0), batch, _op, "B of last")
    require_size(rules.dim_size(0), batch, _op, "B of the rules")
    require_size(rules.dim_size(1), 4, _op, "the number of rules")
    require_size(said.dim_size(0), batch, _op, "B of what was said")
    require_size(said.dim_size(1), 3, _op, "the tokens that were said")
    require_contiguous(tokens, _op, "tokens")
    require_contiguous(rules, _op, "rules")
    require_contiguous(said, _op, "said")
    for b in range(batch):
        require_between(Int(past[b]), 0, room - length, _op, "past", b)
        require_between(Int(last[b]), 0, length - 1, _op, "last", b)
        require_between(Int(rules[b, 0]), 0, 255, _op, "rules", b, 0)
        var most = room - Int(past[b]) - Int(last[b])
        require(
            steps <= most,
            _op,
            String("row ", b, " has room for ", most, " tokens to be picked, ", steps, " are asked for"),
        )
        for t in range(length):
            require_between(Int(tokens[b, t]), 0, n_vocab - 1, _op, "tokens", b, t)
        for i in range(3):
            require_between(Int(said[b, i]), Int(NOTHING), n_vocab - 1, _op, "said", b, i)


def _behind[rank: Int, //](shape: IndexList[rank, ...]) -> IndexList[rank - 1]:
    """A shape without its first dimension."""
    var result = IndexList[rank - 1]()
    comptime for i in range(rank - 1):
        result[i] = shape[i + 1]
    return result


def _of[dtype: DType, //](stack: Data[dtype], size: Int, layer: Int, layers: Int) -> Data[dtype]:
    """One layer's part of what all have."""
    return stack.unsafe_offset(size // layers * layer)


def _norm(
    gamma: InputTensor[dtype=DType.float32, rank=2, ...],
    beta: InputTensor[dtype=DType.float32, rank=2, ...],
    layer: Int,
    layers: Int,
    size: Int,
    name: StaticString,
) raises -> Norm:
    require_size(gamma.dim_size(0), layers, _op, "L of a gamma")
    require_size(beta.dim_size(0), layers, _op, "L of a beta")
    require_size(gamma.dim_size(1), size, _op, name)
    require_size(beta.dim_size(1), size, _op, name)
    require_contiguous(gamma, _op, name)
    require_contiguous(beta, _op, name)
    return Norm(_of(data(gamma), gamma.size(), layer, layers), _of(data(beta), beta.size(), layer, layers))


def _layer[
    weight_type: DType, //, op: StaticString
](
    weight: InputTensor[dtype=weight_type, rank=4, ...],
    bias: InputTensor[dtype=DType.float32, rank=2, ...],
    layer: Int,
    layers: Int,
    columns: Int,
    depth: Int,
    name: StaticString,
) raises -> Layer[weight_type]:
    require_size(weight.dim_size(0), layers, op, "L of a weight")
    require_size(bias.dim_size(0), layers, op, "L of a bias")
    require_size(bias.dim_size(1), columns, op, name)
    require_contiguous(bias, op, name)
    require_packed(weight, columns, depth, op)
    return Layer(_of(data(weight), weight.size(), layer, layers), _of(data(bias), bias.size(), layer, layers))

"""The op of a block of the encoder, on a CPU: a GPU runs its kernels one by one."""

import extensibility
from extensibility import InputTensor, OutputTensor

from ..attention.strip import HEAD
from ..attention.strip_bfloat16 import Bfloat16Strips
from ..attention.strip_int16 import Int16Strips
from ..cpu.layers import Layer, Norm
from ..data import data, require, require_contiguous, require_size
from ..encoder.block import EncoderBlock
from .weights import require_packed

comptime _op: StaticString = "encoder_block"


@extensibility.register("whisper_encoder_block")
struct EncoderBlockOp:
    """Self-attention and MLP of the encoder: x (B, S, H*64); of each norm gamma and beta (d) and of each layer the packed weight
    and bias, in the order of use -> (B, S, H*64).

    Queries, keys, values and the weights of attention are rounded to `factor_type`: bfloat16 or int16.
    """

    @staticmethod
    def execute[
        weight_type: DType, //, target: StaticString, factor_type: DType, epsilon: Float32
    ](
        output: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        gamma: InputTensor[dtype=DType.float32, rank=1, ...],
        beta: InputTensor[dtype=DType.float32, rank=1, ...],
        qkv_weight: InputTensor[dtype=weight_type, rank=3, ...],
        qkv_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        out_weight: InputTensor[dtype=weight_type, rank=3, ...],
        out_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        mlp_gamma: InputTensor[dtype=DType.float32, rank=1, ...],
        mlp_beta: InputTensor[dtype=DType.float32, rank=1, ...],
        mlp_in_weight: InputTensor[dtype=weight_type, rank=3, ...],
        mlp_in_bias: InputTensor[dtype=DType.float32, rank=1, ...],
        mlp_out_weight: InputTensor[dtype=weight_type, rank=3, ...],
        mlp_out_bias: InputTensor[dtype=DType.float32, rank=1, ...],
    ) raises:
        comptime assert target == "cpu", "a GPU runs the kernels of a block one by one"
        var d = x.dim_size(2)
        require(d > 0 and d % HEAD == 0, _op, String("d of x is ", d, ", a positive multiple of 64 is expected"))
        comptime for axis in range(3):
            require_size(output.dim_size(axis), x.dim_size(axis), _op, "a dimension of the output")
        require_contiguous(x, _op, "x")
        comptime Strips = Int16Strips if factor_type == DType.int16 else Bfloat16Strips
        EncoderBlock[weight_type, Strips](
            _norm(gamma, beta, d, "gamma and beta"),
            _layer(qkv_weight, qkv_bias, 3 * d, d, "N of qkv"),
            _layer(out_weight, out_bias, d, d, "N of out"),
            _norm(mlp_gamma, mlp_beta, d, "gamma and beta of the MLP"),
            _layer(mlp_in_weight, mlp_in_bias, 4 * d, d, "N of mlp.0"),
            _layer(mlp_out_weight, mlp_out_bias, d, 4 * d, "N of mlp.2"),
            d // HEAD,
            epsilon,
        ).run(data(output), data(x), x.dim_size(0), x.dim_size(1))


def _norm(
    gamma: InputTensor[dtype=DType.float32, rank=1, ...],
    beta: InputTensor[dtype=DType.float32, rank=1, ...],
    size: Int,
    name: StaticString,
) raises -> Norm:
    require_size(gamma.dim_size(0), size, _op, name)
    require_size(beta.dim_size(0), size, _op, name)
    require_contiguous(gamma, _op, name)
    require_contiguous(beta, _op, name)
    return Norm(data(gamma), data(beta))


def _layer[
    weight_type: DType, //
](
    weight: InputTensor[dtype=weight_type, rank=3, ...],
    bias: InputTensor[dtype=DType.float32, rank=1, ...],
    columns: Int,
    depth: Int,
    name: StaticString,
) raises -> Layer[weight_type]:
    require_size(bias.dim_size(0), columns, _op, name)
    require_contiguous(bias, _op, name)
    require_packed(weight, columns, depth, _op)
    return Layer(data(weight), data(bias))

"""The op of the token embedding."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from ..cpu.threads import ForkJoin
from ..data import Data, data, require, require_between, require_contiguous, require_size
from ..embedding.cpu import embed
from ..embedding.gpu import enqueue_embed
from .vocabulary import check_vocabulary
from .weights import require_aligned, require_countable


@extensibility.register("whisper_embed")
struct Embed:
    """Computes E[tokens[b, t]] + P[past[b] + t]: tokens (B, T), past (B), E (V, D), P (n_ctx, D) -> (B, T, D).

    On GPUs the host cannot see tokens and past: what is out of range is taken for the nearest in range.
    """

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, //, target: StaticString, n_vocab: Int
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        tokens: InputTensor[dtype=DType.int32, rank=2, ...],
        past: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=weight_type, rank=2, ...],
        positions: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var batch = tokens.dim_size(0)
        var length = tokens.dim_size(1)
        var depth = positions.dim_size(1)
        check_vocabulary[target](vocabulary, depth, n_vocab, "embed")
        require_size(past.dim_size(0), batch, "embed", "B of past")
        require_size(output.dim_size(0), batch, "embed", "B of the output")
        require_size(output.dim_size(1), length, "embed", "T of the output")
        require_size(output.dim_size(2), depth, "embed", "D of the output")
        require_contiguous(tokens, "embed", "tokens")
        require_contiguous(positions, "embed", "positions")
        comptime if target == "cpu":
            for b in range(batch):
                require_between(Int(past[b]), 0, positions.dim_size(0) - length, "embed", "past", b)
                for t in range(length):
                    require_between(Int(tokens[b, t]), 0, n_vocab - 1, "embed", "tokens", b, t)
            embed(
                data(output),
                data(tokens),
                data(past),
                data(vocabulary),
                data(positions),
                batch,
                length,
                depth,
                ForkJoin(),
            )
        else:
            require(
                length <= positions.dim_size(0),
                "embed",
                String("T is ", length, ", there are ", positions.dim_size(0), " positions"),
            )
            require_aligned(data(positions), "embed", "positions")
            require_countable(batch * length, "embed", "B * T")
            enqueue_embed(
                data(output),
                data(tokens),
                data(past),
                rebind[Data[dtype]](data(vocabulary)),
                data(positions),
                batch,
                length,
                depth,
                n_vocab,
                positions.dim_size(0),
                ctx,
            )

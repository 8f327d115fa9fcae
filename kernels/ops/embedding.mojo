"""The op of the token embedding."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from ..data import data, require_between, require_contiguous, require_size
from ..embedding.cpu import embed
from .vocabulary import check_vocabulary


@extensibility.register("whisper_embed")
struct Embed:
    """Computes E[tokens[b, t]] + P[past[b] + t]: tokens (B, T), past (B), packed E (V, D), P (n_ctx, D) -> (B, T, D).
    """

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, //, target: StaticString, n_vocab: Int
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        tokens: InputTensor[dtype=DType.int32, rank=2, ...],
        past: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=weight_type, rank=3, ...],
        positions: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "embed has a CPU body only, so far"
        var batch = tokens.dim_size(0)
        var length = tokens.dim_size(1)
        var depth = positions.dim_size(1)
        check_vocabulary(vocabulary, depth, n_vocab, "embed")
        require_size(past.dim_size(0), batch, "embed", "B of past")
        require_size(output.dim_size(0), batch, "embed", "B of the output")
        require_size(output.dim_size(1), length, "embed", "T of the output")
        require_size(output.dim_size(2), depth, "embed", "D of the output")
        require_contiguous(tokens, "embed", "tokens")
        require_contiguous(positions, "embed", "positions")
        for b in range(batch):
            require_between(Int(past[b]), 0, positions.dim_size(0) - length, "embed", "past", b)
            for t in range(length):
                require_between(Int(tokens[b, t]), 0, n_vocab - 1, "embed", "tokens", b, t)
        embed(data(output), data(tokens), data(past), data(vocabulary), data(positions), batch, length, depth)

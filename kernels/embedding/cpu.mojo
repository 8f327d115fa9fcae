"""Token embedding plus position: the decoder's first layer.

    x[b, t, k] = E[tokens[b, t], k] + P[past[b] + t, k]

Shapes: tokens (B, T), past (B) the tokens that row b has in its cache already, E (V, D), P (n_ctx, D), x (B, T, D).

Cost: B*T*D additions; 3*B*T*D elements moved.
"""

from std.sys import size_of

from ..cpu.threads import Workers, grain
from ..cpu.tile import WIDTH, widened
from ..data import Data


def embed[
    dtype: DType, weight_type: DType, W: Workers, //
](
    output: Data[dtype],
    tokens: Data[DType.int32],
    past: Data[DType.int32],
    vocabulary: Data[weight_type],
    positions: Data[dtype],
    batch: Int,
    length: Int,
    depth: Int,
    workers: W,
):
    """Embeds every token. Tokens and positions must be in range.

    Args:
        output: `batch x length x depth`.
        tokens: `batch x length`.
        past: `batch`, the position of each row's first token.
        vocabulary: Rows of `depth`.
        positions: Rows of `depth`.
        batch: B.
        length: T.
        depth: D.
        workers: The threads.
    """

    @always_inline
    def some_tokens(begin: Int, end: Int) {imm}:
        for i in range(begin, end):
            var embedding = vocabulary.unsafe_offset(Int(tokens[unsafe_offset=i]) * depth)
            var position = positions.unsafe_offset((Int(past[unsafe_offset=i // length]) + i % length) * depth)
            var x = output.unsafe_offset(i * depth)
            var whole = depth // WIDTH * WIDTH
            for k in range(0, whole, WIDTH):
                x.unsafe_store(k, (widened(embedding, k) + widened(position, k)).cast[dtype]())
            for k in range(whole, depth):
                var p = position[unsafe_offset=k].cast[DType.float32]()
                x[unsafe_offset=k] = (embedding[unsafe_offset=k].cast[DType.float32]() + p).cast[dtype]()

    workers.share(some_tokens, batch * length, grain(depth * (size_of[weight_type]() + 2 * size_of[dtype]())))

"""Token embedding plus position: the decoder's first layer.

    x[b, t, k] = E[tokens[b, t], k] + P[past[b] + t, k]

Shapes: tokens (B, T), past (B) the tokens that row b has in its cache already, P (n_ctx, D), x (B, T, D). E is the
vocabulary matrix (V, D) as the logits read it, in panels of 16 tokens (ceil(V/16), D, 16), so that it exists once:

    panel v // 16      16 tokens side by side
                     +------------------+
                  k  | . . . v . . . .  |  one cache line (float32), of which one value is ours
                     +------------------+

A token's embedding is a column of its panel: D values that lie 16 apart. Reading D cache lines instead of D / 16 costs
a decoding step a microsecond or two; a second copy of E would cost 80 to 265 MB.

Cost: B*T*D additions; B*T*D cache lines of E, (1 + 1)*B*T*D elements of P and x.
"""

from std.sys import size_of

from ..cpu.threads import grain, share
from ..cpu.tile import PANEL
from ..data import Data

comptime CACHE_LINE = 64


def embed[
    dtype: DType, //
](
    output: Data[dtype],
    tokens: Data[DType.int32],
    past: Data[DType.int32],
    vocabulary: Data[dtype],
    positions: Data[dtype],
    batch: Int,
    length: Int,
    depth: Int,
):
    """Embeds every token. Tokens and positions must be in range.

    Args:
        output: `batch x length x depth`.
        tokens: `batch x length`.
        past: `batch`, the position of each row's first token.
        vocabulary: Panels of `depth x 16`.
        positions: Rows of `depth`.
        batch: B.
        length: T.
        depth: D.
    """

    @always_inline
    def some_tokens(begin: Int, end: Int) {imm}:
        for i in range(begin, end):
            var panel, column = divmod(Int(tokens[unsafe_offset=i]), PANEL)
            var embedding = vocabulary.unsafe_offset(panel * depth * PANEL + column)
            var position = positions.unsafe_offset((Int(past[unsafe_offset=i // length]) + i % length) * depth)
            var x = output.unsafe_offset(i * depth)
            for k in range(depth):
                var e = embedding[unsafe_offset=k * PANEL].cast[DType.float32]()
                x[unsafe_offset=k] = (e + position[unsafe_offset=k].cast[DType.float32]()).cast[dtype]()

    share(some_tokens, batch * length, grain(depth * (CACHE_LINE + 2 * size_of[dtype]())))

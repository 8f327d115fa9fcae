"""Token embedding plus position: the decoder's first layer.

    x[b, t, k] = E[tokens[b, t], k] + P[past[b] + t, k]

Shapes: tokens (B, T), past (B) the tokens that row b has in its cache already, P (n_ctx, D), x (B, T, D). E is the
vocabulary matrix (V, D) as the logits read it, packed in panels of 16 tokens, so that it exists once:

    panel v // 16      16 tokens side by side
                     +------------------+
                  k  | . . . v . . . .  |  one cache line, of which G values are ours (G = 1 in float32, 4 in int8)
                     +------------------+

A token's embedding is a column of its panel: D / G cache lines instead of the D / 16 of a row of its own. That costs a
decoding step a microsecond or two; a second copy of E would cost 80 to 265 MB.

Cost: B*T*D additions; B*T*D/G cache lines of E, (1 + 1)*B*T*D elements of P and x.
"""

from std.sys import size_of

from ..cpu.threads import grain, share
from ..cpu.tile import PANEL, panel_element, panel_rows, row_size
from ..data import Data

comptime CACHE_LINE = 64


def embed[
    dtype: DType, weight_type: DType, //
](
    output: Data[dtype],
    tokens: Data[DType.int32],
    past: Data[DType.int32],
    vocabulary: Data[weight_type],
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
        vocabulary: Packed panels, `depth` deep.
        positions: Rows of `depth`.
        batch: B.
        length: T.
        depth: D.
    """

    @always_inline
    def some_tokens(begin: Int, end: Int) {imm}:
        for i in range(begin, end):
            var panel, column = divmod(Int(tokens[unsafe_offset=i]), PANEL)
            var embedding = vocabulary.unsafe_offset(panel * panel_rows[weight_type](depth) * row_size[weight_type])
            var position = positions.unsafe_offset((Int(past[unsafe_offset=i // length]) + i % length) * depth)
            var x = output.unsafe_offset(i * depth)
            for k in range(depth):
                var p = position[unsafe_offset=k].cast[DType.float32]()
                x[unsafe_offset=k] = (panel_element(embedding, k, column) + p).cast[dtype]()

    share(some_tokens, batch * length, grain(depth * (CACHE_LINE + 2 * size_of[dtype]())))

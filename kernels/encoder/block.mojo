"""A block of the encoder on a CPU, for models whose weights are rounded: what flows between its kernels stays in the second cache.

    y = x + out(attention over all rows(qkv(norm(x))))
    y = y + mlp.2(gelu(mlp.0(norm(y))))                        (Radford et al., arXiv:2212.04356, section 2.2)

Shapes: x and y (B, S, d). But for attention, whose queries meet all keys, a row depends on no other row: so a thread takes some
rows, PIECE of them, all the way from one attention to the next, and writes only what that reads:

    window 0                                          threads take       memory sees, for each row
    |  x -> norm -> qkv  -> Q                         pieces of rows     x: 4d bytes in, Q: 4d bytes out
    |                    -> K, V: rounded                                4d bytes out
    |  Q, K, V -> attention -> O, in place of Q       blocks of queries   O: 4d bytes out
    |  O -> out, + x -> norm -> mlp.0 -> gelu         pieces of rows     O and x: 8d bytes in
    |    -> mlp.2, + y -> y                                              y: 4d bytes out
    window 1 ...

As ops of their own these kernels write 56*d bytes for each row and read 60*d, rows of 12*d behind qkv and of 16*d inside of the
MLP among them: 6.9 and 9.2 MB of a window of tiny, through a third cache that both threads share.

A piece reads all weights, 12*d^2, and multiplies each with PIECE rows. Cost of a window: 24*S*d^2 + 4*S^2*d operations; bytes: those of the
weights, S / PIECE times, from the cache that holds them, and of each row the 28*d above and 8*d that attention reads.
"""

from std.math import ceildiv
from std.memory.alloc import unsafe_alloc

from ..attention.cpu import Attention
from ..attention.strip import HEAD, RoundedSoftmax
from ..cpu.epilogue import Epilogue
from ..cpu.layers import Layer, Norm
from ..cpu.matmul import multiply_block
from ..cpu.threads import Team, in_team
from ..cpu.tile import PANEL, ROWS, is_rounded
from ..data import Data
from ..layer_norm.cpu import normalise
from ..linear.cpu import BiasEpilogue

comptime PIECE = 64
"""Rows that a thread takes at once: enough that a panel of weights pays for its way from the second cache, and few enough that
they, and 4*d columns of the MLP, stay there, too. They are whole groups of keys and values, which are made together."""

comptime _LAST_GROUPS = 5
"""Groups of rows at the end that are pieces of their own: a thread waits for the last piece of another one."""


@fieldwise_init
struct _QueriesAside(Epilogue):
    """Adds the bias; the first columns, of queries, go to one place and the others to another."""

    var queries: Data[DType.float32]
    var others: Data[DType.float32]
    var bias: Data[DType.float32]
    var d: Int

    @always_inline
    def store[width: Int](self, row: Int, column: Int, sums: SIMD[DType.float32, width]):
        """Stores one piece of a row."""
        var y = sums + self.bias.unsafe_load[width=width](column)
        if column < self.d:
            self.queries.unsafe_store(row * self.d + column, y)
        else:
            self.others.unsafe_store(row * 2 * self.d + column - self.d, y)


struct _Window[Strips: RoundedSoftmax](TrivialRegisterPassable):
    """What flows between the parts of a block, for one window.

    Parameters:
        Strips: The step of attention, which says how keys and values lie.
    """

    var queries: Data[DType.float32]
    """(S, d), in the end attention's output."""
    var keys: Data[Self.Strips.cache_type]
    var values: Data[Self.Strips.cache_type]

    def __init__(out self, length: Int, heads: Int):
        """Takes room; `free` is to be called."""
        var panels = heads * ceildiv(length, PANEL)
        var groups = heads * ceildiv(length, Self.Strips.value_group)
        self.queries = unsafe_alloc[Float32](length * heads * HEAD, alignment=64)
        self.keys = unsafe_alloc[Scalar[Self.Strips.cache_type]](panels * Self.Strips.panel_size, alignment=64)
        self.values = unsafe_alloc[Scalar[Self.Strips.cache_type]](groups * Self.Strips.group_size, alignment=64)

    def free(self):
        """Gives it back."""
        self.queries.unsafe_free()
        self.keys.unsafe_free()
        self.values.unsafe_free()


@fieldwise_init
struct EncoderBlock[weight_type: DType, Strips: RoundedSoftmax](TrivialRegisterPassable):
    """The weights and sizes of one block.

    Parameters:
        weight_type: Element type of the weights.
        Strips: The step of attention, over float32.
    """

    comptime LOOPS = 3
    """Loops that a window shares."""

    comptime _rounded = is_rounded[Self.weight_type]

    var norm: Norm
    """In front of self-attention."""
    var qkv: Layer[Self.weight_type]
    """Queries, keys and values."""
    var out: Layer[Self.weight_type]
    """Behind self-attention."""
    var mlp_norm: Norm
    """In front of the MLP."""
    var mlp_in: Layer[Self.weight_type]
    """The MLP's first layer, mlp.0."""
    var mlp_out: Layer[Self.weight_type]
    """Its second, mlp.2."""
    var heads: Int
    """H."""
    var epsilon: Float32
    """Added to variances."""

    def run(self, output: Data[DType.float32], x: Data[DType.float32], batch: Int, length: Int):
        """Computes the block on all threads.

        Args:
            output: What y is, (B, S, d).
            x: (B, S, d).
            batch: B.
            length: S.
        """
        if batch * length == 0:
            return
        var window = _Window[Self.Strips](length, self.heads)
        var size = length * self.heads * HEAD

        @always_inline
        def member(team: Team) {imm}:
            for b in range(batch):
                self._window(output.unsafe_offset(b * size), x.unsafe_offset(b * size), window, length, team)

        in_team(member, batch * Self.LOOPS)
        window.free()

    def _window(
        self, output: Data[DType.float32], x: Data[DType.float32], window: _Window[Self.Strips], length: Int, team: Team
    ):
        """One window: `LOOPS` loops."""
        # A group of ROWS or fewer would not be multiplied as many rows are: it joins the one before.
        comptime group = Self.Strips.value_group
        comptime assert PIECE % group == 0, "pieces are whole groups"
        var groups = max(ceildiv(length - ROWS, group), 1)
        var wholes = ceildiv(max(groups - _LAST_GROUPS, 0) * group, PIECE)
        var pieces = wholes + groups - wholes * (PIECE // group)

        @always_inline
        def begin_of(piece: Int) {imm} -> Int:
            if piece == pieces:
                return length
            return min(piece, wholes) * PIECE + max(piece - wholes, 0) * group

        @always_inline
        def heads_of_pieces(begin: Int, end: Int) {imm}:
            for piece in range(begin, end):
                var first = begin_of(piece)
                self._make_heads(x, window, first, begin_of(piece + 1) - first, length)

        team.share(heads_of_pieces, pieces, turns=pieces)
        Attention[Self.Strips](
            window.queries.unsafe_bitcast[Scalar[Self.Strips.dtype]](),
            window.queries.unsafe_bitcast[Scalar[Self.Strips.dtype]](),
            self.heads * HEAD,
            window.keys,
            window.values,
            length,
            None,
            1,
            self.heads,
            length,
        ).run[causal=False](team)

        @always_inline
        def rest_of_pieces(begin: Int, end: Int) {imm}:
            for piece in range(begin, end):
                var first = begin_of(piece)
                self._go_on(output, x, window, first, begin_of(piece + 1) - first)

        team.share(rest_of_pieces, pieces, turns=pieces)

    def _make_heads(self, x: Data[DType.float32], window: _Window[Self.Strips], first: Int, rows: Int, length: Int):
        """Norm, queries, keys and values of a piece."""
        var d = self.heads * HEAD
        var normed = unsafe_alloc[Float32](rows * d, alignment=64)
        var key_values = unsafe_alloc[Float32](rows * 2 * d, alignment=64)
        self._normalise(normed, x.unsafe_offset(first * d), self.norm, rows)
        _multiply(
            normed,
            self.qkv,
            rows,
            3 * d,
            d,
            _QueriesAside(window.queries.unsafe_offset(first * d), key_values, self.qkv.bias, d),
        )
        for head in range(self.heads):
            for group in range(first // Self.Strips.value_group, ceildiv(first + rows, Self.Strips.value_group)):
                Self.Strips.pack_group(
                    window.keys,
                    window.values,
                    key_values.unsafe_offset(-first * 2 * d),  # rows are counted from the window's first
                    2 * d,
                    self.heads,
                    length,
                    head,
                    group,
                )
        normed.unsafe_free()
        key_values.unsafe_free()

    def _go_on(
        self, output: Data[DType.float32], x: Data[DType.float32], window: _Window[Self.Strips], first: Int, rows: Int
    ):
        """What follows attention, of a piece."""
        var d = self.heads * HEAD
        var normed = unsafe_alloc[Float32](rows * d, alignment=64)
        var wide = unsafe_alloc[Float32](rows * 4 * d, alignment=64)
        var y = output.unsafe_offset(first * d)
        comptime Add = BiasEpilogue[DType.float32, False, True, Self._rounded]
        comptime Gelu = BiasEpilogue[DType.float32, True, False, Self._rounded]
        _multiply(
            window.queries.unsafe_offset(first * d),
            self.out,
            rows,
            d,
            d,
            Add(y, self.out.bias, x.unsafe_offset(first * d), d),
        )
        self._normalise(normed, y, self.mlp_norm, rows)
        _multiply(normed, self.mlp_in, rows, 4 * d, d, Gelu(wide, self.mlp_in.bias, wide, 4 * d))
        _multiply(wide, self.mlp_out, rows, d, 4 * d, Add(y, self.mlp_out.bias, y, d))
        normed.unsafe_free()
        wide.unsafe_free()

    def _normalise(self, output: Data[DType.float32], x: Data[DType.float32], norm: Norm, rows: Int):
        var d = self.heads * HEAD
        for row in range(rows):
            normalise(output.unsafe_offset(row * d), x.unsafe_offset(row * d), norm.gamma, norm.beta, d, self.epsilon)


def _multiply[
    weight_type: DType, E: Epilogue, //
](x: Data[DType.float32], layer: Layer[weight_type], rows: Int, columns: Int, depth: Int, epilogue: E):
    """A layer of some rows, on the calling thread."""
    multiply_block(x, depth, layer.weight, depth, 0, rows, 0, ceildiv(columns, PANEL), columns, epilogue)

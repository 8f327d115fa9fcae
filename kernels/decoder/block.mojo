"""A block of the decoder on a CPU: its twelve kernels are loops of one team of threads.

    y = x + out(causal attention over the KV cache(qkv(norm(x))))
    y = y + out(attention over the audio(query(norm(y))))
    y = y + mlp.2(gelu(mlp.0(norm(y))))                        (Radford et al., arXiv:2212.04356, section 2.2)

Shapes: x (B, T, d) becomes y; what flows between the kernels lies in scratch of (B*T, d) and (B*T, 4*d) elements, which one
row keeps in the first cache.

A decoding step has one row for each window, and none of these kernels keeps a core busy for more than a few
microseconds: as ops of their own, a third of a step went by with threads that woke up and waited for each other. A team meets
in less than one (`cpu/threads.mojo`).

    thread 0  norm | qkv    | store | heads 0 2 4 | out   | norm | query | heads 0 2 4 | out   | norm | mlp.0 | mlp.2   |
    thread 1       | panels |       | heads 1 3 5 | panels|      | panels| heads 1 3 5 | panels|      | panels| panels  |

Cost for one row: 28*d^2 operations on 14*d^2 weights (3 + 1 + 1 + 1 + 4 + 4), and 4*d for each key and value; bytes: those of the
weights and of 2*d*(1500 + past) keys and values. For tiny 2.1 and 1.2 million elements, at the rate of the memory they lie in.
"""

from std.memory.alloc import unsafe_alloc

from ..attention.cpu import Attention, attend
from ..attention.heads import store_heads
from ..attention.pairs import Pairs
from ..attention.strip import HEAD
from ..attention.strip_float32 import Float32Strips
from ..cpu.layers import Layer, Norm
from ..cpu.matmul import multiply
from ..cpu.threads import Team
from ..cpu.tile import is_rounded
from ..data import Data
from ..layer_norm.cpu import layer_norm
from ..linear.cpu import BiasEpilogue


@fieldwise_init
struct Cache[cache_type: DType](TrivialRegisterPassable):
    """Keys and values."""

    var keys: Data[Self.cache_type]
    """(B, H, ceil(C/16), 64, 16); bytes: `attention/bytes.mojo`."""
    var values: Data[Self.cache_type]
    """(B, H, C, 64); bytes: `attention/bytes.mojo`."""
    var capacity: Int
    """C."""


struct Scratch(TrivialRegisterPassable):
    """What flows between the kernels of a block, for some rows."""

    var normed: Data[DType.float32]
    """(B*T, d)."""
    var attended: Data[DType.float32]
    """(B*T, d)."""
    var wide: Data[DType.float32]
    """(B*T, 4*d)."""
    var pairs: Pairs
    """Keys and values of the audio in pairs, where they are wanted."""

    def __init__(out self, rows: Int, d: Int, pairs: Pairs):
        """Takes room; `free` is to be called.

        Args:
            rows: B*T.
            d: Elements of a row.
            pairs: Is given back with the rest.
        """
        self.normed = unsafe_alloc[Float32](rows * d, alignment=64)
        self.attended = unsafe_alloc[Float32](rows * d, alignment=64)
        self.wide = unsafe_alloc[Float32](rows * 4 * d, alignment=64)
        self.pairs = pairs

    def free(self):
        """Gives it back."""
        self.normed.unsafe_free()
        self.attended.unsafe_free()
        self.wide.unsafe_free()
        self.pairs.free()


@fieldwise_init
struct DecoderBlock[weight_type: DType, cache_type: DType, audio_type: DType](TrivialRegisterPassable):
    """The weights, caches and sizes of one block."""

    comptime LOOPS = 13
    """Loops that a block shares at most: pairs, if they are made, are one of their own."""

    comptime _rounded = is_rounded[Self.weight_type]

    var norm: Norm
    """In front of self-attention."""
    var qkv: Layer[Self.weight_type]
    """Queries, keys and values of self-attention."""
    var out: Layer[Self.weight_type]
    """Behind self-attention."""
    var cross_norm: Norm
    """In front of cross-attention."""
    var cross_query: Layer[Self.weight_type]
    """Queries of cross-attention."""
    var cross_out: Layer[Self.weight_type]
    """Behind cross-attention."""
    var mlp_norm: Norm
    """In front of the MLP."""
    var mlp_in: Layer[Self.weight_type]
    """The MLP's first layer, mlp.0."""
    var mlp_out: Layer[Self.weight_type]
    """Its second, mlp.2."""
    var text: Cache[Self.cache_type]
    """The KV cache, updated in place."""
    var audio: Cache[Self.audio_type]
    """Keys and values of the audio."""
    var batch: Int
    """B."""
    var heads: Int
    """H."""
    var epsilon: Float32
    """Added to variances."""

    def run(self, x: Data[DType.float32], past: Data[DType.int32], length: Int, scratch: Scratch, team: Team):
        """Adds to x, (B, T, d), what the three parts compute: `LOOPS` loops of a team.

        Args:
            x: The residual stream.
            past: (B), the keys that each row of the KV cache holds.
            length: T.
            scratch: Room for so many rows.
            team: One of its threads.
        """
        var d = self.heads * HEAD
        var rows = self.batch * length
        var normed = scratch.normed
        var attended = scratch.attended
        var wide = scratch.wide

        self._normalise(normed, x, self.norm, rows, team)
        self._linear(wide, normed, self.qkv, rows, d, 3 * d, team)
        self._attend_to_text(attended, wide, past, length, team)
        self._linear[add_residual=True](x, attended, self.out, rows, d, d, team)

        self._normalise(normed, x, self.cross_norm, rows, team)
        self._linear(wide, normed, self.cross_query, rows, d, d, team)
        self._attend_to_audio(attended, wide, length, scratch.pairs, team)
        self._linear[add_residual=True](x, attended, self.cross_out, rows, d, d, team)

        self._normalise(normed, x, self.mlp_norm, rows, team)
        self._linear[gelu=True](wide, normed, self.mlp_in, rows, d, 4 * d, team)
        self._linear[add_residual=True](x, wide, self.mlp_out, rows, 4 * d, d, team)

    def _normalise(self, output: Data[DType.float32], x: Data[DType.float32], norm: Norm, rows: Int, team: Team):
        layer_norm(output, x, norm.gamma, norm.beta, rows, self.heads * HEAD, self.epsilon, team)

    def _linear[
        gelu: Bool = False, add_residual: Bool = False
    ](
        self,
        output: Data[DType.float32],
        x: Data[DType.float32],
        layer: Layer[Self.weight_type],
        rows: Int,
        depth: Int,
        columns: Int,
        team: Team,
    ):
        """Writes to the output, or adds to it."""
        var epilogue = BiasEpilogue[DType.float32, gelu, add_residual, Self._rounded](
            output, layer.bias, output, columns
        )
        multiply(x, depth, layer.weight, rows, columns, depth, epilogue, team)

    def _attend_to_text(
        self,
        output: Data[DType.float32],
        rows: Data[DType.float32],
        past: Data[DType.int32],
        length: Int,
        team: Team,
    ):
        var width = 3 * self.heads * HEAD
        var cache = self.text
        store_heads(
            cache.keys,
            cache.values,
            cache.capacity,
            rows,
            width,
            past,
            self.batch,
            self.heads,
            length,
            team,
        )
        Attention[Float32Strips[DType.float32, Self.cache_type]](
            output,
            rows,
            width,
            cache.keys,
            cache.values,
            cache.capacity,
            past,
            self.batch,
            self.heads,
            length,
        ).run[causal=True](team)

    def _attend_to_audio(
        self, output: Data[DType.float32], queries: Data[DType.float32], length: Int, pairs: Pairs, team: Team
    ):
        attend[rounded=Self._rounded](
            output,
            queries,
            self.heads * HEAD,
            self.audio.keys,
            self.audio.values,
            self.audio.capacity,
            self.batch,
            self.heads,
            length,
            pairs,
            team,
        )

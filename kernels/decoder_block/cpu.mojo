"""A block of the decoder on a CPU, as one op: its twelve kernels are loops of one team of threads.

    y = x + out(causal attention over the KV cache(qkv(norm(x))))
    y = y + out(attention over the audio(query(norm(y))))
    y = y + mlp.2(gelu(mlp.0(norm(y))))                        (Radford et al., arXiv:2212.04356, section 2.2)

Shapes: x and y (B, T, d); what flows between the kernels lies in scratch of (B*T, d) and (B*T, 4*d) elements, which one row
keeps in the first cache.

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
from ..attention.pairs import Pairs, may_pair
from ..attention.strip import HEAD
from ..attention.strip_float32 import Float32Strips
from ..cpu.matmul import multiply
from ..cpu.threads import Team, in_team
from ..cpu.tile import is_rounded
from ..data import Data
from ..layer_norm.cpu import layer_norm
from ..linear.cpu import BiasEpilogue


@fieldwise_init
struct Norm(TrivialRegisterPassable):
    """The weights of a layer norm."""

    var gamma: Data[DType.float32]
    """(d)."""
    var beta: Data[DType.float32]
    """(d)."""


@fieldwise_init
struct Layer[weight_type: DType](TrivialRegisterPassable):
    """The weights of a linear layer."""

    var weight: Data[Self.weight_type]
    """Packed."""
    var bias: Data[DType.float32]
    """(N)."""


@fieldwise_init
struct Cache[cache_type: DType](TrivialRegisterPassable):
    """Keys and values."""

    var keys: Data[Self.cache_type]
    """(B, H, ceil(C/16), 64, 16); bytes: `attention/bytes.mojo`."""
    var values: Data[Self.cache_type]
    """(B, H, C, 64); bytes: `attention/bytes.mojo`."""
    var capacity: Int
    """C."""


@fieldwise_init
struct DecoderBlock[weight_type: DType, cache_type: DType, audio_type: DType](TrivialRegisterPassable):
    """The weights, caches and sizes of one block."""

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
    var past: Data[DType.int32]
    """(B), the keys that each row of the KV cache holds."""
    var batch: Int
    """B."""
    var length: Int
    """T."""
    var heads: Int
    """H."""
    var epsilon: Float32
    """Added to variances."""

    def run(self, y: Data[DType.float32], x: Data[DType.float32]):
        """Computes y, (B, T, d), from x, (B, T, d), on all threads."""
        var d = self.heads * HEAD
        var rows = self.batch * self.length
        var normed = unsafe_alloc[Float32](rows * d, alignment=64)
        var attended = unsafe_alloc[Float32](rows * d, alignment=64)
        var wide = unsafe_alloc[Float32](rows * 4 * d, alignment=64)
        var pairs = Pairs(
            may_pair[Self.audio_type](Self._rounded), self.batch * self.heads, self.audio.capacity, self.length
        )

        @always_inline
        def member(team: Team) {imm}:
            self._normalise(normed, x, self.norm, team)
            self._linear(wide, normed, self.qkv, d, 3 * d, team)
            self._attend_to_text(attended, wide, team)
            self._linear[add_residual=True](y, attended, self.out, d, d, team, x)

            self._normalise(normed, y, self.cross_norm, team)
            self._linear(wide, normed, self.cross_query, d, d, team)
            self._attend_to_audio(attended, wide, pairs, team)
            self._linear[add_residual=True](y, attended, self.cross_out, d, d, team, y)

            self._normalise(normed, y, self.mlp_norm, team)
            self._linear[gelu=True](wide, normed, self.mlp_in, d, 4 * d, team)
            self._linear[add_residual=True](y, wide, self.mlp_out, 4 * d, d, team, y)

        in_team(member, 13)  # pairs, if they are made, are a loop of their own
        normed.unsafe_free()
        attended.unsafe_free()
        wide.unsafe_free()
        pairs.free()

    def _normalise(self, output: Data[DType.float32], x: Data[DType.float32], norm: Norm, team: Team):
        layer_norm(output, x, norm.gamma, norm.beta, self.batch * self.length, self.heads * HEAD, self.epsilon, team)

    def _linear[
        gelu: Bool = False, add_residual: Bool = False
    ](
        self,
        output: Data[DType.float32],
        x: Data[DType.float32],
        layer: Layer[Self.weight_type],
        depth: Int,
        columns: Int,
        team: Team,
        residual: Data[DType.float32] = Data[DType.float32].unsafe_dangling(),
    ):
        var epilogue = BiasEpilogue[DType.float32, gelu, add_residual, Self._rounded](
            output, layer.bias, residual, columns
        )
        multiply(x, depth, layer.weight, self.batch * self.length, columns, depth, epilogue, team)

    def _attend_to_text(self, output: Data[DType.float32], rows: Data[DType.float32], team: Team):
        var width = 3 * self.heads * HEAD
        var cache = self.text
        store_heads(
            cache.keys,
            cache.values,
            cache.capacity,
            rows,
            width,
            self.past,
            self.batch,
            self.heads,
            self.length,
            team,
        )
        Attention[Float32Strips[DType.float32, Self.cache_type]](
            output,
            rows,
            width,
            cache.keys,
            cache.values,
            cache.capacity,
            self.past,
            self.batch,
            self.heads,
            self.length,
        ).run[causal=True](team)

    def _attend_to_audio(self, output: Data[DType.float32], queries: Data[DType.float32], pairs: Pairs, team: Team):
        attend[rounded=Self._rounded](
            output,
            queries,
            self.heads * HEAD,
            self.audio.keys,
            self.audio.values,
            self.audio.capacity,
            self.batch,
            self.heads,
            self.length,
            pairs,
            team,
        )

"""Keys and values of the audio, for cross-attention of all blocks of the decoder: once for each window.

    keys[l], values[l] = states W[l]^T + b[l]                                        (Radford et al., arXiv:2212.04356, section 2.2)

Shapes: states (B, S, d), W[l] packed, (2*d, d), b[l] (2*d); keys and values (L, B, H, ...) as attention reads them: `attention/heads.mojo`,
or `attention/bytes.mojo`. The rows of one window and block (S, 2*d) pass through scratch, which all of them use in turn: 4.6 MB for tiny, more than
a few of which no cache keeps.

Cost: 4*L*B*S*d^2 operations; the states and the rows are moved L times, and each key and value is written once.
"""

from std.memory.alloc import unsafe_alloc

from ..attention.bytes import byte_rows
from ..attention.heads import store_heads
from ..attention.strip import HEAD
from ..cpu.layers import Layer
from ..cpu.matmul import multiply
from ..cpu.threads import Team, in_team
from ..cpu.tile import is_rounded
from ..data import Data
from ..linear.cpu import BiasEpilogue


def audio_heads[
    weight_type: DType, cache_type: DType, //
](
    keys: Data[cache_type],
    keys_size: Int,
    values: Data[cache_type],
    values_size: Int,
    states: Data[DType.float32],
    layers: List[Layer[weight_type]],
    batch: Int,
    length: Int,
    heads: Int,
):
    """Computes keys and values of all blocks, on all threads.

    Args:
        keys: Of all blocks, one behind the other.
        keys_size: Elements of one block's.
        values: Of all blocks.
        values_size: Elements of one block's.
        states: `batch x length x heads * 64`.
        layers: Of each block the layer that makes keys and values.
        batch: B.
        length: S.
        heads: H.
    """
    var d = heads * HEAD
    var rows = unsafe_alloc[Float32](length * 2 * d, alignment=64)

    @always_inline
    def member(team: Team) {imm}:
        for b in range(batch):
            for i in range(len(layers)):
                var epilogue = BiasEpilogue[DType.float32, False, False, is_rounded[weight_type]](
                    rows, layers[i].bias, rows, 2 * d
                )
                multiply(states.unsafe_offset(b * length * d), d, layers[i].weight, length, 2 * d, d, epilogue, team)
                var k = keys.unsafe_offset(i * keys_size + keys_size // batch * b)
                var v = values.unsafe_offset(i * values_size + values_size // batch * b)
                comptime if cache_type == DType.int8:
                    byte_rows(k.unsafe_bitcast[Int8](), v.unsafe_bitcast[Int8](), rows, 2 * d, 1, heads, length, team)
                else:
                    store_heads(k, v, length, rows, 2 * d, None, 1, heads, length, team)

    if batch > 0:
        in_team(member, batch * len(layers) * 2)
    rows.unsafe_free()

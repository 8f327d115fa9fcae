"""Token embedding plus position on a GPU: x[b, t] = E[tokens[b, t]] + P[past[b] + t]. E is (V, D) row-major.

A thread makes one chunk of 16 bytes: it loads one of E and one of P, adds in float32, stores one. The host cannot see tokens
and positions; what is outside of a table is taken for the nearest row, so that no kernel reads where nothing is.

Cost: 3*B*T*D elements moved, and one sector for the token and one for the past of each warp: 1.04 times the least. Occupancy: at
most 32 registers, so as many warps as a multiprocessor takes.
"""

from max.gpu import block_idx, thread_idx
from max.gpu.host import DeviceContext
from std.math import ceildiv

from ..data import Data
from ..gpu.overlap import overlapping, start_next, wait_for_previous
from ..gpu.memory import chunk, load_chunk, store_chunk

comptime THREADS = 128
"""Threads of a block."""


def embed_kernel[
    dtype: DType
](
    output: Data[dtype],
    tokens: Data[DType.int32],
    past: Data[DType.int32],
    vocabulary: Data[dtype],
    positions: Data[dtype],
    count: Int32,
    length: Int32,
    depth: Int32,
    last_token: Int32,
    last_position: Int32,
):
    """Embeds tokens.

    Parameters:
        dtype: Of all tables.

    Args:
        output: (count, depth).
        tokens: (count).
        past: (count / length), the position of each row's first token.
        vocabulary: (last_token + 1, depth).
        positions: (last_position + 1, depth).
        count: B * T.
        length: T.
        depth: D, whole chunks.
        last_token: V - 1.
        last_position: Of `n_ctx` positions, n_ctx - 1.
    """
    start_next()
    wait_for_previous()
    comptime width = chunk[dtype]()
    var chunks = depth // Int32(width)
    var i = Int(block_idx.x) * THREADS + Int(thread_idx.x)
    if i >= Int(count) * Int(chunks):
        return
    var which = Int32(i // Int(chunks))
    var k = Int32(i - Int(which) * Int(chunks)) * Int32(width)
    var row = which // length
    var token = min(max(tokens[unsafe_offset=which], 0), last_token)
    var position = min(max(past[unsafe_offset=row] + which - row * length, 0), last_position)
    var e = load_chunk(vocabulary, Int(token) * Int(depth) + Int(k)).cast[DType.float32]()
    var p = load_chunk(positions, Int(position) * Int(depth) + Int(k)).cast[DType.float32]()
    store_chunk(output, i * width, (e + p).cast[dtype]())


def enqueue_embed[
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
    tokens_known: Int,
    positions_known: Int,
    ctx: DeviceContext,
) raises:
    """Launches the kernel: `tokens_known` is V, `positions_known` n_ctx."""
    var chunks = batch * length * (depth // chunk[dtype]())
    if chunks == 0:
        return
    ctx.enqueue_function[embed_kernel[dtype]](
        output,
        tokens,
        past,
        vocabulary,
        positions,
        Int32(batch * length),
        Int32(length),
        Int32(depth),
        Int32(tokens_known - 1),
        Int32(positions_known - 1),
        grid_dim=ceildiv(chunks, THREADS),
        block_dim=THREADS,
        attributes=overlapping(),
    )

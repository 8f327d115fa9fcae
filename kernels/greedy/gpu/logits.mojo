"""A block's logits for up to 16 rows of states, in shared memory; and the kernel that stores all logits.

A group of 8 lanes takes a token at a time, lane l the chunks l, l + 8, ... of 16 bytes, and multiplies each by the same chunk of
every row of h. Registers and cost: see `pick.mojo`.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, lane_id, thread_idx
from max.gpu.primitives import warp
from std.collections import Array
from std.utils import StaticTuple

from ...data import Data
from ...gpu.memory import Shared, chunk, load_chunk, shared_memory

comptime THREADS = 256
"""Threads of a block."""

comptime TOKENS = 256
"""Tokens of a block."""

comptime GROUP = 8
"""Lanes that share a token."""

comptime OWN = 2
"""Tokens that a group takes at a time, so that what it reads of h serves twice."""


@always_inline
def asked_position(at: Data[DType.int32], rows: Int32) -> Int32:
    """What row `lane` asks for, -1 if there is none."""
    var lane = Int32(lane_id())
    return at[unsafe_offset=lane] if lane < rows else -1


@always_inline
def compute_logits[
    dtype: DType, //, most: Int, depth_limit: Int
](
    result: Shared[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[dtype],
    rows: Int32,
    length: Int32,
    depth: Int32,
    tokens: Int32,
    first: Int32,
):
    """Computes the logits of a block's tokens; a barrier is behind it.

    Parameters:
        dtype: Of states and vocabulary.
        most: Rows that the registers are for.
        depth_limit: Depth that the shared memory is for.

    Args:
        result: (most, TOKENS).
        hidden: (rows, length, depth).
        at: (rows).
        vocabulary: (tokens, depth).
        rows: B, at most `most`.
        length: T.
        depth: D.
        tokens: V.
        first: The block's first token.
    """
    comptime width = chunk[dtype]()
    comptime in_flight = 3 if most == 1 else 2  # chunks of each token that a lane loads before it uses the first
    comptime Floats = SIMD[DType.float32, width]
    var h = shared_memory[dtype, most * depth_limit]()
    var thread = Int32(thread_idx.x)
    var position = min(max(asked_position(at, rows), 0), length - 1)
    comptime for b in range(most):
        if Int32(b) < rows:
            var t = warp.shuffle_idx(position, UInt32(b))
            var source = (b * Int(length) + Int(t)) * Int(depth)
            var k = thread * Int32(width)
            while k < depth:
                h.unsafe_store[alignment=16](b * depth_limit + Int(k), load_chunk(hidden, source + Int(k)))
                k += Int32(THREADS * width)
    barrier()

    var lane = thread % GROUP
    for step in range(TOKENS // (THREADS // GROUP * OWN)):
        var local = Int32(step) * (THREADS // GROUP * OWN) + thread // GROUP
        var sums = Array[SIMD[DType.float32, OWN], most](fill=0)
        var begin = lane * Int32(width)
        while begin < depth:
            var w = Array[SIMD[dtype, width], in_flight * OWN](fill=0)
            comptime for i in range(in_flight):
                comptime for j in range(OWN):
                    var k = begin + Int32(i * GROUP * width)
                    var token = first + local + Int32(j * (THREADS // GROUP))
                    if k < depth and token < tokens:
                        w[i * OWN + j] = load_chunk(vocabulary, Int(token) * Int(depth) + Int(k))
            comptime for i in range(in_flight):
                var k = begin + Int32(i * GROUP * width)
                if k < depth:
                    comptime for b in range(most):
                        if Int32(b) < rows:
                            var x = h.unsafe_load[width=width, alignment=16](b * depth_limit + Int(k))
                            var y = x.cast[DType.float32]()
                            comptime for j in range(OWN):
                                var e = w[i * OWN + j].cast[DType.float32]()
                                comptime for n in range(width):
                                    sums[b][j] = y[n].fma(e[n], sums[b][j])
            begin += Int32(in_flight * GROUP * width)
        comptime for b in range(most):
            comptime for j in range(OWN):
                var sum = sums[b][j]
                comptime for bit in range(3):
                    sum += warp.shuffle_xor(sum, UInt32(1 << bit))
                if lane == 0:
                    result.unsafe_store(b * TOKENS + Int(local) + j * (THREADS // GROUP), sum)
    barrier()


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def logits_kernel[
    dtype: DType, most: Int, depth_limit: Int
](
    output: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[dtype],
    rows: Int32,
    length: Int32,
    depth: Int32,
    tokens: Int32,
):
    """Stores the logits of 256 tokens: (rows, tokens)."""
    var logits = shared_memory[DType.float32, most * TOKENS]()
    var first = Int32(block_idx.x) * TOKENS
    compute_logits[most, depth_limit](logits, hidden, at, vocabulary, rows, length, depth, tokens, first)
    var token = first + Int32(thread_idx.x)
    if token < tokens:
        for row in range(rows):
            var x = logits.unsafe_load(Int(row) * TOKENS + Int(thread_idx.x))
            output[unsafe_offset=Int(row) * Int(tokens) + Int(token)] = x

"""Sums, maxima and minima over a warp, maxima over a block, the same in every thread.

A warp reduces by a butterfly of log2(WARP_SIZE) shuffles. A block writes one value of each warp to shared memory and
lets every thread reduce those: no thread is special, nothing is broadcast.

    warp 0: x x x ... x -> w0 \
    warp 1: x x x ... x -> w1  > shared memory -> every thread: max(w0, w1, ...)
    ...                       /

The order of additions is fixed, so two runs give the same bits. Both barriers of a block are needed: the first before the values are
read, the second before the next reduction may overwrite them.
"""

from max.gpu import WARP_SIZE, barrier, lane_id, warp_id
from max.gpu.primitives import warp

from .memory import shared_memory


comptime WARP_STEPS = 6 if WARP_SIZE == 64 else 5
"""Shuffles of a butterfly: step s exchanges lanes that are 2^s apart."""


@always_inline
def warp_sum(x: Float32) -> Float32:
    """Sum over the lanes of the warp, in every lane."""
    var y = x
    comptime for step in range(WARP_STEPS):
        y += warp.shuffle_xor(y, UInt32(1 << step))
    return y


@always_inline
def warp_max[dtype: DType, //](x: Scalar[dtype]) -> Scalar[dtype]:
    """Largest value of the lanes of the warp, in every lane."""
    var y = x
    comptime for step in range(WARP_STEPS):
        y = max(y, warp.shuffle_xor(y, UInt32(1 << step)))
    return y


@always_inline
def warp_min[dtype: DType, //](x: Scalar[dtype]) -> Scalar[dtype]:
    """Smallest value of the lanes of the warp, in every lane."""
    var y = x
    comptime for step in range(WARP_STEPS):
        y = min(y, warp.shuffle_xor(y, UInt32(1 << step)))
    return y


@always_inline
def block_max[threads: Int](x: Float32) -> Float32:
    """Largest value of the threads of the block, in every thread; all must call it.

    Parameters:
        threads: Threads of the block, a multiple of the warp's.

    Args:
        x: This thread's value.
    """
    var y = warp_max(x)
    comptime if threads > WARP_SIZE:
        var terms = shared_memory[DType.float32, threads // WARP_SIZE]()
        if lane_id() == 0:
            terms.unsafe_store(Int(warp_id()), y)
        barrier()
        y = terms.unsafe_load(0)
        comptime for i in range(1, threads // WARP_SIZE):
            y = max(y, terms.unsafe_load(i))
        barrier()
    return y

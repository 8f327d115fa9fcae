"""FlashAttention-2 with plain multiplications in float32: the body for float32, and for processors whose matrix
instructions have none of their own yet (AMD).

Equations and the launch are those of `flash_tensor_core.mojo`; a block has 64 queries, and a step takes 32 keys, because tiles hold
float32:

                     32 keys
               +----------------+
     query y   | x        x+8 ..|    128 threads are 16 rows of 8. Thread (y, x) has 4 queries, y + 16 i, of them 4 scores
               |                |    each, of keys x + 8 j, and 8 columns of O, 4 x + {0 .. 3, 32 .. 35}. What it reads from
     query y+16| x        x+8 ..|    shared memory it multiplies with 4 numbers (S) or with 4 and 8 (P V). The 8 threads
               +----------------+    of a row share maximum and total by shuffles; P passes through shared memory.

Shared memory, 42 KB: Q (64, 64), K (32, 64), V (32, 64), P (64, 40). No bank conflicts: Q and P are read by broadcast, V
along rows, K by 8 rows at once, whose chunks of 16 bytes are swizzled as on tensor cores; rows of P are 8 numbers longer
than needed, so that the 4 rows that a warp writes at once lie in different banks.

Cost: 4 * T*S*64 operations per head, 2 of them per instruction; bytes as on tensor cores. Occupancy: 156 registers, 42 KB:
3 blocks, 12 warps per multiprocessor on sm_80.
"""

from max.gpu import barrier, thread_idx
from max.gpu.primitives import warp
from std.math import exp2
from std.sys import size_of

from ...data import Data
from ...gpu.memory import shared_memory
from ..strip import HEAD, SCALE
from .key_values import LOWEST, KeyValues

comptime QUERIES = 64
"""Queries of one block of threads."""

comptime THREADS = 128
"""Threads of one block."""

comptime STEP = 32
"""Keys of one step."""

comptime P_STRIDE = STEP + 8
"""Elements of a row of P."""

comptime CHUNK = 4
"""Elements moved at a time: 16 bytes of float32."""

comptime CHUNKS = HEAD // CHUNK

comptime COLUMNS = 8
"""Threads that share a query."""

comptime ROWS = THREADS // COLUMNS
"""Distance of the queries of one thread."""

comptime EACH = QUERIES // ROWS
"""Queries per thread."""

comptime Four = SIMD[DType.float32, CHUNK]


@always_inline
def attend[
    dtype: DType
](
    output: Data[dtype],
    output_stride: Int32,
    queries: Data[dtype],
    query_stride: Int32,
    source: KeyValues[dtype],
    first: Int32,
    last: Int32,
    end: Int32,
    causal: Bool,
):
    """Attention of some queries of one head; arguments as in `flash_tensor_core`."""
    var q = shared_memory[DType.float32, QUERIES * HEAD]()
    var k = shared_memory[DType.float32, STEP * HEAD]()
    var v = shared_memory[DType.float32, STEP * HEAD]()
    var p = shared_memory[DType.float32, QUERIES * P_STRIDE]()
    var thread = Int32(thread_idx.x)

    # Copying: each thread has one chunk of every 8th row.
    var row = thread // Int32(CHUNKS)
    var chunk = thread % Int32(CHUNKS)
    comptime PASS = THREADS // CHUNKS
    comptime for i in range(QUERIES // PASS):
        var number = first + row + Int32(i * PASS)
        var x = Four(0)
        if number < last:
            x = _load(queries.unsafe_offset(number * query_stride + chunk * Int32(CHUNK)))
        q.unsafe_store[alignment=16]((row + Int32(i * PASS)) * Int32(HEAD) + chunk * Int32(CHUNK), x)

    var x = thread % Int32(COLUMNS)
    var y = thread // Int32(COLUMNS)
    var o = Array[Array[Four, 2], EACH](fill=Array[Four, 2](fill=0))
    var maximum = SIMD[DType.float32, EACH](LOWEST)
    var total = SIMD[DType.float32, EACH](0)

    for index in range(source.blocks[STEP](end)):
        var block = source.block[STEP](index, end)
        comptime for i in range(STEP // PASS):
            var number = row + Int32(i * PASS)
            var at = number * block.stride + chunk * Int32(CHUNK)
            var key = Four(0)
            var value = Four(0)
            if number < block.count:
                key = _load(block.keys.unsafe_offset(at))
                value = _load(block.values.unsafe_offset(at))
            var to = number * Int32(HEAD)
            k.unsafe_store[alignment=16](to + (chunk ^ row % 8) * Int32(CHUNK), key)
            v.unsafe_store[alignment=16](to + chunk * Int32(CHUNK), value)
        barrier()

        var s = Array[Four, EACH](fill=0)
        for c in range(Int32(CHUNKS)):
            var key = Array[Four, STEP // COLUMNS](fill=0)
            comptime for j in range(STEP // COLUMNS):
                key[j] = k.unsafe_load[width=CHUNK, alignment=16](
                    (x + Int32(j * COLUMNS)) * Int32(HEAD) + (c ^ x) * Int32(CHUNK)
                )
            comptime for i in range(EACH):
                var query = q.unsafe_load[width=CHUNK, alignment=16](
                    (y + Int32(i * ROWS)) * Int32(HEAD) + c * Int32(CHUNK)
                )
                comptime for j in range(STEP // COLUMNS):
                    comptime for e in range(CHUNK):
                        s[i][j] = query[e].fma(key[j][e], s[i][j])

        comptime for i in range(EACH):
            var query = y + Int32(i * ROWS)
            var horizon = source.stored + first + query + 1 if causal else end
            var seen = min(block.count, horizon - block.first)
            comptime for j in range(STEP // COLUMNS):
                if x + Int32(j * COLUMNS) >= seen:
                    s[i][j] = LOWEST
            var new = max(maximum[i], s[i].reduce_max())
            comptime for distance in [1, 2, 4]:
                new = max(new, warp.shuffle_xor(new, UInt32(distance)))
            var correction = exp2((maximum[i] - new) * SCALE)
            maximum[i] = new
            var exponentials = exp2((s[i] - new) * SCALE)
            total[i] = total[i] * correction + exponentials.reduce_add()
            comptime for c in range(2):
                o[i][c] *= correction
            comptime for j in range(STEP // COLUMNS):
                p[unsafe_offset=query * Int32(P_STRIDE) + x + Int32(j * COLUMNS)] = exponentials[j]
        barrier()

        for c in range(Int32(0), Int32(STEP), Int32(CHUNK)):
            var weights = Array[Four, EACH](fill=0)
            comptime for i in range(EACH):
                weights[i] = p.unsafe_load[width=CHUNK, alignment=16]((y + Int32(i * ROWS)) * Int32(P_STRIDE) + c)
            comptime for e in range(CHUNK):
                comptime for side in range(2):
                    var value = v.unsafe_load[width=CHUNK, alignment=16](
                        (c + Int32(e)) * Int32(HEAD) + Int32(side * HEAD // 2) + x * Int32(CHUNK)
                    )
                    comptime for i in range(EACH):
                        o[i][side] = value.fma(Four(weights[i][e]), o[i][side])
        barrier()

    comptime for i in range(EACH):
        comptime for distance in [1, 2, 4]:
            total[i] += warp.shuffle_xor(total[i], UInt32(distance))
        var number = first + y + Int32(i * ROWS)
        if number < last:
            comptime for side in range(2):
                output.unsafe_store[alignment=CHUNK * size_of[dtype]()](
                    number * output_stride + Int32(side * HEAD // 2) + x * Int32(CHUNK),
                    (o[i][side] / total[i]).cast[dtype](),
                )


@always_inline
def _load[dtype: DType](address: Data[dtype]) -> Four:
    return address.unsafe_load[width=CHUNK, alignment=CHUNK * size_of[dtype]()]().cast[DType.float32]()

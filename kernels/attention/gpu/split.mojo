"""Attention of one query per head: the keys are split among blocks of threads (FlashDecoding).

Decoding is bound by reading keys and values once; a head's query alone would keep one multiprocessor busy. Hence `splits`
blocks share the keys of a head, each with an online softmax of its own, and a second launch weighs what they found:

    block i:    m_i = max S_i     l_i = sum exp(S_i - m_i)     o_i = exp(S_i - m_i) V_i      S_i: the scores of its keys
    combine:    m = max m_i       o = sum exp(m_i - m) o_i / sum exp(m_i - m) l_i

Inside a block the same happens once more. A group of 8 lanes (16 for float32) reads a key of 128 bytes with one request of
16 bytes per lane and keeps (m, l, o) of every 32nd key; the groups meet at the end, first in their warp by shuffles, then
in shared memory:

              16 bytes
            +---+---+-- --+---+
    key 0   | 0 | 1 | ... | 7 |  group 0: S = sum over lanes of q k (3 shuffles)
    key 1   | 8 | 9 | ... | 15|  group 1    m, l, o: as above; lane t keeps the 8 columns of o that it reads of V
      ...                        4 keys per group are in flight at a time: 8 requests of 16 bytes per thread

Cost: 4 * B*H*S*64 operations; bytes: keys and values once, 2 * B*H*S*64 elements, and 2 * 264 bytes per block where a head
has several. Where one block sees all keys, there is nothing to combine: it writes the output, the second launch nothing.
Decoding by itself needs no second launch: a cache of up to 512 keys is one block per head.

The new key and value of a step come from the row that the linear layer wrote; the block that reads them puts them into
the cache. Occupancy: at most 80 registers, 256 threads: 3 blocks, 24 warps and 96 KB in flight per multiprocessor.

Dao, Haziza, Massa, Sizov: "Flash-Decoding for long-context inference", 2023.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, grid_dim, thread_idx
from max.gpu.primitives import warp
from std.math import ceildiv, exp2
from std.utils import StaticTuple

from ...data import Data
from ...gpu.memory import chunk, load_chunk, shared_memory, store_chunk
from ...gpu.overlap import start_next, wait_for_previous
from ..strip import HEAD, SCALE
from .key_values import LOWEST, KeyValues, count_stored, find_key_values

comptime SPLIT_THREADS = 256
"""Threads of one block."""

comptime WARP = 32
"""Lanes that exchange by shuffles; an AMD wave of 64 counts as two."""

comptime IN_FLIGHT = 4
"""Keys per group whose loads are issued together."""

comptime PARTS_AT_ONCE = 6
"""Blocks of a head whose findings are loaded together: 1500 keys have so many."""


@fieldwise_init
struct Softmax[width: Int](TrivialRegisterPassable):
    """An online softmax under way over some keys: m, l and `width` columns of o."""

    var maximum: Float32
    var total: Float32
    var sums: SIMD[DType.float32, Self.width]

    @always_inline
    def merge(mut self, other: Self):
        """Adds what another one has seen."""
        var maximum = max(self.maximum, other.maximum)
        var own = exp2(self.maximum - maximum)
        var theirs = exp2(other.maximum - maximum)
        self.maximum = maximum
        self.total = self.total * own + other.total * theirs
        self.sums = self.sums * own + other.sums * theirs

    @always_inline
    def from_lane(self, distance: Int) -> Self:
        """The one of the lane whose number differs in one bit."""
        var sums = self.sums
        comptime for i in range(Self.width):
            sums[i] = warp.shuffle_xor(self.sums[i], UInt32(distance))
        return Self(
            warp.shuffle_xor(self.maximum, UInt32(distance)), warp.shuffle_xor(self.total, UInt32(distance)), sums
        )


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(SPLIT_THREADS)))
def split_kernel[
    dtype: DType
](
    output: Data[dtype],
    queries: Data[dtype],
    query_stride: Int32,
    keys: Data[dtype],
    values: Data[dtype],
    capacity: Int32,
    rows: Data[dtype],
    row_stride: Int32,
    added: Int32,
    past: Data[DType.int32],
    stored: Int32,
    heads: Int32,
    split: Int32,
    parts: Data[DType.float32],
):
    """Attention of one query of one head over `split` keys, on a grid (splits, B*H); causal, and the new key goes to the
    cache as well, if `stored` is negative.

    Parameters:
        dtype: Of all operands.

    Args:
        output: (B, H*64), written if a head's keys are not split.
        queries: (B, query_stride), of which the first H*64 columns are read.
        query_stride: N.
        keys: (B, H, capacity, 64).
        values: (B, H, capacity, 64).
        capacity: C.
        rows: (B, row_stride), from the first key column on.
        row_stride: N.
        added: Keys of each batch row that lie in `rows`: 0 or 1.
        past: (B), read if `stored` is negative.
        stored: Keys of each batch row that lie in the cache; negative if `past[b]` tells.
        heads: H.
        split: Keys of one block.
        parts: (B*H, splits, 64) of o, then (B*H, splits, 2) of m and l.
    """
    start_next()
    wait_for_previous()
    comptime width = chunk[dtype]()
    comptime lanes = HEAD // width
    comptime groups = SPLIT_THREADS // lanes
    var matrix = Int32(block_idx.y)
    var batch_row = matrix // heads
    var head = matrix - batch_row * heads
    var thread = Int32(thread_idx.x)
    var column = thread % Int32(lanes) * Int32(width)
    var query = queries.unsafe_offset(Int(batch_row) * Int(query_stride) + Int(head) * HEAD)
    var known = stored
    var q: SIMD[dtype, width]
    if stored >= 0:
        q = load_chunk(query, Int(column))
    else:  # a text has few keys at first: let not every warp read the query and past
        var shared_query = shared_memory[dtype, HEAD]()
        var shared_count = shared_memory[DType.int32, 1]()
        if thread < Int32(lanes):
            shared_query.unsafe_store[alignment=16](Int(column), load_chunk(query, Int(column)))
        if thread == 0:
            shared_count.unsafe_store(0, count_stored(batch_row, capacity, added, past, stored))
        barrier()
        q = shared_query.unsafe_load[width=width, alignment=16](Int(column))
        known = shared_count.unsafe_load(0)
    var scaled = q.cast[DType.float32]() * SCALE
    var source = find_key_values(batch_row, head, heads, keys, values, capacity, rows, row_stride, added, past, known)
    var first = Int32(block_idx.x) * split
    var end = min(first + split, source.total)
    if first >= end:
        return

    var found = Softmax[width](LOWEST, 0, 0)
    comptime step = Int32(IN_FLIGHT * groups)
    while first + step <= min(end, source.stored):
        _attend[groups, guarded=False](found, scaled, source, first + thread // Int32(lanes), end, column)
        first += step
    if first < end:
        _attend[groups, guarded=True](found, scaled, source, first + thread // Int32(lanes), end, column)

    comptime for distance in [8, 16]:
        comptime if distance >= lanes:
            found.merge(found.from_lane(distance))
    comptime warps = SPLIT_THREADS // WARP
    var sums = shared_memory[DType.float32, warps * HEAD]()
    var maxima = shared_memory[DType.float32, warps]()
    var totals = shared_memory[DType.float32, warps]()
    var part = thread // Int32(WARP)
    if thread % Int32(WARP) < Int32(lanes):
        comptime for i in range(0, width, 4):
            sums.unsafe_store[alignment=16](
                part * Int32(HEAD) + _place(column + Int32(i)), found.sums.slice[4, offset=i]()
            )
    if thread % Int32(WARP) == 0:
        maxima[unsafe_offset=part] = found.maximum
        totals[unsafe_offset=part] = found.total
    barrier()
    if thread >= Int32(HEAD):
        return
    var all = Softmax[1](LOWEST, 0, 0)
    comptime for w in range(warps):
        all.merge(
            Softmax[1](
                maxima[unsafe_offset=w], totals[unsafe_offset=w], sums[unsafe_offset=Int32(w * HEAD) + _place(thread)]
            )
        )
    if source.total <= split:
        output[unsafe_offset=matrix * Int32(HEAD) + thread] = (all.sums / all.total).cast[dtype]()
    else:
        var place = Int(matrix * Int32(grid_dim.x) + Int32(block_idx.x))
        parts[unsafe_offset=place * HEAD + Int(thread)] = all.sums
        if thread == 0:
            var weights = parts.unsafe_offset(Int(grid_dim.x * grid_dim.y) * HEAD)
            weights.unsafe_store[alignment=8](place * 2, SIMD[DType.float32, 2](all.maximum, all.total))


@always_inline
def _place(column: Int32) -> Int32:
    """Where shared memory has a column of o: behind the first 32, neighbours of 16 bytes are swapped. So the 8 lanes that
    store at once, every second 16 bytes, meet all banks."""
    return column ^ column // 32 * 4


@always_inline
def _attend[
    dtype: DType, //, groups: Int, *, guarded: Bool
](
    mut found: Softmax[chunk[dtype]()],
    q: SIMD[DType.float32, chunk[dtype]()],
    source: KeyValues[dtype],
    first: Int32,
    end: Int32,
    column: Int32,
):
    """Takes `IN_FLIGHT` keys per group into account.

    Parameters:
        dtype: Of keys and values.
        groups: Groups of lanes in a block.
        guarded: Whether keys may lie beyond the end, or be new.

    Args:
        found: What the group has seen so far.
        q: This lane's columns of the query, scaled for exp2.
        source: Keys and values.
        first: The group's first key; the next ones follow at a distance of `groups`.
        end: One behind the last key.
        column: Where this lane's columns begin.
    """
    comptime width = chunk[dtype]()
    var k = Array[SIMD[dtype, width], IN_FLIGHT](fill=0)
    var v = Array[SIMD[dtype, width], IN_FLIGHT](fill=0)
    comptime for i in range(IN_FLIGHT):
        var number = first + Int32(i * groups)
        comptime if not guarded:
            k[i] = load_chunk(source.keys, Int(number * Int32(HEAD) + column))
            v[i] = load_chunk(source.values, Int(number * Int32(HEAD) + column))
        else:
            if number < min(end, source.stored):
                k[i] = load_chunk(source.keys, Int(number * Int32(HEAD) + column))
                v[i] = load_chunk(source.values, Int(number * Int32(HEAD) + column))
            elif number < end:  # the new key
                k[i] = load_chunk(source.rows, Int(column))
                v[i] = load_chunk(source.rows, Int(source.width + column))
                store_chunk(source.keys, Int(number * Int32(HEAD) + column), k[i])
                store_chunk(source.values, Int(number * Int32(HEAD) + column), v[i])

    var s = SIMD[DType.float32, IN_FLIGHT](LOWEST)
    comptime for i in range(IN_FLIGHT):
        var products = k[i].cast[DType.float32]() * q
        var score = products.reduce_add()
        comptime for distance in [8, 4, 2, 1]:
            comptime if distance < HEAD // width:
                score += warp.shuffle_xor(score, UInt32(distance))
        comptime if guarded:
            if first + Int32(i * groups) >= end:
                score = LOWEST
        s[i] = score
    var maximum = max(found.maximum, s.reduce_max())
    var correction = exp2(found.maximum - maximum)
    var p = exp2(s - maximum)
    found.maximum = maximum
    found.total = found.total * correction + p.reduce_add()
    found.sums *= correction
    comptime for i in range(IN_FLIGHT):
        found.sums = v[i].cast[DType.float32]().fma(SIMD[DType.float32, width](p[i]), found.sums)


def combine_kernel[
    dtype: DType
](
    output: Data[dtype],
    parts: Data[DType.float32],
    capacity: Int32,
    added: Int32,
    past: Data[DType.int32],
    stored: Int32,
    heads: Int32,
    split: Int32,
    splits: Int32,
):
    """Weighs what the blocks of one head found, on a grid (B*H) of 64 threads; arguments as in `split_kernel`."""
    start_next()
    wait_for_previous()
    var matrix = Int32(block_idx.x)
    var thread = Int32(thread_idx.x)
    var keys = count_stored(matrix // heads, capacity, added, past, stored) + added
    if keys <= split:
        return
    var all = _weigh(parts, matrix, Int32(grid_dim.x), splits, ceildiv(keys, split), thread)
    output[unsafe_offset=matrix * Int32(HEAD) + thread] = (all.sums / all.total).cast[dtype]()


@always_inline
def _weigh(
    parts: Data[DType.float32], matrix: Int32, matrices: Int32, splits: Int32, count: Int32, column: Int32
) -> Softmax[1]:
    """Weighs what the first `count` of a head's blocks found for one column; the loads of several are started at once.
    """
    var weights = parts.unsafe_offset(Int(matrices * splits) * HEAD)
    var first = Int(matrix * splits)
    var all = Softmax[1](LOWEST, 0, 0)
    for some in range(Int32(0), count, Int32(PARTS_AT_ONCE)):
        var sums = Array[Float32, PARTS_AT_ONCE](fill=0)
        var seen = Array[SIMD[DType.float32, 2], PARTS_AT_ONCE](fill={LOWEST, 0})
        comptime for i in range(PARTS_AT_ONCE):
            if some + Int32(i) < count:
                var place = first + Int(some) + i
                seen[i] = weights.unsafe_load[width=2, alignment=8](place * 2)
                sums[i] = parts[unsafe_offset=place * HEAD + Int(column)]
        comptime for i in range(PARTS_AT_ONCE):
            all.merge(Softmax[1](seen[i][0], seen[i][1], sums[i]))
    return all

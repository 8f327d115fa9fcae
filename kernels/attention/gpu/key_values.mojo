"""Where attention on a GPU finds its keys and values: the older ones in the cache, the newest still in the rows that the
linear layer wrote. No kernel copies keys only to read them back."""

from max.gpu import thread_idx
from std.math import ceildiv

from ...data import Data
from ...gpu.memory import chunk, load_chunk, store_chunk
from ..strip import HEAD


comptime LOWEST = Float32.MIN_FINITE
"""The score of a key that is not seen: its exponential is 0, and LOWEST - LOWEST is a number."""


@fieldwise_init
struct KeyBlock[dtype: DType](TrivialRegisterPassable):
    """Some keys and their values, all in the cache or all in the rows."""

    var keys: Data[Self.dtype]
    """The first key."""
    var values: Data[Self.dtype]
    """Its value."""
    var stride: Int32
    """Distance from one key to the next, and from one value to the next."""
    var first: Int32
    """Number of the first key among all."""
    var count: Int32
    """Keys from the first one to the end of the cached ones or of all."""


@fieldwise_init
struct KeyValues[dtype: DType](TrivialRegisterPassable):
    """The keys and values of one head of one batch row.

    key number        0 .. stored - 1           stored .. total - 1
    lies in           keys (B, H, C, 64)        rows (B, T, N), columns [N - 2*H*64 + 64*h, + 64)
    and its value in  values (B, H, C, 64)      rows, H*64 columns further
    """

    var keys: Data[Self.dtype]
    var values: Data[Self.dtype]
    var rows: Data[Self.dtype]
    var row_stride: Int32
    var width: Int32
    var stored: Int32
    var total: Int32

    @always_inline
    def blocks[size: Int](self, end: Int32) -> Int32:
        """Blocks of `size` keys up to key `end`; the first of the new keys begins a block."""
        return ceildiv(self.stored, Int32(size)) + ceildiv(end - self.stored, Int32(size))

    @always_inline
    def block[size: Int](self, index: Int32, end: Int32) -> KeyBlock[Self.dtype]:
        """One of the `blocks`.

        Parameters:
            size: Keys per block.

        Args:
            index: Its number.
            end: One behind the last key that counts.
        """
        var cached = ceildiv(self.stored, Int32(size))
        if index < cached:
            var first = index * Int32(size)
            var at = first * Int32(HEAD)
            return KeyBlock(
                self.keys.unsafe_offset(at), self.values.unsafe_offset(at), Int32(HEAD), first, self.stored - first
            )
        var row = (index - cached) * Int32(size)
        var key = self.rows.unsafe_offset(row * self.row_stride)
        var number = self.stored + row
        return KeyBlock(key, key.unsafe_offset(self.width), self.row_stride, number, end - number)

    @always_inline
    def append[threads: Int](self, first: Int32, last: Int32):
        """Copies new keys and values into the cache, behind the stored ones; called by the threads of a block.

        Parameters:
            threads: How many they are.

        Args:
            first: The first of the new keys to be copied.
            last: One behind the last.
        """
        comptime in_key = Int32(HEAD // chunk[Self.dtype]())
        for i in range(Int32(thread_idx.x), (last - first) * in_key, Int32(threads)):
            var t = first + i // in_key
            var column = i % in_key * Int32(chunk[Self.dtype]())
            var at = Int(t * self.row_stride + column)
            var to = Int((self.stored + t) * Int32(HEAD) + column)
            store_chunk(self.keys, to, load_chunk(self.rows, at))
            store_chunk(self.values, to, load_chunk(self.rows, at + Int(self.width)))


@always_inline
def count_stored(batch_row: Int32, capacity: Int32, added: Int32, past: Data[DType.int32], stored: Int32) -> Int32:
    """How many keys of a batch row lie in the cache; arguments as in `find_key_values`."""
    if stored >= 0:
        return stored
    # The host cannot see past: whatever stands there, stay inside the cache.
    return min(max(past[unsafe_offset=batch_row], 0), capacity - added)


@always_inline
def find_key_values[
    dtype: DType, //
](
    batch_row: Int32,
    head: Int32,
    heads: Int32,
    keys: Data[dtype],
    values: Data[dtype],
    capacity: Int32,
    rows: Data[dtype],
    row_stride: Int32,
    added: Int32,
    past: Data[DType.int32],
    stored: Int32,
) -> KeyValues[dtype]:
    """The keys and values of one head of one batch row.

    Args:
        batch_row: The number b.
        head: The number h.
        heads: H.
        keys: (B, H, C, 64).
        values: (B, H, C, 64).
        capacity: C.
        rows: (B, added, N), from the first key column on.
        row_stride: N.
        added: Keys of each batch row that lie in `rows`.
        past: (B), read if `stored` is negative.
        stored: Keys of each batch row that lie in the cache; negative if `past[b]` tells.
    """
    var count = count_stored(batch_row, capacity, added, past, stored)
    var cache = Int(batch_row * heads + head) * Int(capacity) * HEAD
    return KeyValues(
        keys.unsafe_offset(cache),
        values.unsafe_offset(cache),
        rows.unsafe_offset(Int(batch_row) * Int(added) * Int(row_stride) + Int(head) * HEAD),
        row_stride,
        heads * Int32(HEAD),
        count,
        count + added,
    )

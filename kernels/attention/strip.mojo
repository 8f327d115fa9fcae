"""What the bodies of attention have in common: the softmax of a strip of queries, step by step."""

from ..cpu.tile import PANEL
from ..data import Data
from ..math import LOG2_E, larger

comptime HEAD = 64
"""Elements of one head: Whisper's, from tiny to large."""

comptime HEAD_PANELS = HEAD // PANEL
"""Panels of 16 columns of a head."""

comptime SCALE = Float32(0.125) * LOG2_E
"""1 / sqrt(HEAD) and the step from powers of e to powers of 2: maxima and exponents are kept times log2(e)."""

comptime HEADROOM = Float32(32)
"""By how much scores times SCALE may exceed the bound m of a body that raises it seldom: weights of up to 2^32 are as exact as
those of up to 1, and sums of them are far below the largest float32."""


@always_inline
def largest_lanes[width: Int](scores: Data[DType.float32], count: Int) -> SIMD[DType.float32, width]:
    """The largest of every `width`-th of some scores: `count` is a multiple of `width`, and positive."""
    var top = scores.unsafe_load[width=width](0)
    for j in range(width, count, width):
        top = larger(top, scores.unsafe_load[width=width](j))
    return top


trait StripSoftmax(TrivialRegisterPassable):
    """The state of a block of queries of one head, and the step that brings it up to date with a block of keys.

    For every query: m, a bound of its scores so far; l, the sum of its weights 2^(score - m); O, the sum of its values so
    weighted.
    """

    comptime dtype: DType
    """Element type of queries."""

    comptime cache_type: DType
    """Element type of keys and values."""

    comptime panel_size: Int
    """Elements that a panel of 16 keys takes."""

    comptime value_group: Int
    """Values of a head are filled up with zeros to a multiple of this."""

    comptime group_size: Int
    """Elements that as many values take."""

    comptime rows: Int
    """Queries of a strip."""

    comptime query_block: Int
    """Queries of a block: those that meet a block of keys before the next one is read."""

    comptime key_block: Int
    """Keys of a block: those whose scores a strip holds at a time."""

    def __init__(out self):
        """Takes memory for a block of queries."""
        ...

    def end(self):
        """Gives it back."""
        ...

    def meet(mut self, keys: Data[Self.cache_type], capacity: Int):
        """Gets to know the keys of the next blocks' head.

        Args:
            keys: The head's keys.
            capacity: Keys there is room for.
        """
        pass

    def begin(mut self, queries: Data[Self.dtype], stride: Int, count: Int):
        """Begins a block: no key has been seen.

        Args:
            queries: First element of the first query.
            stride: Elements from one query to the next.
            count: Queries, up to `query_block`.
        """
        ...

    def step[
        causal: Bool
    ](
        mut self,
        first: Int,
        count: Int,
        keys: Data[Self.cache_type],
        values: Data[Self.cache_type],
        capacity: Int,
        key: Int,
        key_count: Int,
        seen: Int,
    ):
        """One step of the online softmax.

        Parameters:
            causal: Whether each query sees one key more than the one before.

        Args:
            first: The strip's first query, within the block.
            count: Queries of the strip.
            keys: The head's keys.
            values: The head's values.
            capacity: Keys there is room for.
            key: First key of the step, a multiple of `key_block`.
            key_count: Keys of the step.
            seen: How many keys from `key` on the strip's first query sees, if causal; may be negative, or more than there are.
        """
        ...

    def finish(mut self, count: Int):
        """Completes what the steps have begun: all keys have been seen.

        Args:
            count: Queries of the block.
        """
        pass

    def sums(self, query: Int) -> Data[DType.float32]:
        """The sum O of a query's weighted values: HEAD elements."""
        ...

    def total(self, query: Int) -> Float32:
        """The sum l of a query's weights."""
        ...


trait RoundedSoftmax(StripSoftmax):
    """One whose keys and values are made of rows of float32, as many together as `value_group`."""

    @staticmethod
    def pack_group(
        keys: Data[Self.cache_type],
        values: Data[Self.cache_type],
        rows: Data[DType.float32],
        row_stride: Int,
        heads: Int,
        length: Int,
        matrix: Int,
        group: Int,
    ):
        """Rounds the keys and values of a group of rows of one head.

        Args:
            keys: All keys.
            values: All values.
            rows: (batch, length, row_stride), the last 2*H*64 columns of which are keys and values.
            row_stride: N.
            heads: H.
            length: Rows of a batch row.
            matrix: Batch row times H, plus head.
            group: Which rows.
        """
        ...

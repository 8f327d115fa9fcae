"""Transposing a square of lanes in registers: as many rows as a row has lanes.

    log2(n) rounds; in the round of distance d, rows d apart exchange the lanes that are as far apart:

        a0 a1 a2 a3     a0 b0 a2 b2     a0 b0 c0 d0
        b0 b1 b2 b3     a1 b1 a3 b3     a1 b1 c1 d1      each round takes n shuffles of two registers,
        c0 c1 c2 c3     c0 d0 c2 d2     a2 b2 c2 d2      where element by element would take n * n loads and stores
        d0 d1 d2 d3     c1 d1 c3 d3     a3 b3 c3 d3
"""

from std.collections import Array
from std.utils import IndexList


def _exchange_lanes[size: Int, distance: Int](first: Bool) -> IndexList[size]:
    """Where the lanes of the first or second row of a pair come from: lanes of the second row count from `size` on."""
    var lanes = IndexList[size]()
    for i in range(size):
        if first:
            lanes[i] = i if i & distance == 0 else size + i - distance
        else:
            lanes[i] = i + distance if i & distance == 0 else size + i
    return lanes


@always_inline
def transpose[dtype: DType, size: Int, distance: Int = 1](mut rows: Array[SIMD[dtype, size], size]):
    """Transposes `size` rows of `size` lanes, a power of two.

    Parameters:
        dtype: Element type.
        size: Rows and lanes.
        distance: Where to begin: the first round.
    """
    comptime if distance < size:
        comptime for i in range(size):
            comptime if i & distance == 0:
                var a = rows[i]
                var b = rows[i + distance]
                rows[i] = a.shuffle[_exchange_lanes[size, distance](True)](b)
                rows[i + distance] = a.shuffle[_exchange_lanes[size, distance](False)](b)
        transpose[dtype, size, 2 * distance](rows)

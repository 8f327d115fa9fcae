"""Asking for memory before it is read.

The hardware fetches ahead by itself, but stops where a page ends; and one row of A, which reads every byte of B once, leaves
the core waiting for it. Who knows what comes next asks for it, line by line.
"""

from std.sys.intrinsics import PrefetchOptions, prefetch

from ..data import Data


@always_inline
def ask_for[dtype: DType, //](x: Data[dtype]):
    """Asks for the cache line of an element that is going to be read; the address need not exist.

    Parameters:
        dtype: Of the element.

    Args:
        x: The element.
    """
    prefetch[PrefetchOptions().for_read().high_locality().to_data_cache()](x)

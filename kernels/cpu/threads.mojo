"""How work is shared between the worker threads of the MAX runtime."""

from std.math import ceildiv

from max.algorithm import sync_parallelize
from max.runtime.asyncrt import parallelism_level


def worker_count() -> Int:
    """Threads the runtime gives to one op."""
    return max(1, parallelism_level(None))


comptime GRAIN_BYTES = 256 * 1024
"""Bytes that a core moves in about 20 us. Less work than this does not pay for waking a sleeping thread."""


def grain(bytes_per_item: Int) -> Int:
    """Fewest items of a memory-bound kernel that are worth a thread.

    Args:
        bytes_per_item: Bytes read and written for one item.

    Returns:
        The `grain` argument of `share`.
    """
    return ceildiv(GRAIN_BYTES, max(1, bytes_per_item))


@always_inline
def share[Work: def(Int, Int) -> None](work: Work, items: Int, grain: Int = 1):
    """Calls `work(begin, end)` once per thread with consecutive ranges that cover `0 ..< items`.

    Parameters:
        Work: A closure of two positions.

    Args:
        work: The body.
        items: Number of equal pieces of work; nothing is called for 0.
        grain: Fewest items that a thread is woken for; with less than two grains the calling thread does it all.
    """
    var tasks = min(items, max(1, items // grain), worker_count())

    @always_inline
    def task(i: Int) {imm work, imm items, imm tasks}:
        work(items * i // tasks, items * (i + 1) // tasks)

    sync_parallelize(task, tasks)

"""How work is shared between the worker threads of the MAX runtime: in pieces, which they take as they come."""

from std.atomic import Atomic
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


comptime TURNS = 16
"""Pieces of work for each thread, about. Cores are seldom equally fast: each of them may serve other programs, and on a virtual
machine other machines. Whoever is done takes the next piece, so nobody waits longer than for one of them."""


@always_inline
def share[Work: def(Int, Int) -> None](work: Work, items: Int, grain: Int = 1, turns: Int = TURNS):
    """Calls `work(begin, end)` on all threads with consecutive ranges that cover `0 ..< items`, each of them once.

    Parameters:
        Work: A closure of two positions.

    Args:
        work: The body.
        items: Number of equal pieces of work; nothing is called for 0.
        grain: Fewest items that a thread is woken for; with less than two grains the calling thread does it all.
        turns: Ranges for each thread: 1 where beginning a range costs as much as some items.
    """
    var tasks = min(items, max(1, items // grain), worker_count())
    if tasks == 1:
        work(0, items)
        return
    var ranges = min(items, tasks * turns)
    var taken = Int64(0)
    var counter = Pointer(to=taken)

    @always_inline
    def task(i: Int) {imm work, imm items, imm ranges, imm counter}:
        while True:
            var next = Int(Atomic[Int64].fetch_add(counter, 1))
            if next >= ranges:
                return
            work(items * next // ranges, items * (next + 1) // ranges)

    sync_parallelize(task, tasks)

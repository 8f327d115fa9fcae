"""How work is shared between the worker threads of the MAX runtime."""

from max.algorithm import sync_parallelize
from max.runtime.asyncrt import parallelism_level


def worker_count() -> Int:
    """Threads the runtime gives to one op."""
    return max(1, parallelism_level(None))


@always_inline
def share[Work: def(Int, Int) -> None](work: Work, items: Int):
    """Calls `work(begin, end)` once per thread with consecutive ranges that cover `0 ..< items`.

    Parameters:
        Work: A closure of two positions.

    Args:
        work: The body.
        items: Number of equal pieces of work; nothing is called for 0.
    """
    var tasks = min(items, worker_count())

    @always_inline
    def task(i: Int) {imm work, imm items, imm tasks}:
        work(items * i // tasks, items * (i + 1) // tasks)

    sync_parallelize(task, tasks)

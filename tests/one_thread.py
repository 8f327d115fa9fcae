"""Keeps MAX to one thread in a process that compiles.

It starts a thread for each core that it finds, divides what it compiles among them, and then compiles part of it more than
once: with two, the kernels' ops took as long as with one, 1.4 times the processor time, and came out larger by half. The
other half of the tests has better use for that core.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def one_core(which: int = 0) -> Iterator[None]:
    """Keeps this thread, and what it starts, on one core, if cores can be chosen here.

    Args:
        which: Of what is to run side by side.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[which % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def start_one_thread(device: str = "cpu") -> None:
    """Starts MAX with one thread, which then runs on whatever core is free.

    Args:
        device: What this process computes on.
    """
    from max_whisper import runtime

    with one_core():
        runtime.use(device)
        runtime.session()
    if hasattr(os, "sched_setaffinity"):
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))

"""How late this process's timers may be: what keeps MAX's logger from taking the cores away from the kernels.

The first execution of a graph starts a thread that looks every 100 us whether there is something to log, 6,000 times in a
second, and each time stops a kernel that has that core. There is no switch for it. But a thread's timers may be late by
the slack that it inherits from the thread that starts it, and one that may be late does not wake up for a look alone.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30  # <linux/prctl.h>


@contextmanager
def late_timers(nanoseconds: int = 100_000_000) -> Iterator[None]:
    """Lets the timers of threads that are started inside be late. Without effect where the system is not Linux.

    Args:
        nanoseconds: How late.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        yield
        return
    prctl.argtypes = ctypes.c_int, ctypes.c_ulong
    before = prctl(PR_GET_TIMERSLACK, 0)
    prctl(PR_SET_TIMERSLACK, nanoseconds)
    try:
        yield
    finally:
        prctl(PR_SET_TIMERSLACK, before)

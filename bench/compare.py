"""Times two ways of computing the same thing in turns, so that both meet the same weather on a shared machine."""

from collections.abc import Callable
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 100
SECONDS = 2.0


def compare(
    benchmark: BenchmarkFixture,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    flops: float | None = None,
    bytes: float | None = None,
) -> None:
    """Runs theirs, ours, ours, theirs, over and over, and leaves the medians in `benchmark.extra_info`.

    Its columns: ours_ms, theirs_ms, ratio (theirs / ours) and, of ours, gflop_per_s and gb_per_s where they are known.

    Args:
        benchmark: pytest-benchmark's fixture; the times that it reports by itself are ours.
        ours: Calls our kernel.
        theirs: Calls what it is compared with.
        flops: Operations in one call of ours.
        bytes: Bytes that one call of ours has to move.
    """
    pair = min(_seconds(ours) + _seconds(theirs) for _ in range(2))
    times: list[float] = []
    theirs_is_due = cycle((True, False, False, True))  # asked before and after each call of ours

    def turn() -> None:
        if next(theirs_is_due):
            times.append(_seconds(theirs))

    def after(*_: Any) -> None:
        turn()

    rounds = 2 * max(3, min(ROUNDS, int(SECONDS / pair)) // 2)
    benchmark.pedantic(ours, setup=turn, teardown=after, rounds=rounds)
    metadata: Any = benchmark.stats
    if metadata is not None:  # None where benchmarks are disabled and everything ran once
        mine, other = metadata.stats.median, median(times)
        benchmark.extra_info |= {"ours_ms": mine * 1e3, "theirs_ms": other * 1e3, "ratio": other / mine}
        benchmark.extra_info |= {"gflop_per_s": flops / mine / 1e9} if flops else {}
        benchmark.extra_info |= {"gb_per_s": bytes / mine / 1e9} if bytes else {}


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start

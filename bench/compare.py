"""Times two ways of computing the same thing in turns, so that both meet the same weather on a shared machine."""

from collections.abc import Callable
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench.ceilings import ceilings

ROUNDS = 100
SECONDS = 0.5


def compare(
    benchmark: BenchmarkFixture,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    flops: float,
    bytes: float,
    dtype: str = "float32",
    repeats: int = 1,
) -> None:
    """Runs theirs, ours, ours, theirs, over and over, and leaves the medians in `benchmark.extra_info`.

    Its columns: ours_ms, theirs_ms, ratio (theirs / ours); of ours the rate, in the unit of what bounds it, and the percent
    of the machine's ceiling that this is.

    Args:
        benchmark: pytest-benchmark's fixture; the times that it reports by itself are ours.
        ours: Calls our kernel.
        theirs: Calls what it is compared with.
        flops: Operations in one call of ours.
        bytes: Bytes that one call of ours has to move.
        dtype: What many rows are multiplied with.
        repeats: How often a call of either does that.
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
        least, unit = ceilings().bound(flops, bytes, dtype)
        least, rate = repeats * least, repeats * (flops if unit == "GFLOP/s" else bytes) / mine / 1e9
        benchmark.extra_info |= {"rate": rate, "unit": unit, "percent": 100 * least / mine}


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start

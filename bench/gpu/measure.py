"""Times both legs on a real GPU, with the device's own events.

Nobody has run this yet: the maintainers' machines have no GPU.
"""

from dataclasses import dataclass
from statistics import median

from max.driver import Accelerator, DeviceEvent

from bench.gpu.cases import Case
from bench.gpu.peaks import GPUS, Gpu, find
from bench.gpu.run import Prepared

CALLS, ROUNDS = 20, 10
"""Calls between two events; how often each leg has its turn."""


@dataclass(frozen=True)
class Times:
    """Microseconds of a call.

    Attributes:
        ours: Of our op.
        builtin: Of MAX's graph.
        peak: What the published rates allow at the least; 0 for a GPU that is not in `peaks`.
    """

    ours: float
    builtin: float
    peak: float


def measure(case: Case, ours: Prepared, builtin: Prepared, device: Accelerator, gpu: Gpu | None) -> Times:
    """Times a case: theirs, ours, ours, theirs, over and over; medians.

    Calls follow each other without a pause, so they find their operands in the level-2 cache where it holds them, and short
    kernels take as long as the CPU needs to launch them.
    """
    times: dict[str, list[float]] = {"ours": [], "builtin": []}
    for number in range(2 * ROUNDS + 2):
        order = [("ours", ours), ("builtin", builtin)]
        for name, leg in order if number % 2 else reversed(order):
            times[name].append(_microseconds(leg, device))
    ours_us, builtin_us = (median(times[name][2:]) for name in ("ours", "builtin"))  # the first two turns warm up
    least = max(case.least / gpu.memory, 2 * case.products / gpu.tensor) * 1e6 if gpu else 0.0
    return Times(ours_us, builtin_us, least)


def _microseconds(leg: Prepared, device: Accelerator) -> float:
    start, end = (DeviceEvent(device, enable_timing=True) for _ in range(2))
    queue = device.default_queue
    queue.record_event(start)
    for _ in range(CALLS):
        leg.model.execute(*leg.buffers)
    queue.record_event(end)
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / CALLS


def table(cases: list[Case], prepared: list[Prepared]) -> str:
    """The measured table, as Markdown."""
    device = Accelerator()
    gpu = find(device.model_name)
    known = gpu.name if gpu else f"not one of {', '.join(known.name for known in GPUS)}: no percentages"
    lines = [
        f"{device.model_name} ({known}); medians of {2 * ROUNDS} turns of {CALLS} calls each.\n",
        "| function | shape | ours, us | of the peak | MAX, us | ratio |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for number, case in enumerate(cases):
        times = measure(case, prepared[2 * number], prepared[2 * number + 1], device, gpu)
        percent = f"{100 * times.peak / times.ours:.0f} %" if gpu else ""
        lines.append(
            f"| {case.name} | {case.shape} | {times.ours:.1f} | {percent} | {times.builtin:.1f} | "
            f"{times.builtin / times.ours:.2f} |"
        )
    return "\n".join(lines)

"""Times on a real GPU, by the device's own events: both legs of every case, tiny.en's graphs, a recording.

What is timed is captured into a device graph and replayed, so that no launch waits for the CPU; but a replay itself takes
about 5 us on an H200, which is what a single shorter kernel shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from time import perf_counter

import numpy as np
from max.driver import Accelerator, Buffer, DeviceEvent
from max.engine import Model

from bench.gpu import model as prediction
from bench.gpu.cases import Case
from bench.gpu.page import table
from bench.gpu.peaks import Gpu
from bench.gpu.run import Prepared, are_alike
from max_whisper import eager, runtime
from max_whisper.audio import SAMPLE_RATE, load_audio
from max_whisper.model import Whisper

REPLAYS, ROUNDS = 20, 10
"""Replays between two events; how often each leg has its turn, twice."""

PAST = 100
"""Tokens in the caches of the step that is timed."""

_keys = count(1 << 32)


def replaying(model: Model, inputs: Sequence[Buffer]) -> tuple[Callable[[], None], list[Buffer]]:
    """Captures a loaded graph; one with an argument on the host, which cannot be captured, is executed instead.

    Returns:
        What replays it, and the results, which every replay writes anew.
    """
    if any(buffer.device.is_host for buffer in inputs):
        return lambda: _execute(model, inputs), runtime.execute(model, *inputs)
    key = next(_keys)
    results = runtime.capture(model, key, *inputs)
    return lambda: runtime.replay(model, key, *inputs), results


def _execute(model: Model, inputs: Sequence[Buffer]) -> None:
    runtime.execute(model, *inputs)


def microseconds(call: Callable[[], None], device: Accelerator, calls: int = REPLAYS) -> float:
    """Of one of several calls that follow each other."""
    start, end = (DeviceEvent(device, enable_timing=True) for _ in range(2))
    queue = device.default_queue
    queue.record_event(start)
    for _ in range(calls):
        call()
    queue.record_event(end)
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / calls


@dataclass(frozen=True)
class Times:
    """Microseconds of a call.

    Attributes:
        ours: Of our op.
        builtin: Of MAX's graph, or why there is no time.
        least: What the published rates allow at the least; 0 for a GPU that is not in `peaks`.
    """

    ours: float
    builtin: float | str
    least: float


def measure(case: Case, ours: Prepared, builtin: Prepared, device: Accelerator, gpu: Gpu | None) -> Times:
    """Times a case: theirs, ours, ours, theirs, over and over; medians. Where the results differ the built-in leg does not
    count: ours is held against float64 by the tests of `tests/gpu`.

    Calls follow each other without a pause, so they find their operands in the level-2 cache where it holds them.
    """
    least = max(case.least / gpu.memory, 2 * case.products / gpu.tensor) * 1e6 if gpu else 0.0
    calls, expected = {}, []
    calls["ours"], expected = run_once(ours)
    reason = "its result is not ours, which is tested against float64"
    try:
        call, results = run_once(builtin)
        if all(are_alike(mine, other) for mine, other in zip(expected, results, strict=True)):
            calls["builtin"] = call
    except Exception as error:  # whatever MAX says
        reason = " ".join(str(error).split())[:200]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(2 * ROUNDS + 2):
        for name in calls if number % 2 else reversed(calls):
            times[name].append(microseconds(calls[name], device))
    medians = {name: median(rounds[2:]) for name, rounds in times.items()}  # the first two turns warm up
    return Times(medians["ours"], medians.get("builtin", reason), least)


def run_once(leg: Prepared) -> tuple[Callable[[], None], list[np.ndarray]]:
    """Captures a leg and replays it once; what replays it, and its results."""
    call, buffers = replaying(leg.model, leg.buffers)
    call()
    return call, [eager.to_array(buffer) for buffer in buffers]


def kernels(cases: Sequence[Case], prepared: Sequence[Prepared], gpu: Gpu | None) -> str:
    """The table of both legs of all cases."""
    device, rows, reasons = Accelerator(), [], []
    for number, case in enumerate(cases):
        times = measure(case, prepared[2 * number], prepared[2 * number + 1], device, gpu)
        cells = [case.name, case.shape, f"{times.ours:.2f}"]
        cells += [f"{times.least:.2f}", f"{100 * times.least / times.ours:.0f} %"] if gpu else ["", ""]
        if isinstance(times.builtin, str):
            cells += ["see below", ""]
            reasons.append(f"- {case.name}, {case.shape}: {times.builtin}")
        else:
            cells += [f"{times.builtin:.2f}", f"{times.builtin / times.ours:.2f}"]
        rows.append(cells)
        print(" | ".join(cells), flush=True)
    head = "function | shape | ours, us | least, us | of the peak | MAX, us | MAX / ours"
    return "\n".join([table(head, rows), "", *reasons])


def graphs(model: Whisper, gpu: Gpu | None) -> str:
    """The table of a model's graphs, each beside what the model of time says without instructions."""
    device, dims = Accelerator(), model.dims
    width, layers = dims.n_audio_state, dims.n_audio_layer
    rng, rows = np.random.default_rng(0), []

    def add(name: str, batch: int, call: Callable[[], None], launches: list) -> None:
        call()
        us = median(microseconds(call, device) for _ in range(ROUNDS))
        predicted = 1e6 * sum(prediction.estimate(launch, gpu, {}).seconds for launch in launches) if gpu else 0
        rows.append([name, str(batch), f"{us:.0f}", f"{predicted:.0f}" if gpu else "", str(len(launches))])
        print(" | ".join(rows[-1]), flush=True)

    for batch in (1, 8):
        mel = model.put(rng.standard_normal((batch, dims.n_mels, 2 * dims.n_audio_ctx)).astype(np.float32))
        heard = prediction.encoder(batch, width, layers)
        kept = 2 * layers
        call, (states,) = replaying(model.graphs["encoder"], [mel])
        add("encoder", batch, call, heard[2:-kept])
        call, _ = replaying(model.graphs["cross_attention"], [states])
        add("keys and values of the audio", batch, call, heard[-kept:])
        room = model.rooms.take(batch)
        step = room.step(batch)
        arguments = np.ones((batch, 1), np.int32), np.full(batch, PAST, np.int32), np.zeros((batch, 4), np.int32)
        step.run(*arguments)
        add("decoding step", batch, step.replay, prediction.decoder(batch, width, layers, PAST))
        model.rooms.give(room)
    return table("graph | windows | us | model of time, us | launches", rows)


def recording(model: Whisper, path: str) -> str:
    """The table of real-time factors of a recording, decoded and in memory; from samples to text, Python included."""
    samples = load_audio(path)
    seconds, rows = len(samples) / SAMPLE_RATE, []
    for batch_size in (None, 8):
        times, text = [], ""
        for _ in range(5):
            begin = perf_counter()
            text = model.transcribe(samples, batch_size=batch_size)["text"]
            times.append(perf_counter() - begin)
        took = median(times[1:])
        windows = "one after the other" if batch_size is None else f"{batch_size} at a time"
        rows.append([windows, f"{len(text.split())} words", f"{1e3 * took:.1f}", f"{seconds / took:,.0f}"])
        print(" | ".join(rows[-1]), flush=True)
    return table("windows | text | ms | times real time", rows)

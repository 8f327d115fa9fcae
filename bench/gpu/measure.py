"""Times on a real GPU, by the device's own events: both legs of every case, tiny.en's graphs, a recording.

What is timed is captured into a device graph and replayed, so that no launch waits for the CPU; but a replay itself takes
about 5 us on an H200, which is what a single shorter kernel shows. A graph with an argument on the host cannot be captured:
its launches are queued behind work that takes the GPU longer than the CPU takes to queue them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from max.driver import Accelerator, Buffer, DeviceEvent
from max.engine import Model

from bench.gpu import model as prediction
from bench.gpu.cases import Case
from bench.gpu.legs import Prepared
from bench.gpu.page import table
from bench.gpu.peaks import Gpu
from bench.gpu.run import are_alike
from max_whisper import eager, runtime
from max_whisper.audio import SAMPLE_RATE, load_audio
from max_whisper.model import Whisper

REPLAYS, ROUNDS = 20, 10
"""Replays between two events; how often each leg has its turn, twice."""

TRANSCRIPTIONS = 9
"""How often a recording is heard, after a first time."""

BUSY = 200
"""How often the longest of our legs (80 us on an H200) is queued in front of 20 calls that are not captured."""

PAST = 100
"""Tokens in the caches of the step that is timed."""

_keys = count(1 << 32)


@dataclass(frozen=True)
class Repeated:
    """A loaded graph with its arguments.

    Attributes:
        call: Runs it once more.
        results: What it computed the first time; a replay computes it there anew.
        is_captured: Whether `call` replays a device graph.
    """

    call: Callable[[], None]
    results: list[Buffer]
    is_captured: bool


def repeating(model: Model, inputs: Sequence[Buffer]) -> Repeated:
    """Captures a loaded graph; one with an argument on the host, which cannot be captured, is executed."""
    if any(buffer.device.is_host for buffer in inputs):
        return Repeated(lambda: _execute(model, inputs), runtime.execute(model, *inputs), False)
    key = next(_keys)
    results = runtime.capture(model, key, *inputs)
    return Repeated(lambda: runtime.replay(model, key, *inputs), results, True)


def _execute(model: Model, inputs: Sequence[Buffer]) -> None:
    runtime.execute(model, *inputs)


def microseconds(call: Callable[[], None], device: Accelerator, busy: Callable[[], None] | None = None) -> float:
    """Of one of several calls that follow each other.

    Args:
        call: What is called.
        device: Where it runs.
        busy: Queues work in front of them, so that none waits for the CPU.
    """
    start, end = (DeviceEvent(device, enable_timing=True) for _ in range(2))
    queue = device.default_queue
    if busy:
        busy()
    queue.record_event(start)
    for _ in range(REPLAYS):
        call()
    queue.record_event(end)
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / REPLAYS


@dataclass(frozen=True)
class Times:
    """Microseconds of a call.

    Attributes:
        ours: Of our op.
        builtin: Of MAX's graph, or why there is no time.
        least: What the published rates allow at the least; 0 for a GPU that is not in `peaks`.
        waits: Whether ours is not captured and waits for the CPU in its middle: its time is the CPU's.
    """

    ours: float
    builtin: float | str
    least: float
    waits: bool


def measure(
    case: Case, ours: Prepared, builtin: Prepared, device: Accelerator, gpu: Gpu | None, busy: Callable[[], None]
) -> Times:
    """Times a case: theirs, ours, ours, theirs, over and over; medians. Where the results differ the built-in leg does not
    count: ours is held against float64 by the tests of `tests/gpu`.

    Calls follow each other without a pause, so they find their operands in the level-2 cache where it holds them.
    """
    least = max(case.least / gpu.memory, 2 * case.products / gpu.tensor) * 1e6 if gpu else 0.0
    legs = {"ours": run_once(ours)}
    reason = "its result is not ours, which is tested against float64"
    try:
        theirs = run_once(builtin)
        pairs = zip(legs["ours"].results, theirs.results, strict=True)
        if all(are_alike(eager.to_array(mine), eager.to_array(other)) for mine, other in pairs):
            legs["builtin"] = theirs
    except Exception as error:  # whatever MAX says
        reason = " ".join(str(error).split())[:200]
    times: dict[str, list[float]] = {name: [] for name in legs}
    for number in range(2 * ROUNDS + 2):
        for name in legs if number % 2 else reversed(legs):
            leg = legs[name]
            times[name].append(microseconds(leg.call, device, None if leg.is_captured else busy))
    medians = {name: median(rounds[2:]) for name, rounds in times.items()}  # the first two turns warm up
    return Times(medians["ours"], medians.get("builtin", reason), least, not legs["ours"].is_captured)


def run_once(leg: Prepared) -> Repeated:
    """Captures a leg and runs it once."""
    if isinstance(leg.model, str):
        raise RuntimeError(leg.model)
    repeated = repeating(leg.model, leg.buffers)
    repeated.call()
    return repeated


def kernels(cases: Sequence[Case], prepared: Sequence[tuple[Prepared, Prepared]], gpu: Gpu | None) -> str:
    """The table of both legs of all cases."""
    device, rows, reasons = Accelerator(), [], []
    most = max(zip(cases, prepared, strict=True), key=lambda pair: pair[0].products)[1][0]
    long = run_once(most)

    def busy() -> None:
        for _ in range(BUSY):
            long.call()

    for case, (ours, builtin) in zip(cases, prepared, strict=True):
        times = measure(case, ours, builtin, device, gpu, busy)
        cells = [case.name, case.shape, f"{times.ours:.2f}{' (CPU)' if times.waits else ''}"]
        share = "" if times.waits else f"{100 * times.least / times.ours:.0f} %"
        cells += [f"{times.least:.2f}", share] if gpu else ["", ""]
        if isinstance(times.builtin, str):
            cells += ["see below", ""]
            reasons.append(f"- {case.name}, {case.shape}: {times.builtin}")
        else:
            cells += [f"{times.builtin:.2f}", "" if times.waits else f"{times.builtin / times.ours:.2f}"]
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
        encoder = repeating(model.graphs["encoder"], [mel])
        add("encoder", batch, encoder.call, heard[2:-kept])
        keys = repeating(model.graphs["cross_attention"], encoder.results)
        add("keys and values of the audio", batch, keys.call, heard[-kept:])
        room = model.rooms.take(batch)
        step = room.step(batch)
        tokens, past = np.ones((batch, 1), np.int32), np.full(batch, PAST, np.int32)
        step.run(tokens, past, np.zeros((batch, 4), np.int32), np.full((batch, 3), -1, np.int32), 1)
        add("decoding step", batch, step.repeat, prediction.decoder(batch, width, layers, PAST))
        model.rooms.give(room)
    return table("graph | windows | us | model of time, us | launches", rows)


def recordings(model: Whisper, paths: Sequence[Path]) -> str:
    """The table of real-time factors of recordings, decoded and in memory; from samples to text, Python included. The last
    one is heard in batches as well, alone and twelve times over."""
    rows = []

    def add(name: str, samples: np.ndarray, batch_size: int | None) -> None:
        times, seconds = [], len(samples) / SAMPLE_RATE
        for _ in range(1 + TRANSCRIPTIONS):
            begin = perf_counter()
            model.transcribe(samples, batch_size=batch_size)
            times.append(perf_counter() - begin)
        took = median(times[1:])
        windows = "one after the other" if batch_size is None else f"batches of {batch_size}"
        rows.append([f"{name}, {seconds:.1f} s", windows, f"{1e3 * took:.1f}", f"{seconds / took:,.0f}"])
        print(" | ".join(rows[-1]), flush=True)

    samples = np.zeros(0, np.float32)
    for path in paths:
        samples = load_audio(path)
        add(path.name, samples, None)
    for times, batch_size in ((1, 8), (12, 8), (12, 72)):
        add(f"{paths[-1].name}{' twelve times' if times > 1 else ''}", np.tile(samples, times), batch_size)
    return table("recording | windows | ms | times real time", rows)

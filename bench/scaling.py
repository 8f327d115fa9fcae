"""How cost grows: time and memory over the length of a recording, the encoder over threads. Prints tables, draws a plot.

    python -m bench.scaling SPEECH [--model tiny.en] [--lengths 30,165,1320,10800] [--heard 165] [--output docs/scaling.png]

SPEECH is joined end to end into recordings of every length. All of a recording is decoded and all of its features are
computed; of more than `--heard` seconds only the last so many are transcribed, so that hours do not take hours: what is
reported per second is reading per second of recording plus transcription per second transcribed. It is processor time, of
all threads, which company on the machine changes less than the clock's. Every measurement is a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import wave
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

MODES: dict[str, int | None] = {"sequential": None, "8 together": 8}


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--lengths", default="30,165,1320,10800")
    parser.add_argument("--heard", type=float, default=165)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("docs/scaling.png"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child.split()[0]](options, *options.child.split()[1:])))
        return

    build = ["-m", "max_whisper", "build", "--model", options.model, "--dtype", options.dtype]
    subprocess.run([sys.executable, *build], check=True)  # whoever compiles takes much memory
    lengths = [float(length) for length in options.lengths.split(",")]
    found: dict[tuple[str, float], list[dict[str, float]]] = {
        (mode, length): [] for length in lengths for mode in MODES
    }
    windows: dict[int, list[float]] = {int(count): [] for count in options.threads.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            write_recording(Path(folder) / f"{length}.wav", options.speech, length)
        for _ in range(options.rounds):
            for mode, length in found:
                file = Path(folder) / f"{length}.wav"
                found[mode, length].append(measure(["transcribe", str(file), mode.replace(" ", "_")]))
            for count in windows:
                windows[count].append(measure(["encode", str(count)])["seconds"])
    least = {key: min(rounds, key=lambda row: row["per_second"]) for key, rounds in found.items()}
    rows = {mode: [least[mode, length] for length in lengths] for mode in MODES}
    for (mode, _), row in least.items():
        print(
            f"{mode:12} {row['length']:8.0f} s: {1e3 * row['per_second']:7.2f} ms of processor per second, of it "
            f"reading {1e3 * row['reading'] / row['length']:5.2f}; {row['peak']:5.0f} MB"
        )
    threads = {count: min(seconds) for count, seconds in windows.items()}
    one = threads.get(1, float("nan"))
    for count, seconds in threads.items():
        print(f"encoder, {count} threads: {1e3 * seconds:.0f} ms per window, {one / seconds:.2f} times one thread")
    draw(rows, threads, options)


def measure(child: list[str]) -> dict[str, float]:
    """Runs one measurement in a process of its own."""
    command = [sys.executable, "-m", "bench.scaling", *sys.argv[1:], "--child", " ".join(child)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def transcribe(options: argparse.Namespace, file: str, mode: str) -> dict[str, float]:
    """Transcribes the end of a recording, all of which is read."""
    from max_whisper.features import Features
    from max_whisper.model import load_model
    from max_whisper.recording import open_recording

    model = load_model(options.model, dtype=options.dtype)
    model.transcribe(np.zeros(16000, np.float32), language="en")
    began = process_time()
    with open_recording(file) as recording:
        Features(model, recording)
        reading = process_time() - began
        heard = min(options.heard, recording.seconds)
        began = process_time()
        model.transcribe(
            recording,
            language="en",
            clip_timestamps=[recording.seconds - heard],
            batch_size=MODES[mode.replace("_", " ")],
        )
        again = process_time()
        Features(model, recording)  # of the time, that which grows with what is not transcribed
        transcribing = again - began - (process_time() - again)
        length = recording.seconds
    return {
        "length": length,
        "reading": reading,
        "per_second": reading / length + transcribing / heard,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def encode(options: argparse.Namespace, threads: str) -> dict[str, float]:
    """Encodes a window on so many cores; MAX starts a thread for each that it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    from max_whisper.model import load_model

    model = load_model(options.model, dtype=options.dtype)
    mel = np.random.default_rng(0).normal(size=(1, model.dims.n_mels, 3000)).astype(np.float32)
    times = []
    for _ in range(25):
        began = perf_counter()
        model.embed_audio(mel)
        times.append(perf_counter() - began)
    return {"seconds": min(times)}  # the least disturbed


CHILDREN = {"transcribe": transcribe, "encode": encode}


def write_recording(file: Path, speech: Path, seconds: float) -> None:
    """Joins speech end to end until there is enough of it."""
    from max_whisper.audio import load_audio

    samples = (load_audio(speech) * 32768).astype("<i2")
    left = round(seconds * 16000)
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        while left > 0:
            out.writeframes(samples[:left].tobytes())
            left -= len(samples[:left])


def draw(rows: dict[str, list[dict[str, float]]], threads: dict[int, float], options: argparse.Namespace) -> None:
    """Draws time, memory and threads side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (time, memory, encoder) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for mode, found in rows.items():
        minutes = [row["length"] / 60 for row in found]
        time.plot(minutes, [1e3 * row["per_second"] for row in found], "o-", label=mode)
        memory.plot(minutes, [row["peak"] for row in found], "o-", label=mode)
    for axes, title in ((time, "processor time per second of speech (ms)"), (memory, "peak resident memory (MB)")):
        axes.set(xscale="log", xlabel="length of the recording (minutes)", title=title)
        axes.set_ylim(bottom=0)
        axes.legend()
    counts = list(threads)
    encoder.plot(counts, [threads[counts[0]] / threads[count] for count in counts], "o-", label="measured")
    encoder.plot(counts, [count / counts[0] for count in counts], "--", color="gray", label="ideal")
    encoder.set(xlabel="threads", title="encoder, times one thread", xticks=counts)
    encoder.set_ylim(bottom=0)
    encoder.legend()
    figure.suptitle(f"{options.model}, {options.dtype}")
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()

"""Runs all engines in turns on one machine: every task goes round all of them, forth and back, over and over."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

ROUNDS = {"encode": 7, "decode": 5, "short": 5, "long": 3, "start": 3}
"""What is measured, and how often: an encoder window, decoding, two recordings, and a whole process."""

PAUSE = 0.3
"""Seconds before every measurement: some runtimes' threads go on spinning for a while when their work is done."""

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Every engine finds its Python modules compiled, as on a machine where it was started before."""

FEW, MANY = 8, 200
"""Tokens decoded: the difference of both times is that of MANY - FEW steps, and of nothing that happens once."""


@dataclass(frozen=True)
class Variant:
    """An engine with one choice of settings.

    Attributes:
        engine: A class of `engines.py`.
        settings: Its keyword arguments.
    """

    engine: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of the table: where no setting is best for every task, several, of which the fastest counts.

    Attributes:
        title: What the table says.
        variants: Which settings are tried.
        tasks: Which columns are measured.
        ours: Whether it is max-whisper.
    """

    title: str
    variants: tuple[Variant, ...]
    tasks: frozenset[str] = frozenset(ROUNDS)

    @property
    def ours(self) -> bool:
        return self.variants[0].engine == "MaxWhisper"


@dataclass
class Recordings:
    """What is transcribed: files, and the same as samples in `.npy` files."""

    short: Path
    long: Path
    short_samples: Path
    long_samples: Path


@dataclass
class Results:
    """Per row and task: what was measured by each variant; and the text of the long recording."""

    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row, task: str, variant: Variant, value: float) -> None:
        rows = self.values.setdefault(row.title, {}).setdefault(task, {})
        rows.setdefault(json.dumps(variant.settings), []).append(value)


def interpreter(engine: str, peers: Path) -> str:
    """Ours runs in this environment, the others in theirs."""
    return sys.executable if engine == "MaxWhisper" else str(peers / "bin" / "python")


class Engine:
    """An engine in a process of its own.

    Args:
        variant: Which, and its settings.
        peers: The peers' environment.
        model: Name of the model, a folder in `peers / "models"`.
        samples: What the encoder's window is cut from.
    """

    def __init__(self, variant: Variant, peers: Path, model: str, samples: Path) -> None:
        self._process = subprocess.Popen(
            command(variant, peers, model, samples),
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> "Engine":
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, *task: Any) -> dict[str, Any]:
        """Runs one task and returns its answer."""
        assert self._process.stdin
        print(json.dumps(task), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended; see what it says: {' '.join(map(repr, self._process.args))}")  # type: ignore[arg-type]
        return json.loads(line)


def command(variant: Variant, peers: Path, model: str, samples: Path) -> list[str]:
    """How an engine is started."""
    script = str(Path(__file__).with_name("engine.py"))
    settings = json.dumps(variant.settings)
    return [
        interpreter(variant.engine, peers),
        script,
        variant.engine,
        str(peers / "models" / model),
        str(samples),
        settings,
    ]


def measure(
    rows: list[Row],
    peers: Path,
    model: str,
    recordings: Recordings,
    rounds: dict[str, int],
    results: Results,
    keep: Callable[[], None],
) -> None:
    """Adds `rounds` measurements of every task to `results`, and calls `keep` when a task is through."""
    with ExitStack() as stack:
        running: dict[int, Engine] = {}
        for task, count in rounds.items():
            pairs = [(row, variant) for row in rows if task in row.tasks for variant in row.variants]
            if task == "start":
                stack.close()  # their memory is needed, their threads are not wanted
                running.clear()
                for _, variant in pairs if count else ():
                    start(variant, peers, model, recordings)  # compiles what is only imported here
            else:
                for _, variant in pairs:
                    if id(variant) not in running:
                        engine = Engine(variant, peers, model, recordings.short_samples)
                        running[id(variant)] = stack.enter_context(engine)
                for _, variant in pairs if count else ():
                    _warm(running[id(variant)], task, recordings)
            for turn in range(count):
                for row, variant in pairs if turn % 2 else reversed(pairs):
                    print(f"\r{model}: {task} {turn + 1}/{count} {row.title:40}", end="", file=sys.stderr, flush=True)
                    sleep(PAUSE)
                    if task == "start":
                        seconds, memory = start(variant, peers, model, recordings)
                        results.add(row, "memory", variant, memory)
                        results.add(row, "start", variant, seconds)
                    else:
                        value, text = _task(running[id(variant)], task, recordings)
                        results.add(row, task, variant, value)
                        if task == "long":
                            results.texts[row.title] = text
            keep()
        print("\r" + " " * 70 + "\r", end="", file=sys.stderr)


def _warm(engine: Engine, task: str, recordings: Recordings) -> None:
    """What happens for the first time takes longer; a long recording is no news after a short one."""
    if task == "encode":
        engine.run("encode")
    if task in ("short", "long"):
        engine.run("transcribe", str(recordings.short_samples))


def _task(engine: Engine, task: str, recordings: Recordings) -> tuple[float, str]:
    """Seconds (decoding: tokens per second), and the text of a recording."""
    if task == "encode":
        return engine.run("encode")["seconds"], ""
    if task == "decode":
        few, many = (engine.run("decode", tokens)["seconds"] for tokens in (FEW, MANY))
        return (MANY - FEW) / (many - few), ""
    samples = recordings.short_samples if task == "short" else recordings.long_samples
    answer = engine.run("transcribe", str(samples))
    return answer["seconds"], answer["text"]


def start(variant: Variant, peers: Path, model: str, recordings: Recordings) -> tuple[float, float]:
    """A whole process, from its start to the text of the short recording: seconds, and bytes of memory at its peak.

    Ours is the command line as people use it, from a file; the others are spared decoding the file.
    """
    if variant.engine == "MaxWhisper":
        words = [sys.executable, "-m", "max_whisper", "transcribe", str(recordings.short), "--model", model]
        words += ["--language", "en", "--dtype", variant.settings["dtype"]]
    else:
        words = [*command(variant, peers, model, recordings.short_samples), "--once"]
    began = perf_counter()
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    text = process.stdout.read()
    seconds = perf_counter() - began
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not text.strip():
        raise SystemExit(f"ended with {process.returncode}: {' '.join(words)}")
    return seconds, usage.ru_maxrss * 1024

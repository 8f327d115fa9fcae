"""What was measured, as tables and as a picture."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.ceilings import machine
from bench.peers.measure import Recordings, Results, Row

COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "encode": ("encoder, 30 s window", lambda seconds: f"{seconds * 1e3:.0f} ms"),
    "decode": ("decode, one stream", lambda rate: f"{rate:.0f} tok/s"),
    "short": ("short", lambda seconds: f"{seconds:.3f} s"),
    "long": ("long", lambda seconds: f"{seconds:.2f} s"),
    "start": ("start to text, short", lambda seconds: f"{seconds:.2f} s"),
    "memory": ("peak memory", lambda size: f"{size / 1e6:.0f} MB"),
}
MORE_IS_BETTER = {"decode"}
PACKAGES = ("openvino-genai", "openai-whisper", "torch", "faster-whisper", "ctranslate2", "pywhispercpp")


def value(results: Results, row: Row, task: str) -> float | None:
    """The median of the row's best setting; None where nothing was measured."""
    medians = [median(values) for values in results.values.get(row.title, {}).get(task, {}).values()]
    return None if not medians else max(medians) if task in MORE_IS_BETTER else min(medians)


def write_report(results: dict[str, Results], rows: list[Row], recordings: Recordings, peers: Path, docs: Path) -> str:
    """Writes `peers.md` and `peers.png` and returns the tables."""
    durations = {"short": _seconds(recordings.short_samples), "long": _seconds(recordings.long_samples)}
    tables = "\n\n".join(
        f"## {model}\n\n{_table(result, rows, recordings, durations)}\n\n{_ratios(result, rows)}"
        for model, result in results.items()
    )
    docs.mkdir(exist_ok=True)
    _plot(results, rows, docs / "peers.png")
    (docs / "peers.md").write_text(_page(tables, recordings, durations, peers), encoding="utf-8")
    return tables


def word_error_rate(text: str, recording: Path) -> float | None:
    """Against the transcript beside a recording; letters, digits and apostrophes count, case does not."""
    reference = recording.with_suffix(".txt")
    if not reference.exists():
        return None
    import jiwer

    def plain(words: str) -> str:
        words = words.lower().replace("mr.", "mister").replace("mrs.", "missis")
        return " ".join(re.sub(r"[^\w']+", " ", words).split())

    return float(jiwer.wer(plain(reference.read_text(encoding="utf-8")), plain(text)))


def _table(results: Results, rows: list[Row], recordings: Recordings, durations: dict[str, float]) -> str:
    titles = [
        f"{title} {durations[task]:.1f} s" if task in durations else title for task, (title, _) in COLUMNS.items()
    ]
    lines = [["engine", *titles, "word errors, long"]]
    for row in rows:
        cells = [row.title]
        for task, (_, write) in COLUMNS.items():
            found = value(results, row, task)
            speed = f" ({durations[task] / found:.0f}x)" if task == "long" and found else ""
            cells.append("–" if found is None else write(found) + speed)
        errors = word_error_rate(results.texts[row.title], recordings.long) if row.title in results.texts else None
        lines.append([*cells, "–" if errors is None else f"{errors:.1%}"])
    return _markdown(lines)


def _ratios(results: Results, rows: list[Row]) -> str:
    """Our best against the peers' best, column by column; more than 1 is better."""
    lines = [["column", "max-whisper's best", "best peer", "ratio"]]
    for task, (title, write) in COLUMNS.items():
        best: dict[bool, tuple[float, str]] = {}
        for row in rows:
            found = value(results, row, task)
            if found is not None:
                choose = max if task in MORE_IS_BETTER else min
                best[row.ours] = choose(best.get(row.ours, (found, row.title)), (found, row.title))
        if len(best) == 2:
            (mine, ours), (other, theirs) = best[True], best[False]
            ratio = mine / other if task in MORE_IS_BETTER else other / mine
            lines.append([title, f"{write(mine)} ({ours})", f"{write(other)} ({theirs})", f"{ratio:.2f}"])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *body])


def _plot(results: dict[str, Results], rows: list[Row], path: Path) -> None:
    """Bars per column and model, each relative to the best peer (longer is better)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = ("encode", "decode", "short", "long", "start")
    shown = [row for row in rows if any(value(result, row, task) for result in results.values() for task in tasks)]
    size = (14, (0.3 * len(shown) + 0.8) * len(results))
    figure, axes = pyplot.subplots(len(results), len(tasks), figsize=size, squeeze=False, sharey=True)
    for line, (model, result) in zip(axes, results.items(), strict=True):
        for axis, task in zip(line, tasks, strict=True):
            found = [
                (i, row, number) for i, row in enumerate(shown) if (number := value(result, row, task)) is not None
            ]
            speeds = [number if task in MORE_IS_BETTER else 1 / number for *_, number in found]
            best = max((speed for (_, row, _), speed in zip(found, speeds, strict=True) if not row.ours), default=1.0)
            colours = ["tab:orange" if row.ours else "lightgray" for _, row, _ in found]
            axis.barh([i for i, *_ in found], [speed / best for speed in speeds], color=colours)
            for i, _, number in found:
                axis.text(0.03, i, COLUMNS[task][1](number), va="center", fontsize=8)
            axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
            axis.set_title(f"{model}: {COLUMNS[task][0]}", fontsize=9)
            axis.set_yticks(range(len(shown)), [row.title for row in shown])
            axis.tick_params(labelsize=8)
        line[0].set_ylim(len(shown) - 0.4, -0.6)
    figure.supxlabel("speed relative to the best peer", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _page(tables: str, recordings: Recordings, durations: dict[str, float], peers: Path) -> str:
    lengths = ", ".join(f"{task}: {length:.1f} s" for task, length in durations.items())
    return f"""# Against other engines

The same trained weights, the same samples, greedy at temperature 0, two threads; all engines in turns, each in a process
of its own; medians. Every engine has the settings that are best for it on this machine; where that differs from task to
task, the best counts. Decoding is a stream of 200 tokens less one of 8, with the end of text held back. A start is a
whole process, from nothing to the text of the short recording; our own decodes the file and is the command line, the
others are spared that. Memory is the largest resident size of that process (a second one
of 43 MB decodes for our command line, and has ended before it is that large). Recordings: {lengths}.

`make peers` (or `pixi run peers`) installs the peers in `.peers`, converts the weights, measures, and writes this page.

Machine: {machine()}.
Versions: {_versions(peers)}.

![speed relative to the best peer](peers.png)

{tables}
"""


def _versions(peers: Path) -> str:
    code = (
        "import sys, importlib.metadata as m; print(*(f'{name} {m.version(name)}' for name in sys.argv[1:]), sep=', ')"
    )
    output = subprocess.run(
        [peers / "bin" / "python", "-c", code, *PACKAGES], capture_output=True, text=True, check=True
    )
    return output.stdout.strip()


def _seconds(samples: Path) -> float:
    import numpy as np

    return len(np.load(samples, mmap_mode="r")) / 16000

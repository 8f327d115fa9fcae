"""Compares with openai-whisper in turns on the same machine: the encoder's window, then recordings.

    python bench/peers/openai_whisper.py PYTHON MODEL FILE...

PYTHON is the interpreter of an environment with openai-whisper and this package, see `make peers`.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

ROUNDS = 5


class Engine:
    """An engine in a process of its own."""

    def __init__(self, python: str, engine: str, model: str) -> None:
        script = str(Path(__file__).with_name("engine.py"))
        self._process = subprocess.Popen(
            [python, script, engine, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, task: str) -> dict:
        """Runs one task and returns its answer."""
        assert self._process.stdin
        assert self._process.stdout
        print(task, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def main(peer_python: str, model: str, *files: str) -> None:
    ours = Engine(sys.executable, "max-whisper", model)
    theirs = Engine(peer_python, "openai-whisper", model)
    print(f"| {model}, float32, medians of {ROUNDS} in turns | max-whisper | openai-whisper (torch) | ratio |")
    print("| --- | --- | --- | --- |")
    for task in ("encode", *files):
        ours.run(task), theirs.run(task)  # warm
        pairs = [(ours.run(task), theirs.run(task)) for _ in range(ROUNDS)]
        mine, other = (median(pair[side]["seconds"] for pair in pairs) for side in (0, 1))
        length = pairs[0][0]["audio"]
        title = f"{Path(task).name} ({length:.1f} s)" if length else "encoder, 30 s window"
        speed = [f"{s:.3f} s" + (f" ({length / s:.0f}x)" if length else "") for s in (mine, other)]
        same = "" if pairs[0][0]["text"] == pairs[0][1]["text"] else " TEXT DIFFERS"
        print(f"| {title}{same} | {speed[0]} | {speed[1]} | {other / mine:.2f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

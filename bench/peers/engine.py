"""One engine in a process of its own.

    python engine.py ENGINE FOLDER SAMPLES SETTINGS                 answers tasks, one a line, until there are no more
    python engine.py ENGINE FOLDER SAMPLES SETTINGS --once          transcribes SAMPLES and prints the text

FOLDER holds a model in every format (see `convert.py`), SAMPLES is a `.npy` file, SETTINGS a JSON object. A task is
`["encode"]`, `["decode", tokens]` or `["transcribe", samples]`; its answer says how long it took.
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import engines
import numpy as np


def main(engine: str, folder: str, samples: str, settings: str, once: str = "") -> None:
    # Libraries print what they like; the answers have the real standard output to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    audio = np.load(samples)
    model: Any = getattr(engines, engine)(Path(folder), audio, **json.loads(settings))
    if once:
        print(model.transcribe(audio), file=answers)
        return
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        if task == "transcribe":
            arguments = [np.load(arguments[0])]
        start = perf_counter()
        result = getattr(model, task)(*arguments)
        print(json.dumps({"seconds": perf_counter() - start, "text": result}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])

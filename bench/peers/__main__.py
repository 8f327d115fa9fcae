"""The comparison with other engines, as one command: `make peers`.

    python -m bench.peers .peers                     everything, in turns: about half an hour
    python -m bench.peers .peers --models tiny.en --tasks encode decode --rounds 3 --add

Prints the tables and writes `docs/peers.md` and `docs/peers.png`. With --add, measurements join those of earlier runs.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from tests.golden.clips import SPEECH

from bench.peers.measure import ROUNDS, Recordings, Results, Row, Variant, measure
from bench.peers.report import write_report
from bench.peers.weights import write_models, write_samples
from max_whisper.demo import recording
from max_whisper.target import cpu_features

DOCS = Path(__file__).parents[2] / "docs"
MODELS = ("tiny.en", "base")
BATCH = 8
LONG_ONLY = frozenset({"long"})


def rows() -> list[Row]:
    """Who takes part on this machine, with the best settings there are for it."""
    half = bool(cpu_features() & {"amx_bf16", "avx512_bf16"})
    precision = "bf16" if half else "f32"
    dtypes = ["float16", *(["bfloat16"] if half else []), "int8"]  # float16 has the tokens of float32
    found = [Row(f"max-whisper {dtype}", (Variant("MaxWhisper", {"dtype": dtype}),)) for dtype in dtypes]
    for dtype in dtypes:
        batched = Variant("MaxWhisper", {"dtype": dtype, "batch": BATCH})
        found.append(Row(f"max-whisper {dtype}, batch {BATCH}", (batched,), LONG_ONLY))
    for weights in ("fp32", "int8"):
        title = f"OpenVINO GenAI {precision}" if weights == "fp32" else "OpenVINO GenAI int8 weights"
        found.append(Row(title, (Variant("OpenVINO", {"weights": weights, "precision": precision}),)))
    for dtype in ("float32", "bfloat16") if half else ("float32",):
        found.append(Row(f"openai-whisper, torch {dtype}", (Variant("OpenAIWhisper", {"dtype": dtype}),)))
    one, two, batched = (
        Variant("FasterWhisper", {"compute_type": "int8", "threads": threads, "batch": batch})
        for threads, batch in ((1, 0), (2, 0), (2, 6))
    )
    found.append(Row("faster-whisper int8, 1 or 2 threads", (one, two)))
    found.append(Row("faster-whisper int8, batch 6", (batched,), LONG_ONLY))
    found.append(Row("whisper.cpp f16", (Variant("WhisperCpp", {}),), frozenset(ROUNDS) - {"decode"}))
    return found


def main() -> None:
    parser = ArgumentParser(prog="python -m bench.peers", description="Compares with other engines, in turns.")
    parser.add_argument("peers", type=Path, help="the peers' environment (.peers)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--tasks", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    parser.add_argument("--rounds", type=int, help="of every task; otherwise between 3 and 7")
    parser.add_argument("--add", action="store_true", help="to the results of earlier runs")
    parser.add_argument("--short", type=Path, default=_speech("short.flac", "beckett.wav"), help="a recording of 10 s")
    parser.add_argument("--long", type=Path, default=_speech("long.flac", "two_cities.wav"), help="one of minutes")
    options = parser.parse_args()

    peers: Path = options.peers.absolute()
    # A process's largest size counts what it was before it became another program: a copy of this one, which stays small.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        apart.submit(write_models, peers / "models", options.models).result()
    convert = Path(__file__).with_name("convert.py")
    folders = [peers / "models" / model for model in options.models]
    subprocess.run([peers / "bin" / "python", convert, *folders], check=True)
    recordings = Recordings(options.short, options.long, *write_samples(peers, [options.short, options.long]))

    kept = peers / "results.json"
    stored = json.loads(kept.read_text()) if options.add and kept.exists() else {}
    results = {model: Results(**stored[model]) for model in stored}
    rounds = {task: options.rounds or ROUNDS[task] for task in ROUNDS if task in options.tasks}

    def keep() -> None:
        kept.write_text(json.dumps({name: asdict(result) for name, result in results.items()}))

    for model in options.models:
        measure(rows(), peers, model, recordings, rounds, results.setdefault(model, Results()), keep)
    print(write_report(results, rows(), recordings, peers, DOCS))


def _speech(name: str, packaged: str) -> Path:
    """The speech beside the repository, or what a package brings."""
    return SPEECH / name if (SPEECH / name).exists() else recording().with_name(packaged)


if __name__ == "__main__":
    sys.exit(main())

"""python -m bench.gpu: without a GPU, counts both legs on the phantom and writes docs/gpu.md and the README's table.

With one, times them by the device's events, and tiny.en's graphs and a recording besides, and writes docs/gpu_measured.md.
With --target, compiles both legs for a GPU that is not here, into a cache to be used there.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.phantom import install

from max_whisper import cross, target
from max_whisper.cache import CACHE_VARIABLE, cache_dir

if TYPE_CHECKING:
    from bench.gpu.cases import Case

REPOSITORY = Path(__file__).resolve().parents[2]

WINDOWS = (1, 8)
"""What the encoder has at once on a real GPU."""


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--only", default="", help="functions whose name has this in it; nothing is written")
    parser.add_argument("--model", action="store_true", help="write docs/gpu.md without counting: the model alone")
    parser.add_argument(
        "--recording", type=Path, help="what a real GPU transcribes, in place of those that the tests know"
    )
    parser.add_argument("--target", choices=target.GPU_TARGETS, help="compile for this GPU, and no more")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="cache to compile into, with --target")
    options = parser.parse_args()
    if options.target:
        build(options)
        return
    phantom = install.install(cache_dir() / "phantom") if install.is_needed() else None

    from bench.gpu import legs, measured, page, run  # MAX may be imported only now
    from bench.gpu.cases import ROWS

    if options.model:
        page.write([], REPOSITORY)
        return
    cases = choose(options, ROWS if phantom else 1500, (1,) if phantom else WINDOWS)
    prepared = legs.prepare(cases)
    if phantom is None:
        measured.write(cases, prepared, REPOSITORY, options)
        return
    results = []
    for case, (ours, builtin) in zip(cases, prepared, strict=True):
        results.append(run.compare(case, ours, builtin, phantom))
        print(page.line(results[-1]), flush=True)
    if not options.only and options.dtype == "bfloat16":
        page.write(results, REPOSITORY)


def choose(options: argparse.Namespace, rows: int, windows: tuple[int, ...]) -> "list[Case]":
    """The cases that were asked for."""
    from bench.gpu.cases import Cases

    return [case for case in Cases(options.dtype, rows, windows).all() if options.only in case.name]


def build(options: argparse.Namespace) -> None:
    """Compiles for a GPU that is not here, then ends the process."""
    if options.output:
        os.environ[CACHE_VARIABLE] = str(options.output)
    cross.use_virtual_device(options.target)

    from bench.gpu import legs

    legs.build(choose(options, 1500, WINDOWS), options.target)
    cross.leave()


if __name__ == "__main__":
    main()

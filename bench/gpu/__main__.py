"""python -m bench.gpu: without a GPU, counts both legs on the phantom and writes docs/gpu.md and the README's table.

With one, times them by the device's events, and tiny.en's graphs and a recording besides, and writes docs/gpu_measured.md.
"""

import argparse
from pathlib import Path

from tests.phantom import install

from max_whisper.cache import cache_dir

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--only", default="", help="functions whose name has this in it; nothing is written")
    parser.add_argument("--model", action="store_true", help="write docs/gpu.md without counting: the model alone")
    parser.add_argument("--recording", type=Path, help="what a real GPU transcribes (the longest that the tests know)")
    options = parser.parse_args()
    phantom = install.install(cache_dir() / "phantom") if install.is_needed() else None

    from bench.gpu import measured, page, run  # MAX may be imported only now
    from bench.gpu.cases import ROWS, Cases

    if options.model:
        page.write([], REPOSITORY)
        return
    cases = [case for case in Cases(options.dtype, ROWS if phantom else 1500).all() if options.only in case.name]
    prepared = run.compile_legs([leg for case in cases for leg in (case.ours, case.builtin)])
    if phantom is None:
        measured.write(cases, prepared, REPOSITORY, options)
        return
    results = []
    for number, case in enumerate(cases):
        results.append(run.compare(case, prepared[2 * number], prepared[2 * number + 1], phantom))
        print(page.line(results[-1]), flush=True)
    if not options.only and options.dtype == "bfloat16":
        page.write(results, REPOSITORY)


if __name__ == "__main__":
    main()

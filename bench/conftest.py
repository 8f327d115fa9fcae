"""One table at the end of a run: our time, what it makes of the machine, and the time of MAX's own ops for the same."""

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from bench.ceilings import ceilings, machine

HEAD = ("kernel and shape", "ms", "rate", "of ceiling", "built-in ms", "ratio")
TITLE = "Medians, in turns with MAX's built-in ops in float32"

Case = tuple[str, dict[str, Any]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", type=Path, help="write the table to this file too")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    cases = [(b.name, b.extra_info) for b in session.benchmarks if "ours_ms" in b.extra_info] if session else []
    if not cases:
        return
    table = Table(HEAD[0], title=TITLE, caption=ceilings().describe())
    for column in HEAD[1:]:
        table.add_column(column, justify="right")
    for case in cases:
        table.add_row(*_cells(case))
    Console(width=120, markup=False).print(table)
    if report := config.getoption("report"):
        report.write_text(_page(cases), encoding="utf-8")


def _cells(case: Case) -> list[str]:
    name, info = case
    kernel, *shape = re.findall(r"[\w.]+", name.removeprefix("test_"))
    return [
        f"{kernel} {' '.join(shape)}",
        f"{info['ours_ms']:.3f}",
        f"{info['rate']:.1f} {info['unit']}",
        f"{info['percent']:.0f} %",
        f"{info['theirs_ms']:.3f}",
        f"{info['ratio']:.2f}",
    ]


def _page(cases: list[Case]) -> str:
    lines = [HEAD, ["---"] + ["--:"] * (len(HEAD) - 1), *map(_cells, cases)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    slower = [_cells(case)[0] for case in cases if case[1]["ratio"] < 1]
    return f"""# Every kernel against MAX's built-in ops

{TITLE}; the ratio is built-in / ours. Sizes are those of Whisper's models, named after the model whose
states are as wide; one row is a decoding step, 1500 rows are an encoder window. `make bench` (or `pixi run bench`)
prints the table and writes this page.

Machine: {machine()}; {ceilings().describe()}. A kernel's ceiling is the larger of its arithmetic at the former rate and
its bytes at the latter, for an array of as many bytes.

Slower than the built-in ops: {", ".join(slower) or "none"}.

{table}
"""

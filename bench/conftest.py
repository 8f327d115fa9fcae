"""One table at the end of a run: our time, what it makes of the machine, and the time of MAX's own ops for the same."""

import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.ceilings import ceilings


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [(b.name, b.extra_info) for b in session.benchmarks if "ours_ms" in b.extra_info] if session else []
    if not rows:
        return
    reading = [f"{size / 2**20:g} MB {rate / 1e9:.0f}" for size, rate in ceilings().reading.items()]
    table = Table(
        "kernel and shape",
        title="medians, in turns with MAX's built-in ops",
        caption=f"ceilings: {ceilings().flops / 1e9:.0f} GFLOP/s in float32; GB/s read from arrays of {', '.join(reading)}",
    )
    for column in ("ms", "rate", "of ceiling", "built-in ms", "ratio"):
        table.add_column(column, justify="right")
    for name, info in rows:
        table.add_row(
            escape(name),
            f"{info['ours_ms']:.3f}",
            f"{info['rate']:.1f} {info['unit']}",
            f"{info['percent']:.0f} %",
            f"{info['theirs_ms']:.3f}",
            f"{info['ratio']:.2f}",
        )
    Console(width=120).print(table)

"""One table at the end of a run: our time, that of MAX's built-in ops for the same function, and what is made of it."""

import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [(b.name, b.extra_info) for b in session.benchmarks if "ours_ms" in b.extra_info] if session else []
    if not rows:
        return
    table = Table("kernel and shape", title="medians, in turns")
    for column in ("ours ms", "built-in ms", "ratio", "GFLOP/s", "GB/s"):
        table.add_column(column, justify="right")
    for name, info in rows:
        rates = [f"{info[key]:.1f}" if key in info else "" for key in ("gflop_per_s", "gb_per_s")]
        table.add_row(
            escape(name), f"{info['ours_ms']:.3f}", f"{info['theirs_ms']:.3f}", f"{info['ratio']:.2f}", *rates
        )
    Console(width=120).print(table)

"""Every GPU op compiles for architectures that are not here: with `max-whisper build`, as users do it. For sm_80 all other
tests compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from max_whisper.cache import cache_dir

ARCHITECTURES = [
    *[pytest.param(name, "float16", marks=pytest.mark.gpu) for name in ("sm_90", "gfx942")],
    *[pytest.param(name, "float16", marks=pytest.mark.full) for name in ("sm_80", "sm_89", "gfx1100")],
    *[pytest.param(name, "float32", marks=pytest.mark.full) for name in ("sm_90", "gfx942")],
    pytest.param("gfx942", "bfloat16", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("architecture", "dtype"), ARCHITECTURES)
def test_builds(architecture, dtype):
    """The graphs of tiny.en, with every op; it fails on any error that the compiler prints. What is built is kept."""
    folder = cache_dir() / "architectures"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MODULAR_", "PHANTOM_"))}
    options = ["--model", "tiny.en", "--target", architecture, "--dtype", dtype, "--output", str(folder)]
    result = subprocess.run(
        [sys.executable, "-m", "max_whisper", "build", *options],
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-2000:]
    built = Path(result.stderr.strip().rpartition(" are in ")[2])
    assert built.parent == folder / "compiled"
    assert (built / "graphs.mef").stat().st_size > 50_000

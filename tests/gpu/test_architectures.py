"""Every GPU op compiles for architectures that are not here."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

ARCHITECTURES = [("cuda", "sm_90"), ("hip", "gfx942")]


@pytest.mark.parametrize(("api", "architecture"), ARCHITECTURES)
def test_compiles(api, architecture, tmp_path):
    """MAX may print an error and still succeed: any error in the text fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MODULAR_", "PHANTOM_"))}
    result = subprocess.run(
        [sys.executable, "-m", "tests.gpu.compile_for", api, architecture],
        env={**environment, "MODULAR_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "error:" not in result.stdout + result.stderr, (result.stdout + result.stderr)[-2000:]

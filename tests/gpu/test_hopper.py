"""Kernels that only Hopper has, on a phantom H100: a process of its own, as a process has one phantom."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.phantom import install
from tests.phantom.architecture import H100, VARIABLE

MODULES = ("linear", "conv1d", "attention", "planted_faults", "ptxas")


@pytest.mark.gpu
def test_on_a_phantom_hopper() -> None:
    """Tests that fail are named; with `PHANTOM_ARCHITECTURE=sm_90` pytest runs a module of them here and now."""
    if install.installed is None:
        pytest.skip("a real GPU runs what it is")
    if os.environ.get(VARIABLE):
        pytest.skip("this is one of the phantom's architectures that was asked for")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-k", "not f32", "-q", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MODULAR_")} | {VARIABLE: H100.name}
    result = subprocess.run(
        [*command, *(str(here / f"test_{name}.py") for name in MODULES)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    print(result.stdout.splitlines()[-1])

"""What ptxas says of the kernels that the tests before this one ran: registers, shared memory, nothing spilled."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.phantom import install

pytestmark = pytest.mark.gpu

LIMITS = {"stack": 0, "spilled": 0, "registers": 255, "shared": 48 << 10}
"""Of any kernel: bytes of local memory, bytes spilled, registers of a thread, bytes of static shared memory."""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90"])
def test_registers_and_memory(architecture, tmp_path):
    """Nothing spills, on any of the architectures that the sm_80 code serves."""
    modules = install.installed.modules() if install.installed else []
    if not modules:
        pytest.skip("no kernel ran on the phantom before: run it with the other GPU tests")
    ptxas = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / "ptxas"
    for number, text in enumerate(modules):
        source = tmp_path / f"{number}.ptx"
        source.write_text(re.sub(r"\.target sm_\w+", f".target {architecture}", text))
        command = [str(ptxas), "-v", f"-arch={architecture}", str(source), "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=False)
        assert report.returncode == 0, report.stderr
        used = {
            "stack": _largest(r"(\d+) bytes stack frame", report.stderr),
            "spilled": _largest(r"(\d+) bytes spill", report.stderr),
            "registers": _largest(r"Used (\d+) registers", report.stderr),
            "shared": _largest(r"(\d+) bytes smem", report.stderr),
        }
        assert used["registers"] > 0, report.stderr
        over = {name: value for name, value in used.items() if value > LIMITS[name]}
        assert not over, f"{re.findall(r'[.]entry (.*)[(]', text)}: {over}"


def _largest(pattern: str, text: str) -> int:
    return max(map(int, re.findall(pattern, text)), default=0)

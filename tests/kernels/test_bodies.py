"""The CPU bodies that this machine would not choose: run where only an instruction is missing, compiled for all.

What is emulated is the instruction alone: packing, blocking, tails and epilogues are those that a CPU with AMX or AVX-512
runs. `MAX_WHISPER_CPU_TARGET=emulated-amx` does the same to whole graphs and to the tests of any kernel.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from max_whisper.target import cpu_features, needed_features

has_amx = pytest.mark.skipif(not needed_features("sapphirerapids") <= cpu_features(), reason="this CPU has no AMX")

PROGRAM = Path(__file__).with_name("bodies.mojo")


def build(output: Path, *options: str) -> None:
    mojo = str(Path(sys.executable).with_name("mojo"))
    # Mojo's cache goes by the name of the output, too: without its folder, what has not changed is built once.
    command = [mojo, "build", "-I", str(PROGRAM.parents[2]), "-o", output.name, *options, str(PROGRAM)]
    made = subprocess.run(command, capture_output=True, text=True, cwd=output.parent)
    assert made.returncode == 0, made.stderr[-4000:]


@pytest.mark.parametrize(
    ("options", "operands"),
    [
        (["-D", "MAX_WHISPER_EMULATE=amx"], "bfloat16 int8"),
        (["-D", "MAX_WHISPER_EMULATE=avx512"], "bfloat16 uint8"),
        (["--target-cpu", "x86-64-v2"], "float32 int16"),
        pytest.param(["--target-cpu", "sapphirerapids"], "bfloat16 int8", marks=has_amx),
    ],
    ids=["amx", "avx512", "sse", "amx hardware"],
)
def test_products(tmp_path, options, operands):
    build(tmp_path / "bodies", *options)
    run = subprocess.run([tmp_path / "bodies"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split("\n")[0] == operands


@pytest.mark.parametrize(
    ("options", "instructions"),
    [
        (
            ["--target-cpu", "sapphirerapids"],
            ["ldtilecfg", "tileloadd", "tdpbf16ps", "tdpbssd", "tilestored"],
        ),
        (["--target-cpu", "cooperlake"], ["vdpbf16ps", "vpdpbusd"]),
        (["--target-triple", "aarch64-unknown-linux-gnu", "--target-cpu", "neoverse-n1"], ["fmla"]),
    ],
    ids=["amx", "avx512", "aarch64"],
)
def test_instructions(tmp_path, options, instructions):
    build(tmp_path / "bodies.s", "--emit", "asm", *options)
    found = (tmp_path / "bodies.s").read_text()
    assert not [name for name in instructions if name not in found]

"""Which line of which Mojo source an instruction comes from.

MAX writes no line tables. But it makes a Mojo program of every graph, and writes that down on request; the Mojo compiler
makes the same kernels of it, with the same names, instruction by instruction, and puts `.loc` between them. That takes as
long as MAX's own compilation, so it is done on request: `pytest -m gpu --lines`.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.phantom.architecture import CURRENT

folder: Path | None = None
"""Where kernels with lines are kept, if they were asked for; set by `install`."""


def find_out(compile_graph: Callable[[], object]) -> None:
    """Keeps the lines of the kernels of a graph, if they were asked for.

    Args:
        compile_graph: Compiles it; it is stopped as soon as MAX has written down its Mojo program, unless it is compiled.
    """
    if folder is None:
        return
    from max.engine import CompilationStopped, InferenceSession

    with tempfile.TemporaryDirectory() as work:
        InferenceSession.debug.ir_output_dir, InferenceSession.debug.pre_jit = work, True
        try:
            compile_graph()
        except CompilationStopped:
            for program in Path(work).glob("*.mojo"):
                build(program, folder)
        finally:
            InferenceSession.debug.ir_output_dir, InferenceSession.debug.pre_jit = "", False


def build(program: Path, into: Path) -> None:
    """Compiles what MAX wrote down, and keeps each kernel as a file with the kernel's name.

    Args:
        program: The Mojo program; beside it, `.mo.mlir`, the graph.
        into: Folder of the kernels.

    Raises:
        RuntimeError: The compiler refuses it.
    """
    into.mkdir(parents=True, exist_ok=True)
    graph = program.with_suffix(".mo.mlir").read_text()
    packages = {Path(path).parent for path in re.findall(r'"([^"]*\.mojoc)"', graph)}
    with tempfile.TemporaryDirectory(dir=into) as work:
        options = ["-g1", "--emit", "asm", "--target-accelerator", CURRENT.name, "-o", str(Path(work) / "host.s")]
        options += [option for package in sorted(packages) for option in ("-I", str(package))]
        mojo = str(Path(sys.executable).with_name("mojo"))
        result = subprocess.run([mojo, "build", *options, str(program)], capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"no lines: {result.stderr[-2000:]}")
        for kernel in Path(work).glob("*.ptx"):
            if entry := re.search(r"\.entry\s+([\w$]+)", kernel.read_text()):
                shutil.move(kernel, into / f"{entry.group(1)}.ptx")


def with_lines(text: str, entry: str) -> str:
    """The PTX of a kernel with its lines, or as it is if they were not asked for or are not there."""
    file = folder / f"{entry}.ptx" if folder else None
    return file.read_text() if file and file.is_file() else text

"""Graphs that are compiled together: most of a compilation is spent before the first op is reached."""

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from max.engine import CompiledModel
from max.graph import Graph, KernelLibrary, Module, Type
from mojo.run import subprocess_run_mojo

from max_whisper.cache import entry
from max_whisper.ops import KERNELS
from max_whisper.runtime import session

PACKAGE = "max_whisper_kernels.mojoc"
"""The parsed kernels; the file's name is the module's in the programs that MAX makes of graphs."""


@cache
def _kernel_library() -> KernelLibrary:
    library = KernelLibrary()
    library.load_paths([_parsed(KERNELS)])
    return library


def _parsed(sources: Path) -> Path:
    """Returns a Mojo package as one parsed file: MAX would parse the sources in every process, ten seconds of a core."""
    digest = hashlib.sha256()
    for path in sorted(sources.rglob("*.mojo")):
        digest.update(f"{path.relative_to(sources)}\0".encode() + path.read_bytes())
    identity = {"mojo": version("mojo"), "folder": str(sources), "sources": digest.hexdigest()}
    return entry("kernels", PACKAGE, identity, lambda path: _parse(sources, path))


def _parse(sources: Path, path: Path) -> None:
    try:
        subprocess_run_mojo(["precompile", str(sources), "-o", str(path)], capture_output=True, check=True, text=True)
    except CalledProcessError as error:
        raise RuntimeError(f"the kernels have errors:\n{error.stderr}") from error


class GraphModule:
    """Graphs with our kernels in them that are compiled together."""

    def __init__(self) -> None:
        session()  # before any graph: it fixes the CPU target
        self._module = Module()

    def graph(self, name: str, input_types: Iterable[Type[Any]]) -> Graph:
        """Opens a graph of the module, to be used in a `with` statement."""
        return Graph(name, input_types=input_types, kernel_library=_kernel_library(), module=self._module)

    def compile(self) -> CompiledModel:
        """Compiles all graphs of the module."""
        return session().compile(self._module, custom_extensions=_kernel_library().library_paths())

"""Graphs that are compiled together: most of a compilation is spent before the first op is reached."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from max.engine import CompiledModel
from max.graph import Graph, KernelLibrary, Module, Type

from max_whisper.ops import KERNELS
from max_whisper.runtime import session


@cache
def _kernel_library() -> KernelLibrary:
    library = KernelLibrary()
    library.load_paths([KERNELS])
    return library


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

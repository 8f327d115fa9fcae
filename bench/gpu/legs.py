"""The graphs of both legs, compiled: here for the GPU that is here, or ahead of time for one that is not.

What was compiled is kept in the cache of max-whisper, so that a machine with a GPU can be given it: MAX takes half an hour
of two cores for its products on sm_90.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from max.driver import Buffer, __version__
from max.dtype import DType
from max.engine import Model
from max.graph import BufferType, DeviceRef, TensorType
from tests.phantom import install

from bench.gpu import builtin
from bench.gpu.cases import Case, Leg
from max_whisper import compiled, eager, target
from max_whisper.cache import entry
from max_whisper.graphs.module import GraphModule
from max_whisper.runtime import load, use


@dataclass
class Prepared:
    """A leg that can be called.

    Attributes:
        model: Its compiled graph, or why there is none.
        buffers: Its arguments, where it takes them.
    """

    model: Model | str
    buffers: list[Buffer]


def build(cases: Sequence[Case], architecture: str) -> dict[str, list[Path | str]]:
    """Compiles both legs of all cases: ours together, MAX's function by function, as some of its graphs may not compile.

    Args:
        cases: The cases.
        architecture: Of the device of this process, which may be a virtual one.

    Returns:
        "ours" and "builtin": for each case the MEF with its graph, or why there is none.
    """
    use("gpu")
    ours = _build([case.ours for case in cases], compiled.sources(), architecture)
    functions: dict[str, list[Case]] = {}
    for case in cases:
        functions.setdefault(case.name, []).append(case)
    theirs: dict[str, Path | str] = {}
    for name, group in functions.items():
        print(f"MAX's {name} ...", flush=True)
        try:
            theirs[name] = _build([case.builtin for case in group], _digest(builtin.__file__), architecture)
        except Exception as error:  # whatever MAX says
            theirs[name] = " ".join(str(error).split())[:200]
            print(theirs[name], flush=True)
    return {"ours": [ours] * len(cases), "builtin": [theirs[case.name] for case in cases]}


def prepare(cases: Sequence[Case]) -> list[tuple[Prepared, Prepared]]:
    """Compiles both legs of all cases for the device of this process, or finds them in the cache, and loads them."""
    built = build(cases, target.gpu_architecture())
    return list(
        zip(
            _load([case.ours for case in cases], built["ours"]),
            _load([case.builtin for case in cases], built["builtin"]),
            strict=True,
        )
    )


def _load(legs: Sequence[Leg], mefs: Sequence[Path | str]) -> list[Prepared]:
    models = {mef: load(mef, {}, "gpu") for mef in dict.fromkeys(mefs) if isinstance(mef, Path)}
    return [
        Prepared(
            models[mef][graph_name(leg)] if isinstance(mef, Path) else mef, eager.to_buffers(leg.op, leg.arrays, "gpu")
        )
        for leg, mef in zip(legs, mefs, strict=True)
    ]


def _build(legs: Sequence[Leg], sources: str, architecture: str) -> Path:
    graphs = {graph_name(leg): leg for leg in legs}  # legs that differ in their number of rows only share one
    identity = {
        "max": __version__,
        "sources": sources,
        "graphs": sorted(graphs),
        "target": architecture,
        "phantom": install.installed is not None,
    }
    return entry("bench", "legs.mef", identity, lambda path: _compile(graphs, path))


def _compile(graphs: dict[str, Leg], path: Path) -> None:
    module = GraphModule()
    for name, leg in graphs.items():
        with module.graph(name, _types(leg)) as graph:
            values = [v.buffer if isinstance(v.type, BufferType) else v.tensor for v in graph.inputs]
            results = leg.op(*values, **leg.parameters)
            graph.output(*(results if isinstance(results, tuple) else (results,)))
    module.compile().export_mef(path)


def graph_name(leg: Leg) -> str:
    """The same for legs that can share a graph: they differ in their number of rows at most."""
    what = f"{leg.op.__module__}.{leg.op.__qualname__} {_types(leg)} {sorted(leg.parameters.items())}"
    return f"{leg.op.__qualname__}_{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def _types(leg: Leg) -> list[TensorType | BufferType]:
    types = []
    for position, array in enumerate(leg.arrays):
        shape: list[int | str] = list(array.shape)
        if position in leg.rows:
            shape[0] = "rows"
        kind = BufferType if position in getattr(leg.op, "in_place", ()) else TensorType
        device = DeviceRef.CPU() if position in getattr(leg.op, "on_host", ()) else DeviceRef.GPU()
        dtype = DType.bfloat16 if array.dtype == np.uint16 else DType.from_numpy(array.dtype)
        types.append(kind(dtype, shape, device=device))
    return types


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()

"""Compiles both legs of all cases together and runs them, counted on the phantom GPU or timed on a real one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from max.driver import Buffer
from max.engine import Model
from max.graph import BufferType, DeviceRef, TensorType
from tests.phantom.counters import Counters
from tests.phantom.driver.cuda import Driver
from tests.phantom.launch import Options

from bench.gpu.cases import Case, Leg
from max_whisper import eager
from max_whisper.graphs.module import GraphModule
from max_whisper.runtime import session, use


@dataclass
class Prepared:
    """A leg that can be called.

    Attributes:
        model: Its compiled graph.
        buffers: Its arguments, where it takes them.
    """

    model: Model
    buffers: list[Buffer]


def compile_legs(legs: Sequence[Leg]) -> list[Prepared]:
    """Compiles the graphs of all legs together; legs that differ in their number of rows only share one."""
    use("gpu")
    module = GraphModule()
    names: dict[object, str] = {}
    prepared = []
    for leg in legs:
        buffers = eager.to_buffers(leg.op, leg.arrays, "gpu")
        types = [_type(leg, i, buffer) for i, buffer in enumerate(buffers)]
        key = (leg.op, str(types), str(leg.parameters))
        if key not in names:
            names[key] = f"leg{len(names)}"
            with module.graph(names[key], types) as graph:
                values = [v.buffer if isinstance(v.type, BufferType) else v.tensor for v in graph.inputs]
                results = leg.op(*values, **leg.parameters)
                graph.output(*(results if isinstance(results, tuple) else (results,)))
        prepared.append((names[key], buffers))
    models = session().init_all(module.compile())
    return [Prepared(models[name], buffers) for name, buffers in prepared]


def _type(leg: Leg, position: int, buffer: Buffer) -> TensorType | BufferType:
    kind = BufferType if position in getattr(leg.op, "in_place", ()) else TensorType
    shape: list[int | str] = list(buffer.shape)
    if position in leg.rows:
        shape[0] = "rows"
    return kind(buffer.dtype, shape, device=DeviceRef.CPU() if buffer.device.is_host else DeviceRef.GPU())


@dataclass(frozen=True)
class Result:
    """A case, counted.

    Attributes:
        case: The case.
        ours: What our launches did.
        builtin: What MAX's did, or why they cannot run.
    """

    case: Case
    ours: list[Counters]
    builtin: list[Counters] | str


def compare(case: Case, ours: Prepared, builtin: Prepared, phantom: Driver) -> Result:
    """Counts both legs, and looks whether they computed the same: ours is held against float64 by the tests of `tests/gpu`,
    so where the results differ the built-in leg does not count.

    Raises:
        RuntimeError: Our leg has a fault.
    """
    results, launches = count(ours, phantom)
    try:
        theirs, their_launches = count(builtin, phantom)
    except RuntimeError as error:
        return Result(case, launches, str(error))
    if not all(are_alike(mine, other) for mine, other in zip(results, theirs, strict=True)):
        return Result(case, launches, "its result is not ours, which is tested against float64")
    return Result(case, launches, their_launches)


def are_alike(ours: np.ndarray, builtin: np.ndarray) -> bool:
    """Whether two results are the same but for roundings."""
    a, b = (_widen(array).squeeze() for array in (ours, builtin))
    if a.shape != b.shape:
        b = b.swapaxes(0, 1)  # keys lie (S, H, 64) for MAX
    # Roundings to 8 bits, in MAX's graphs several; its float32 products have TF32's 11.
    return np.allclose(a, b.reshape(a.shape), rtol=2**-5, atol=2**-5 * np.abs(a).max())


def _widen(array: np.ndarray) -> np.ndarray:
    """Float64; uint16 stands for bfloat16."""
    return ((array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array).astype(np.float64)


def count(prepared: Prepared, phantom: Driver) -> tuple[list[np.ndarray], list[Counters]]:
    """Runs a leg once on the phantom.

    Returns:
        Its results and the counts of its launches.

    Raises:
        RuntimeError: The phantom found a fault, or lacks what the kernel needs.
    """
    phantom.options = Options(check_races=False, check_shared=False)
    phantom.launches.clear()
    phantom.faults.clear()
    try:
        results = [eager.to_array(result) for result in prepared.model.execute(*prepared.buffers)]
    except Exception as error:
        raise RuntimeError(phantom.faults[0] if phantom.faults else str(error)) from error
    if phantom.faults:
        raise RuntimeError(phantom.faults[0])
    return results, list(phantom.launches)

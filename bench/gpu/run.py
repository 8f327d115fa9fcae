"""Runs both legs of a case and counts on the phantom GPU what they do."""

from dataclasses import dataclass

import numpy as np
from tests.phantom.counters import Counters
from tests.phantom.driver.cuda import Driver
from tests.phantom.launch import Options

from bench.gpu.cases import Case
from bench.gpu.legs import Prepared
from max_whisper import eager


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
        b = b.swapaxes(-3, -2)  # keys lie (S, H, 64) for MAX
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
    if isinstance(prepared.model, str):
        raise RuntimeError(prepared.model)
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

"""Runs an op the way its tests need: into poisoned memory, twice, against a float64 reference.

A kernel that leaves an element unwritten often passes a test, because fresh memory holds zeros or an earlier right
result. Here the memory that an output is going to occupy is filled with NaN first: outputs of the same shape are made,
overwritten and released, more and more at once, until the next one is seen to reuse such memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model

from max_whisper import eager, target
from max_whisper.runtime import as_buffer

FLOAT32_TOLERANCE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}
"""For sums of up to a few thousand float32 products of unit scale: rounding grows like sqrt(K) * 2**-24."""

MOST_FEW_ROWS = 12
"""What the kernels call few rows where there is AVX-512 (kernels/cpu/tile.mojo)."""

SPLIT_TOLERANCE: dict[str, Any] = {"rtol": 2e-5, "atol": 8e-5}
"""For the same where a tile unit multiplies two terms of bfloat16: what that leaves out is 2^-18 of unit scale, 4e-6, in
the mean square (kernels/cpu/split_amx.mojo). Of 10^5 sums one is off by five times as much, and short ones are of several
times unit scale. A term forgotten would show as 2^-9."""

MOST_HELD = 1 << 16
"""Poisoned outputs released together, at most. Small ones go to a list of the thread that releases them, and only what is
too much for that list gets to the thread that allocates outputs."""


def product_tolerance(rows: int, dtype: str = "float32") -> dict[str, Any]:
    """The tolerance of products of float32 rows with weights of a dtype."""
    split = target.has_tile_unit() and rows > MOST_FEW_ROWS and dtype in ("float32", "float16")
    return SPLIT_TOLERANCE if split else FLOAT32_TOLERANCE


def run_poisoned(model: Model, buffers: Sequence[Buffer]) -> list[np.ndarray]:
    """Executes a model whose first output lands in memory that was NaN (or -1 for integers) before.

    Raises:
        AssertionError: The allocator never reused poisoned memory, so the run would prove nothing.
    """
    poisoned: set[int] = set()
    held: list[np.ndarray] = []
    enough = 1
    while enough <= MOST_HELD:
        results = [_as_array(result) for result in model.execute(*buffers)]
        if results[0].size == 0 or results[0].ctypes.data in poisoned:
            return results
        for result in results:
            result.fill({"f": np.nan, "u": 0xFFFF}.get(result.dtype.kind, -1))
            poisoned.add(result.ctypes.data)
        held += results
        if len(held) >= enough:
            held.clear()
            enough *= 2
    raise AssertionError(f"no output reused poisoned memory, though {MOST_HELD} were released together")


def _as_array(result: Buffer) -> np.ndarray:
    """The memory of a result, with the bits of bfloat16 as uint16."""
    return (result.view(DType.uint16, result.shape) if result.dtype == DType.bfloat16 else result).to_numpy()


def run(op: eager.Op, *arrays: np.ndarray, **parameters: Any) -> Any:
    """`eager.call` into poisoned memory, twice: a second run on the same inputs must give the same bits."""
    buffers = [as_buffer(np.ascontiguousarray(array)) for array in arrays]
    model = eager.compile_op(op, buffers, parameters)
    results = run_poisoned(model, buffers)
    again = [_as_array(result) for result in model.execute(*buffers)]
    for first, second in zip(results, again, strict=True):
        np.testing.assert_array_equal(first, second, err_msg="two runs on the same inputs differ")
    return results[0] if len(results) == 1 else tuple(results)


def check(
    op: eager.Op,
    arrays: Sequence[np.ndarray],
    reference: Callable[..., Any],
    *,
    rtol: float,
    atol: float,
    **parameters: Any,
) -> None:
    """Compares an op with its float64 reference, which takes the same arguments."""
    results = run(op, *arrays, **parameters)
    wide = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in arrays]
    expected = reference(*wide, **parameters)
    if not isinstance(results, tuple):
        results, expected = (results,), (expected,)
    for result, reference_result in zip(results, expected, strict=True):
        assert result.shape == reference_result.shape
        np.testing.assert_allclose(result, reference_result, rtol=rtol, atol=atol)

"""Runs one op on the GPU of the process, a real one or the phantom, against its float64 reference."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from max_whisper import compiled, eager, packed, runtime
from max_whisper.checkpoint import Checkpoint
from max_whisper.model import Whisper, load_model
from max_whisper.packing import cast
from tests.phantom import install, lines
from tests.phantom.architecture import CURRENT, H100
from tests.phantom.counters import Counters

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}

TOLERANCE: dict[str, dict[str, Any]] = {
    "f32": {"rtol": 2e-5, "atol": 2e-5},  # sums of products of unit scale: sqrt(K) * 2**-24 each
    "f16": {"rtol": 2**-11, "atol": 2e-5},  # float32 sums, then one rounding to 11 bits
    "bf16": {"rtol": 2**-8, "atol": 2e-5},  # ... to 8 bits
}


def round_to(name: str, array: np.ndarray) -> np.ndarray:
    """Rounds to a dtype; bfloat16 comes as the uint16 of its bits."""
    return cast(array, DTYPES[name])


def widen(array: np.ndarray) -> np.ndarray:
    """Float64 of what `round_to` gave; integers stay."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def prepare(op: Callable, signature: str, **parameters: Any) -> None:
    """Names an op that is going to be run: all are compiled by the first run, or each alone where lines are asked for.

    On a phantom H100 the ops of float32, whose kernels are an A100's, are compiled only if they are run.
    """
    if lines.folder is None and not (CURRENT is H100 and signature.startswith("f32")):
        eager.prepare(op, signature, device="gpu", **parameters)


def prepare_model(checkpoint: Checkpoint, dtype: str) -> None:
    """Names a model that is going to be loaded by `load_prepared`: its graphs are compiled with the ops."""
    if lines.folder is None:
        eager.prepare_graphs(
            "gpu",
            lambda module: compiled.add_graphs(module, checkpoint.dims, "gpu", dtype),
            lambda: runtime.put_weights(packed.pack(checkpoint, dtype, "gpu"), "gpu"),
        )


def load_prepared(checkpoint: Checkpoint, dtype: str) -> Whisper:
    """The model that `prepare_model` named; the phantom does not count what it does."""
    if phantom := install.installed:
        phantom.options = replace(phantom.options, count=False)
        phantom.faults.clear()
    if lines.folder is not None:
        return load_model(checkpoint, "gpu", dtype)
    with patch.object(compiled, "build"), patch.object(runtime, "load", lambda *_: eager.graphs("gpu")):
        return load_model(checkpoint, "gpu", dtype)


def execute(op: Callable, arrays: Sequence[np.ndarray], count: bool = False, **parameters: Any) -> list[np.ndarray]:
    """Runs an op; raises what it raises, and what the phantom found.

    Args:
        op: A function of `max_whisper.ops`.
        arrays: Its arguments; uint16 stands for bfloat16.
        count: Whether the phantom counts, which makes it slower.
        parameters: The op's keyword arguments.

    Returns:
        Its results, then the arguments that it updates in place.
    """
    buffers = eager.to_buffers(op, arrays, "gpu")
    lines.find_out(lambda: eager.compile_op(op, buffers, parameters))
    model = eager.compile_op(op, buffers, parameters)
    phantom = install.installed
    if phantom:
        phantom.options = replace(phantom.options, count=count)
        phantom.launches.clear()
        phantom.faults.clear()
    try:
        updated = [buffers[i] for i in sorted(getattr(op, "in_place", ()))]
        results = [eager.to_array(result) for result in [*model.execute(*buffers), *updated]]
    finally:
        if phantom and phantom.faults:
            raise AssertionError(phantom.faults[0])
    return results


def check(op: Callable, name: str, arrays: Sequence[np.ndarray], reference: Callable, **parameters: Any) -> None:
    """Compares an op with its reference, which takes the same arguments in float64."""
    results = execute(op, arrays, **parameters)
    expected = reference(*map(widen, arrays), **parameters)
    for result, reference_result in zip(results, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert result.shape == reference_result.shape
        there = np.full(result.shape, True) if not _one_block() else ~np.isnan(widen(result))
        np.testing.assert_allclose(widen(result)[there], reference_result[there], **TOLERANCE[name])


def _one_block() -> bool:
    """Whether only one block is run, so that what the others would have written is missing: `--only-block`."""
    return install.installed is not None and install.installed.options.only_block is not None


def counted(op: Callable, arrays: Sequence[np.ndarray], **parameters: Any) -> Counters:
    """What the one launch of an op did on the phantom GPU."""
    (launch,) = all_counted(op, arrays, **parameters)
    return launch


def all_counted(op: Callable, arrays: Sequence[np.ndarray], **parameters: Any) -> list[Counters]:
    """What the launches of an op did on the phantom GPU."""
    if install.installed is None:
        pytest.skip("a real GPU does not count")
    execute(op, arrays, count=True, **parameters)
    return install.installed.launches


def refused(op: Callable, arrays: Sequence[np.ndarray], message: str, **parameters: Any) -> None:
    """Asserts that an op refuses its arguments on the host, before anything is launched."""
    with pytest.raises(ValueError, match=re.escape(message)):
        execute(op, arrays, **parameters)
    assert not (install.installed and install.installed.launches)

"""Whole models through the GPU's graphs, against the CPU's, which compute with the same weights."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.golden import clips

TOLERANCE: dict[str, dict[str, Any]] = {
    "float32": {"rtol": 0, "atol": 1e-3},  # sums in another order, through four blocks and states of about 3
    "float16": {"rtol": 2**-8, "atol": 5e-2},  # every state between layers is rounded to 11 bits
}
LOGITS = {"float32": 1e-2, "float16": 0.2}  # set after the first run, whose largest difference was 0.083


def run(tmp_path, device: str, dtype: str, *arguments: str) -> dict[str, np.ndarray]:
    path = tmp_path / f"{device}-{dtype}.npz"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MODULAR_", "PHANTOM_"))}
    result = subprocess.run(
        [sys.executable, "-m", "tests.gpu.run_model", device, dtype, str(path), *arguments],
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(np.load(path))


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, np.ndarray]:
    return run(tmp_path_factory.mktemp("cpu"), "cpu", "float32")


@pytest.mark.parametrize(
    "dtype", [pytest.param("float16", marks=pytest.mark.gpu), pytest.param("float32", marks=pytest.mark.nightly)]
)
def test_tiny_model(tmp_path, expected, dtype):
    """Log-mel, encoder, cross-attention, prompt, steps and logits; the tokens are exactly the CPU's."""
    results = run(tmp_path, "gpu", dtype)
    assert len(np.unique(expected["tokens"])) > 4  # tokens that say something
    np.testing.assert_array_equal(results["tokens"], expected["tokens"])
    np.testing.assert_allclose(results["mel"], expected["mel"], atol=1e-4)
    for name in ("states", "log_probs", "no_speech_probs"):
        np.testing.assert_allclose(results[name], expected[name], **TOLERANCE[dtype], err_msg=name)
    # A logit sums 128 products of a state and an embedding of unit scale: sqrt(128) times a state's error
    np.testing.assert_allclose(results["logits"], expected["logits"], rtol=2**-8, atol=LOGITS[dtype])


@pytest.mark.nightly
def test_real_speech(tmp_path):
    """tiny.en hears 30 s of a person reading: all tokens are the CPU's."""
    clip = clips.paths().get("moonshine-voice/two_cities.wav")
    if clip is None:
        pytest.skip("the recording is not on this machine")
    expected = run(tmp_path, "cpu", "float32", "tiny.en", str(clip))
    assert len(expected["tokens"]) > 50
    results = run(tmp_path, "gpu", "float16", "tiny.en", str(clip))
    np.testing.assert_allclose(results["mel"], expected["mel"], atol=1e-4)
    assert results["tokens"].tolist() == expected["tokens"].tolist()
    assert results["avg_logprob"] == pytest.approx(expected["avg_logprob"], abs=0.01)

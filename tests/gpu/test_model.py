"""Whole models through the GPU's graphs: a tiny one against float64, a trained one against the CPU's graphs."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.golden import clips
from tests.kernels.references import log_softmax
from tests.phantom import install

from . import harness
from .run_model import NO_SPEECH_AT, PROMPT, SILENCE, STEPS, noise, run_tiny, tiny
from .whole_model import WholeModel

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


harness.prepare_model(tiny(), "float16")


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """What the tiny model computes, in float64."""
    model = WholeModel(tiny())
    mel = model.log_mel_spectrogram(noise(), SILENCE)
    states = model.encode(mel)
    tokens, log_probs = PROMPT, []
    no_speech = np.exp(log_softmax(model.logits(states, tokens)))[np.arange(2), NO_SPEECH_AT, model.dims.no_speech]
    for _ in range(STEPS):
        following = log_softmax(model.logits(states, tokens)[:, -1])
        log_probs.append(following.max(-1))
        tokens = np.concatenate([tokens, following.argmax(-1)[:, None]], axis=1)
    return {
        "mel": mel,
        "states": states,
        "tokens": tokens[:, PROMPT.shape[1] :],
        "log_probs": np.stack(log_probs, axis=1),
        "no_speech_probs": no_speech,
        "logits": model.logits(states, tokens)[:, -1],
    }


@pytest.mark.gpu
def test_tiny_model(expected):
    """Log-mel, encoder, cross-attention, prompt, steps and logits; the tokens are exactly those of float64."""
    results = run_tiny(harness.load_prepared(tiny(), "float16"))
    assert not (install.installed and install.installed.faults), install.installed.faults[0]
    compare(results, expected, "float16")


@pytest.mark.nightly
def test_tiny_model_in_float32(tmp_path, expected):
    compare(run(tmp_path, "gpu", "float32"), expected, "float32")


def compare(results: dict[str, np.ndarray], expected: dict[str, np.ndarray], dtype: str) -> None:
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

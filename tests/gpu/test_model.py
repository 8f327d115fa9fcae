"""Whole models through the GPU's graphs: a tiny one against float64, a trained one against the CPU's graphs."""

import os
import subprocess
import sys
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from max_whisper import replay, runtime
from max_whisper.errors import DeviceError
from max_whisper.model import Whisper
from max_whisper.rules import SUPPRESSED, TIMESTAMP_RULE
from tests.fake_model import follow
from tests.golden import clips
from tests.kernels.references import log_softmax
from tests.phantom import install

from . import harness
from .run_model import NO_SPEECH_AT, PROMPT, SILENCE, STEPS, decode_tiny, hear_tiny, noise, tiny
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


@pytest.fixture(scope="module")
def model() -> Whisper:
    return harness.load_prepared(tiny(), "float16")


@pytest.fixture(scope="module")
def heard(model: Whisper) -> tuple[np.ndarray, Any]:
    """Features and states of two windows, which decoders may share."""
    return hear_tiny(model)


@pytest.mark.gpu
@pytest.mark.captures
def test_tiny_model(model, heard, expected):
    """Log-mel, encoder, cross-attention, prompt, steps and logits; the tokens are exactly those of float64. The steps are
    captured once and replayed; the second decoder moves into what the first one left, and replays what it captured."""
    with patch.object(runtime, "capture", wraps=runtime.capture) as capture:
        compare(decode_tiny(model, *heard), expected, "float16")
        again = decode_tiny(model, *heard, steps=3)
        assert capture.call_count == 1
    assert not (install.installed and install.installed.faults), install.installed.faults[0]
    np.testing.assert_array_equal(again["tokens"], expected["tokens"][:, :3])
    np.testing.assert_allclose(again["log_probs"], expected["log_probs"][:, :3], **TOLERANCE["float16"])


@pytest.mark.gpu
@pytest.mark.captures
def test_rows_that_have_ended_leave(model, expected):
    """Of two rows the second goes on alone, in the first one's place; of three, two would not."""
    mel = expected["mel"].astype(np.float32)
    decoder = model.new_decoder(model.embed_audio(mel))
    rules = np.tile(np.array([0, 0, 0, model.dims.n_vocab], np.int32), (2, 1))
    picks = decoder.forward(PROMPT, rules)
    assert decoder.keep([1]) == [1]
    for step in range(1, 4):
        picks = decoder.forward(picks.tokens[-1:, None], rules[:1])
        assert picks.tokens.tolist() == [expected["tokens"][1, step]]
        np.testing.assert_allclose(picks.log_probs, expected["log_probs"][1:, step], **TOLERANCE["float16"])
    three = model.new_decoder(model.embed_audio(mel[[0, 1, 0]]))
    assert list(three.keep([0, 1])) == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.captures
def test_two_decoders_at_once(model, heard, expected):
    """Each has caches and steps of its own, and a new one finds no suppression that an old one left."""
    _, features = heard
    rules = np.tile(np.array([1, 0, 0, model.dims.n_vocab], np.int32), (2, 1))
    decoders = [model.new_decoder(features) for _ in range(2)]
    mask = np.zeros(model.dims.n_vocab, np.uint8)
    mask[expected["tokens"]] = 1
    decoders[1].set_suppression(mask)
    tokens = [PROMPT, PROMPT]
    for step in range(3):
        picks = [decoder.forward(given, rules) for decoder, given in zip(decoders, tokens, strict=True)]
        assert picks[0].tokens.tolist() == expected["tokens"][:, step].tolist()
        assert not mask[picks[1].tokens].any()
        tokens = [pick.tokens[:, None] for pick in picks]
    del decoders
    decoder = model.new_decoder(features)
    assert decoder.forward(PROMPT, rules).tokens.tolist() == expected["tokens"][:, 0].tolist()
    assert decoder.forward(expected["tokens"][:, :1], rules).tokens.tolist() == expected["tokens"][:, 1].tolist()


@pytest.mark.gpu
@pytest.mark.captures
def test_a_step_that_could_not_be_captured_is_captured_later(model, heard, expected):
    rules = np.tile(np.array([0, 0, 0, model.dims.n_vocab], np.int32), (2, 1))
    decoders = [model.new_decoder(heard[1]) for _ in range(4)]  # the last finds a room that has captured nothing yet
    decoder = decoders[-1]
    tokens = decoder.forward(PROMPT, rules).tokens[:, None]
    with patch.object(runtime, "capture", side_effect=DeviceError("full")), pytest.raises(DeviceError):
        decoder.forward(tokens, rules)
    del decoder, decoders
    decoders = [model.new_decoder(heard[1]) for _ in range(4)]
    for decoder in decoders:
        tokens = decoder.forward(PROMPT, rules).tokens[:, None]
        assert decoder.forward(tokens, rules).tokens.tolist() == expected["tokens"][:, 1].tolist()


@pytest.mark.gpu
@pytest.mark.captures
def test_a_run_of_steps(model, heard):
    """Goes on by itself as it would step by step, around the end of the columns for what is picked; a row that has ended
    says so again, and the other one's tokens are the same."""
    _, features = heard
    dims, limits = model.dims, (7, 99)
    rules = np.tile(np.array([SUPPRESSED | TIMESTAMP_RULE, 0, dims.timestamp_begin, dims.n_vocab], np.int32), (2, 1))
    said, one_by_one = np.full((2, 3), -1, np.int32), model.new_decoder(features)
    picks, states = [one_by_one.forward(PROMPT, rules)], []
    for _ in range(7 + replay.STEPS):
        tokens = picks[-1].tokens[:, None]
        said = np.hstack([said[:, 1:2], tokens, np.where(tokens < dims.timestamp_begin, said[:, 2:], tokens)])
        states.append((tokens, np.array([follow(*row, dims) for row in zip(rules, said, strict=True)], np.int32), said))
        picks.append(one_by_one.forward(*states[-1][:2]))
    expected = np.stack([pick.tokens for pick in picks[1:]], axis=1)
    log_probs = np.stack([pick.log_probs for pick in picks[1:]], axis=1)
    assert {True, False} == set((expected < dims.timestamp_begin).ravel().tolist())  # rules come and go

    for ended in (False, True):
        decoder = model.new_decoder(features)
        decoder.forward(PROMPT, rules)
        begun = 0
        for limit in limits:
            tokens, following, what = states[begun]
            if ended:
                what = np.array([what[0], [1, dims.end_of_text, 1]], np.int32)
            run, run_log_probs = decoder.run(tokens, following, what, limit)
            assert run.shape == run_log_probs.shape == (2, min(limit, replay.STEPS))
            for row in range(2 - ended):
                np.testing.assert_array_equal(run[row], expected[row, begun:][: len(run[row])])
                np.testing.assert_array_equal(run_log_probs[row], log_probs[row, begun:][: len(run[row])])
            if ended:
                assert set(run[1].tolist()) == {dims.end_of_text}
                assert not run_log_probs[1].any()
            begun += run.shape[1]
        with pytest.raises(ValueError, match="decoder: past has 26, expected 0 to 16"):
            decoder.run(*states[-1], 99)


@pytest.mark.gpu
@pytest.mark.captures
def test_senseless_positions_are_refused_before_a_step_is_made(model, heard):
    rules = np.tile(np.array([0, 0, 0, model.dims.n_vocab], np.int32), (2, 1))
    decoder = model.new_decoder(heard[1])
    for name, wrong, lowest in (("no_speech_at", [0, 3], -1), ("no_speech_at", [-2, 0], -1), ("last", [3, 0], 0)):
        found = next(value for value in wrong if not lowest <= value <= 2)
        with pytest.raises(ValueError, match=f"decoder: {name} has {found}, expected {lowest} to 2"):
            decoder.forward(PROMPT, rules, **{name: np.array(wrong, np.int32)})
    expected = model.new_decoder(heard[1]).forward(PROMPT, rules).tokens
    np.testing.assert_array_equal(decoder.forward(PROMPT, rules).tokens, expected)


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

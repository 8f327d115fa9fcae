"""The real model beyond its golden transcripts: batches, what it refuses, and what a package of it contains."""

import numpy as np
import pytest

from max_whisper.audio import load_audio, pad_or_trim
from max_whisper.errors import AudioError, OptionError
from tests import models
from tests.golden import clips

MODELS = ["tiny.en"]


@pytest.fixture(scope="module")
def model():
    return models.load("tiny.en")


@pytest.fixture(scope="module")
def windows(model) -> np.ndarray:
    """Two windows with different speech: (2, 80, 3000)."""
    path = clips.paths().get("moonshine-voice/two_cities.wav")
    if path is None:
        pytest.skip("the recording is not on this machine")
    mel = model.log_mel_spectrogram(load_audio(path), padding=480000)
    return np.stack([pad_or_trim(mel[:, start : start + 700], 3000) for start in (0, 2000)])


def test_windows_of_a_batch_do_not_see_each_other(model, windows):
    together = model.decode(windows)
    alone = [model.decode(window) for window in windows]
    assert [result.tokens for result in together] == [result.tokens for result in alone]
    assert len({tuple(result.tokens) for result in together}) == 2
    for one, other in zip(together, alone, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-5)
        assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-5)


def test_a_prompt_at_once_is_the_prompt_token_by_token(model, windows):
    """The cache holds the same after one call of five tokens and after five of one."""
    features = model.embed_audio(windows[:1])
    tokens = np.array([[50257, 50362, 632, 373, 262]], np.int32)
    at_once, one_by_one = model.new_decoder(features), model.new_decoder(features)
    expected = at_once.logits(tokens)
    logits = [one_by_one.logits(tokens[:, step : step + 1]) for step in range(5)]
    np.testing.assert_allclose(logits[-1], expected, atol=2e-4)


def test_rows_of_different_lengths(model, windows):
    """What lies behind a row's last valid token is overwritten: a padded row goes on as if it had none."""
    features = model.embed_audio(windows[[0, 0]])
    anything = np.array([[0, 0, 0, 60000]] * 2, np.int32)
    padded = np.array([[50257, 50362, 632], [50257, 50362, 0]], np.int32)
    decoder = model.new_decoder(features)
    first = decoder.forward(padded, anything, last=np.array([2, 1], np.int32))
    second = decoder.forward(first.tokens[:, None], anything)
    alone = model.new_decoder(model.embed_audio(windows[:1]))
    expected = alone.forward(padded[1:, :2], anything[:1])
    assert first.tokens[1] == expected.tokens[0]
    assert second.tokens[1] == alone.forward(expected.tokens[:, None], anything[:1]).tokens[0]


def test_a_full_context_is_refused(model, windows):
    decoder = model.new_decoder(model.embed_audio(windows[:1]))
    with pytest.raises(ValueError, match="448"):
        decoder.logits(np.full((1, 449), 50257, np.int32))


def test_features_of_another_model(model):
    with pytest.raises(OptionError, match=r"mel has shape \(1, 128, 3000\): expected \(B, 80, 3000\)"):
        model.embed_audio(np.zeros((1, 128, 3000), np.float32))


def test_samples_of_two_channels(model):
    with pytest.raises(AudioError, match=r"\(2, 16000\): expected one channel"):
        model.log_mel_spectrogram(np.zeros((2, 16000), np.float32))

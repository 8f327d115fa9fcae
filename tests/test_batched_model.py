"""Batches on real speech with the real model: every word, as many errors as one window after the other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.golden import clips

jiwer = pytest.importorskip("jiwer")
MODELS = ["tiny.en"]
TWO_CITIES = "moonshine-voice/two_cities.wav"
GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("tiny.en.json").read_text(encoding="utf-8"))["cases"]


def words(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("-", " ")).split())


@pytest.fixture(scope="module")
def model() -> Any:
    return models.load("tiny.en")


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.full), 3])
def test_as_few_errors_as_one_after_the_other(model: Any, batch_size: int) -> None:
    """44 s of "A Tale of Two Cities"."""
    path = clips.paths().get(TWO_CITIES)
    if path is None:
        pytest.skip("the recording is not on this machine")
    options = {"condition_on_previous_text": False}
    (one_by_one,) = (case for case in GOLDEN if case["clip"] == TWO_CITIES and case["options"] == options)
    batched = model.transcribe(path, batch_size=batch_size)
    assert jiwer.wer(words(one_by_one["text"]), words(batched["text"])) <= 0.03
    assert [segment["start"] for segment in batched["segments"]] == sorted(s["start"] for s in batched["segments"])


@pytest.mark.full
def test_word_errors_against_the_reference_text(model: Any) -> None:
    path = clips.paths().get("speech/long.flac")
    if path is None:
        pytest.skip("the recording is not on this machine")
    reference = words(path.with_suffix(".txt").read_text())
    sequential = jiwer.wer(reference, words(model.transcribe(path)["text"]))
    assert jiwer.wer(reference, words(model.transcribe(path, batch_size=8)["text"])) <= sequential


def test_rows_that_leave_change_nothing(model: Any) -> None:
    """The same windows alone and together, where rows end at different times and are moved."""
    path = clips.paths().get(TWO_CITIES)
    if path is None:
        pytest.skip("the recording is not on this machine")
    clip = "0,9,9,12,12,26"
    together = model.transcribe(path, batch_size=3, clip_timestamps=clip)
    alone = model.transcribe(path, batch_size=1, clip_timestamps=clip)
    assert [segment["tokens"] for segment in together["segments"]] == [s["tokens"] for s in alone["segments"]]

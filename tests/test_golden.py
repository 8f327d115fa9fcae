"""The same words as openai-whisper: every golden transcript (`golden/`), token for token and time for time."""

import json
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.golden import clips

MODELS = ["tiny.en", "base"]
GOLDEN = Path(__file__).parent / "golden"

# Tokens, text and times are compared exactly. Log probabilities are means of float32 sums, which depend on the order of
# summation: openai-whisper's own move by 1e-6 from one thread to two. 1e-3 leaves room for approximate exponentials,
# and is far below what a wrong weight, position or rule does to them.
TOLERANCE = 1e-3

BASE_HEARS = (
    *("pangrama", "quick_brown_fox"),  # ten languages
    *("short", "librivox-0870", "beckett", "two_cities"),  # English
    *("silence-30s", "1-sample"),
)
"""Recordings without options; the others are for tiny.en, and for `pytest -m full`."""


def shows_nothing_more(model: str, case: dict, others: list[dict]) -> bool:
    """Whether the case shows what another shows sooner.

    What an option does is seen on short clips as well, and with one model: base need not show what tiny.en's cases do, but
    what languages do. That windows follow one another is seen in tiny.en's long.flac (165 s) and in base's two_cities.wav
    (44 s). Of three sentences in each of ten languages, base hears one, the pangram; tiny.en, which knows English only, the
    English ones, and one that it never stops to hear.
    """
    clip, options = case["clip"], case["options"]
    if options:
        if model != "tiny.en" and any((o["clip"], o["options"]) == (clip, options) for o in others):
            return True
        return clip in ("speech/long.flac", "moonshine-voice/two_cities.wav")
    if model == "base":
        return Path(clip).stem not in BASE_HEARS
    return clip.startswith("pytest-audioeval/") and "/en/" not in clip and clip != "pytest-audioeval/zh/pangrama.wav"


def cases() -> list[Any]:
    found = []
    all_cases = {data["model"]: data["cases"] for data in map(_read, sorted(GOLDEN.glob("*.json"))) if "cases" in data}
    for model, model_cases in all_cases.items():
        for i, case in sorted(enumerate(model_cases), key=lambda numbered: numbered[1]["clip"]):
            options = ",".join(f"{key}={str(value)[:20]}" for key, value in case["options"].items())
            marks = pytest.mark.full if shows_nothing_more(model, case, all_cases["tiny.en"]) else ()
            found.append(pytest.param(model, case, id=f"{model}-{i}-{case['clip']}-{options}", marks=marks))
    return found


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def load(name: str) -> Any:
    """A model that keeps what it encoded last: the cases of a clip differ in how it is decoded."""
    model = models.load(name)
    encodes_once, kept = copy(model), {}

    def embed_audio(mel: np.ndarray) -> Any:
        key = mel.tobytes()
        if key not in kept:
            if len(kept) == 4:
                del kept[next(iter(kept))]
            kept[key] = model.embed_audio(mel)
        return kept[key]

    encodes_once.embed_audio = embed_audio
    return encodes_once


@cache
def samples(clip: str) -> np.ndarray:
    from max_whisper.audio import load_audio

    if clip in clips.synthetic():
        return clips.synthetic()[clip]
    path = clips.paths().get(clip)
    if path is None:
        pytest.skip(f"{clip} is not on this machine")
    return load_audio(path)


def compare(result: dict, case: dict) -> None:
    """Asserts that a transcription is the golden one."""
    assert result["language"] == case["language"]
    assert [segment["tokens"] for segment in result["segments"]] == [segment["tokens"] for segment in case["segments"]]
    assert result["text"] == case["text"]
    for ours, theirs in zip(result["segments"], case["segments"], strict=True):
        for key in ("seek", "start", "end", "text"):
            assert ours[key] == theirs[key]
        for key in ("avg_logprob", "no_speech_prob", "compression_ratio"):
            assert ours[key] == pytest.approx(theirs[key], abs=TOLERANCE)


@pytest.mark.parametrize(("name", "case"), cases())
def test_the_same_as_openai_whisper(name: str, case: dict) -> None:
    audio = samples(case["clip"])
    assert clips.sha256(audio) == case["sha256"], "the clip was decoded to other samples than those transcribed"
    compare(load(name).transcribe(audio, **case["options"]), case)


# --- live ------------------------------------------------------------------------------------------------------------


@cache
def openai_model(name: str) -> Any:
    pytest.importorskip("whisper")
    from tests.openai_model import OpenAIModel

    return OpenAIModel(name)


@pytest.mark.live
@pytest.mark.parametrize(("name", "case"), cases())
def test_our_algorithm_over_their_network(name: str, case: dict) -> None:
    from max_whisper.transcribe import transcribe

    model = openai_model(name)
    audio = samples(case["clip"])
    if len(audio) > 15 * 16000:
        pytest.skip("short clips show it too")
    compare(dict(transcribe(model, audio, **case["options"])), case)


@pytest.mark.live
@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_the_same_as_openai_whisper_now(name: str) -> None:
    network = openai_model(name).network
    audio = samples("moonshine-voice/two_cities.wav")[123_456:]  # a stretch that no golden transcript has
    compare(models.load(name).transcribe(audio), network.transcribe(audio, temperature=0.0, fp16=False))

"""Long audio: how windows follow each other and become segments; the network is a fake one (`fake_model`)."""

from typing import Any

import numpy as np
import pytest

from max_whisper.decoding import DecodingResult
from max_whisper.errors import OptionError
from max_whisper.sequential import Context
from max_whisper.transcribe import transcribe
from max_whisper.windows import Span, Thresholds, split_window
from tests.fake_model import FakeModel, Script, counting, dimensions, tokenizer_of

ZERO = tokenizer_of("tiny.en").timestamp_begin
A, B, C = [tokenizer_of("tiny.en").encode(word) for word in (" one", " two three", " four")]


def at(seconds: float) -> int:
    """The timestamp token of a time."""
    return ZERO + round(seconds * 50)


def segment(start: float, tokens: list[int], end: float) -> list[int]:
    return [at(start), *tokens, at(end)]


def run(
    said: dict[int, list[int]], seconds: float = 60, *, script: dict | None = None, **options: Any
) -> tuple[Any, FakeModel]:
    tokenizer = tokenizer_of("tiny.en")
    model = FakeModel("tiny.en", Script(dimensions("tiny.en").n_vocab, tokenizer.eot, said, **(script or {})))
    return transcribe(model, counting(seconds), **options), model


def prompts(model: FakeModel) -> list[list[int]]:
    """What each window was prompted with, without the markers around it."""
    return [row[1:-1] for (row,) in model.started]


# --- windows ---------------------------------------------------------------------------------------------------------


def test_a_result_has_openai_whispers_keys() -> None:
    result, _ = run({0: segment(0, A, 1.5)}, 10)
    assert list(result) == ["text", "segments", "language"]
    assert result["text"] == " one"
    assert result["language"] == "en"
    (only,) = result["segments"]
    assert list(only) == [
        *("id", "seek", "start", "end", "text", "tokens"),
        *("temperature", "avg_logprob", "compression_ratio", "no_speech_prob"),
    ]
    assert [type(value) for value in only.values()] == [int, int, float, float, str, list, float, float, float, float]
    assert (only["id"], only["seek"], only["start"], only["end"]) == (0, 0, 0.0, 1.5)
    assert (only["text"], only["tokens"]) == (" one", segment(0, A, 1.5))


def test_windows_start_where_the_last_complete_segment_ended() -> None:
    said = {
        0: [*segment(0, A, 10), *segment(10.5, B, 24.02), at(24.02), *C],  # C is not over: it is heard again
        2402: segment(0.5, C, 20),  # alone: counts from the window's start; nothing after it: past the whole window
        5402: segment(0, A, 2),
    }
    result, model = run(said, 60)
    found = [(s["id"], s["seek"], s["start"], s["end"], s["text"]) for s in result["segments"]]
    assert found == [
        (0, 0, 0.0, 10.0, " one"),
        (1, 0, 10.5, 24.02, " two three"),
        (2, 2402, 24.02, 24.02 + 20, " four"),
        (3, 5402, 54.02, 56.02, " one"),
    ]
    assert result["text"] == " one two three four one"
    first = [*segment(0, A, 10), *segment(10.5, B, 24.02)]
    assert prompts(model) == [[], first, [*first, *segment(0.5, C, 20)]]


def test_what_prompts_a_window() -> None:
    said = {0: segment(0, A, 10), 3000: segment(0, B, 10)}
    hint = tokenizer_of("tiny.en").encode(" Names.")
    first = segment(0, A, 10)
    assert prompts(run(said)[1]) == [[], first]
    assert prompts(run(said, condition_on_previous_text=False)[1]) == [[], []]
    result, model = run(said, initial_prompt="  Names. ")
    assert prompts(model) == [hint, [*hint, *first]]
    assert result["text"] == " one two three"
    assert prompts(run(said, initial_prompt="Names.", condition_on_previous_text=False)[1]) == [hint, []]
    assert prompts(run(said, initial_prompt="Names.", carry_initial_prompt=True)[1]) == [hint, [*hint, *first]]
    carried = run(said, initial_prompt="Names.", carry_initial_prompt=True, condition_on_previous_text=False)[1]
    assert prompts(carried) == [hint, hint]


def test_windows_where_nobody_speaks_are_skipped() -> None:
    said = {0: segment(0, A, 10), 3000: segment(0, 4 * B, 10), 6000: segment(0, C, 10)}
    silent = {"no_speech": {3000: 0.7}, "unsure": {3000}}
    result, model = run(said, 90, script=silent)
    assert [s["seek"] for s in result["segments"]] == [0, 6000]
    assert prompts(model)[2] == segment(0, A, 10)
    kept = [s["seek"] for s in run(said, 90, script={"no_speech": {3000: 0.7}})[0]["segments"]]
    assert kept == [0, 3000, 6000]  # certain of its text
    for options in ({"no_speech_threshold": None}, {"no_speech_threshold": 0.8}, {"logprob_threshold": -3.0}):
        assert len(run(said, 90, script=silent, **options)[0]["segments"]) == 3
    assert len(run(said, 90, script={"no_speech": {3000: 0.7}}, logprob_threshold=None)[0]["segments"]) == 2


def test_segments_that_say_nothing_keep_their_place() -> None:
    blank = tokenizer_of("tiny.en").encode(" ")
    said = {0: [*segment(0, A, 1), *segment(1, blank, 2), *segment(2, B, 3)]}
    result, model = run(said, 40)
    assert [(s["text"], s["tokens"]) for s in result["segments"][:3]] == [
        (" one", segment(0, A, 1)),
        ("", []),
        (" two three", segment(2, B, 3)),
    ]
    assert prompts(model)[1] == [*segment(0, A, 1), *segment(2, B, 3)]


def test_clips() -> None:
    said = {500: segment(0, A, 2), 1000: segment(0, B, 1), 700: segment(0, C, 1)}
    result, _ = run(said, 30, clip_timestamps="5,7,10")
    assert [(s["seek"], s["text"]) for s in result["segments"]] == [(500, " one"), (1000, " two three")]
    assert run(said, 30, clip_timestamps="40,50")[0]["segments"] == []
    beyond = run(said, 30, clip_timestamps=[10, 90])[0]
    assert [s["seek"] for s in beyond["segments"]] == [1000]


@pytest.mark.parametrize("samples", [1, 159])
def test_less_than_a_frame_says_nothing(samples: int) -> None:
    result, model = run({}, samples / 16000)
    assert (result, model.started) == ({"text": "", "segments": [], "language": "en"}, [])


def test_without_timestamps_a_window_is_a_segment() -> None:
    result, model = run({0: A, 3000: B}, 45, without_timestamps=True)
    assert [(s["start"], s["end"], s["text"]) for s in result["segments"]] == [(0, 30, " one"), (30, 45, " two three")]
    assert model.started[0][0][-1] == tokenizer_of("tiny.en").no_timestamps


def test_the_language_is_detected_once() -> None:
    tokenizer = tokenizer_of("base")
    polish = tokenizer.to_language_token("pl")
    said = {0: [tokenizer.timestamp_begin, 100, tokenizer.timestamp_begin + 100]}
    model = FakeModel("base", Script(dimensions("base").n_vocab, tokenizer.eot, said, language=polish))
    result = transcribe(model, counting(40))
    assert result["language"] == "pl"
    assert [row[-2] for (row,) in model.started[1:]] == [polish, polish]
    assert model.started[0] == [[tokenizer.sot]]
    assert transcribe(model, np.zeros(16000, np.float32), language="Polish")["language"] == "pl"


def test_callbacks(capsys: pytest.CaptureFixture[str]) -> None:
    said = {0: segment(0, A, 10), 3000: segment(0, B, 10)}
    segments, frames = [], []
    result, _ = run(said, 40, on_segment=segments.append, on_progress=lambda *counts: frames.append(counts))
    assert segments == result["segments"]
    assert frames == [(3000, 4000), (4000, 4000)]
    assert capsys.readouterr().out == ""
    run(said, 40, verbose=True)
    assert capsys.readouterr().out == "[00:00.000 --> 00:10.000]  one\n[00:30.000 --> 00:40.000]  two three\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "de"}, "'de' is not known to this model"),
        ({"task": "translate"}, "'translate' is not known to this model"),
        ({"temperature": (0.0, 0.2, 0.4)}, "only 0"),
        ({"word_timestamps": True}, "not supported"),
        ({"prompt": "x"}, "initial_prompt"),
        ({"clip_timestamps": "x"}, "seconds"),
        ({"logprob_threshold": "x"}, "logprob_threshold is 'x'"),
        ({"no_speech_threshold": float("nan")}, "no_speech_threshold is nan"),
        ({"initial_prompt": 5}, "initial_prompt is 5"),
        ({"suppress_tokens": "60000"}, "vocabulary has 51864"),
        ({"prefix": "a " * 500}, "context holds 448"),
        ({"nonsense": 1}, "'nonsense' is not an option"),
    ],
    ids=str,
)
def test_options_are_refused_before_anything_is_computed(options: dict, message: str) -> None:
    class Untouchable(FakeModel):
        def log_mel_spectrogram(self, audio: np.ndarray, padding: int = 0) -> np.ndarray:
            raise AssertionError("computed")

    model = Untouchable("tiny.en", Script(dimensions("tiny.en").n_vocab, 0, {}))
    with pytest.raises(OptionError, match=message):
        transcribe(model, "there is no such file", **options)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "frames", "spans", "advance"),
    [
        ([], 3000, [(0, 30, [])], 3000),
        ([ZERO], 3000, [(0, 30, [ZERO])], 3000),
        (A, 1000, [(0, 10, A)], 1000),
        (segment(0, A, 5), 3000, [(0, 5, segment(0, A, 5))], 3000),
        ([at(1), *A], 3000, [(0, 1, [at(1), *A])], 3000),  # as in openai-whisper: the only timestamp counts as its end
        ([*segment(0, A, 5), at(5), *B], 3000, [(0, 5, segment(0, A, 5))], 500),
        (
            [*segment(0, A, 5), *segment(6, B, 7)],
            2000,
            [(0, 5, segment(0, A, 5)), (6, 7, segment(6, B, 7))],
            2000,
        ),
        ([*segment(0, A, 5), at(5)], 3000, [(0, 5, segment(0, A, 5))], 500),  # cut off where the next began
        ([ZERO, ZERO, *A], 3000, [(0, 0, [ZERO])], 3000),  # never stay where we are
    ],
    ids=range(9),
)
def test_split_window(tokens: list[int], frames: int, spans: list[tuple], advance: int) -> None:
    assert split_window(tokens, ZERO, frames) == ([Span(*span) for span in spans], advance)


@pytest.mark.parametrize(
    ("no_speech", "logprob", "thresholds", "skipped"),
    [
        (0.7, -1.5, (0.6, -1.0), True),
        (0.6, -1.5, (0.6, -1.0), False),
        (0.7, -0.9, (0.6, -1.0), False),
        (0.7, -1.0, (0.6, -1.0), True),
        (0.7, -0.1, (0.6, None), True),
        (0.7, -1.5, (None, -1.0), False),
    ],
)
def test_nobody_speaks(no_speech: float, logprob: float, thresholds: tuple, skipped: bool) -> None:
    result = DecodingResult(language="en", avg_logprob=logprob, no_speech_prob=no_speech)
    assert Thresholds(*thresholds).skip(result) == skipped


def test_a_carried_prompt_leaves_room_for_what_was_said() -> None:
    tokenizer = tokenizer_of("tiny.en")
    context = Context(tokenizer, "Names.", True, 448)
    hint = tokenizer.encode(" Names.")
    context.add(list(range(300)))
    assert context.prompt() == [*hint, *range(300 - (223 - len(hint)), 300)]
    context.forget()
    assert context.prompt() == hint

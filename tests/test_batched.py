"""Windows side by side: how they are cut, decoded together and put in order; the network is a fake one (`fake_model`)."""

from typing import Any

import numpy as np
import pytest

from max_whisper import pauses
from max_whisper.batched import Window, cut_at_pauses
from max_whisper.decoding import _closed_up
from max_whisper.errors import OptionError
from max_whisper.features import Features
from max_whisper.pauses import find_cut, quietest
from max_whisper.recording import ArrayRecording
from max_whisper.transcribe import transcribe
from tests.fake_model import FakeModel, Script, StepByStep, counting, dimensions, tokenizer_of

ZERO = tokenizer_of("tiny.en").timestamp_begin
A, B, C = [tokenizer_of("tiny.en").encode(word) for word in (" one", " two three", " four")]
RANDOM = np.random.default_rng()


def segment(start: float, tokens: list[int], end: float) -> list[int]:
    return [ZERO + round(start * 50), *tokens, ZERO + round(end * 50)]


@pytest.fixture(autouse=True)
def cut_at_25_seconds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake model's features hold no pauses: windows end after 25 s, and go on where they stopped."""
    monkeypatch.setattr("max_whisper.batched.find_cut", lambda mel: 2500)
    monkeypatch.setattr("max_whisper.batched.quietest", lambda mel: mel.shape[1] // 2)


def fake(said: dict[int, list[int]], **script: Any) -> FakeModel:
    return FakeModel("tiny.en", Script(dimensions("tiny.en").n_vocab, tokenizer_of("tiny.en").eot, said, **script))


SAID = {
    0: [*segment(0, A, 10), *segment(10, 5 * B, 24)],
    2500: segment(0.5, C, 20),
    5000: [*segment(0, A, 10), *segment(12, B, 20), *segment(20, 9 * C, 25)],
    7500: segment(0, B, 5),
    10000: [*segment(0, C, 2), *segment(2, C, 4)],
}
TEXTS = [" one", 5 * " two three", " four", " one", " two three", 9 * " four", " two three", " four", " four"]


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 16])
def test_any_batch_size_gives_the_same_segments_in_order(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, goes_on: bool
) -> None:
    expected = transcribe(fake(SAID), counting(106), batch_size=1)
    monkeypatch.setattr(StepByStep, "goes_on", goes_on)
    seen, progress = [], []
    result = transcribe(
        fake(SAID),
        counting(106),
        batch_size=batch_size,
        on_segment=seen.append,
        on_progress=lambda *counts: progress.append(counts),
    )
    assert [s["text"] for s in result["segments"]] == TEXTS
    assert [s["id"] for s in result["segments"]] == list(range(9))
    assert [(s["seek"], s["start"], s["end"]) for s in result["segments"][:4]] == [
        (0, 0.0, 10.0),
        (0, 10.0, 24.0),
        (2500, 25.0, 45.0),
        (5000, 50.0, 60.0),
    ]
    assert result["segments"] == seen
    assert progress == [(2500, 10600), (5000, 10600), (7500, 10600), (10000, 10600), (10600, 10600)]
    assert result["text"] == "".join(TEXTS)
    assert result == expected


def test_windows_are_decoded_together_and_rows_that_have_ended_leave() -> None:
    model = fake(SAID)
    rows: list[int] = []
    new_decoder = model.new_decoder

    def watched(features: list[int]) -> Any:
        decoder = new_decoder(features)
        forward = decoder.forward

        def count(tokens: np.ndarray, *arguments: Any, **named: Any) -> Any:
            rows.append(len(tokens))
            return forward(tokens, *arguments, **named)

        decoder.forward = count
        return decoder

    model.new_decoder = watched
    transcribe(model, counting(106), batch_size=3)
    assert [len(started) for started in model.started] == [3, 2]
    longest = 1 + max(len(SAID[window]) for window in (0, 2500, 5000))
    assert rows[0] == 3
    assert rows[longest - 1] == 1
    assert sorted(rows[:longest], reverse=True) == rows[:longest]
    assert sum(rows) == sum(1 + len(tokens) for tokens in SAID.values())


def test_what_was_not_heard_to_its_end_is_heard_again() -> None:
    said = {
        0: [*segment(0, A, 10), ZERO + 510, *C],  # C had begun at 10.2 s
        1000: segment(0.2, 3 * C, 14),
        2500: [*segment(0, B, 20), ZERO + 1000],  # stopped at 20 s, nothing begun
        4500: segment(0, A, 4),
        5000: [*segment(0, B, 24.5), ZERO + 1225],  # half a second of nothing is left
    }
    for batch_size in (1, 2, 8):
        result = transcribe(fake(said), counting(75), batch_size=batch_size)
        assert [(s["seek"], s["text"]) for s in result["segments"]] == [
            (0, " one"),
            (1000, 3 * " four"),
            (2500, " two three"),
            (4500, " one"),
            (5000, " two three"),
        ]


def test_clips_and_their_order() -> None:
    said = {500: segment(0, A, 2), 1000: segment(0, B, 1), 3500: segment(0, C, 1), 200: segment(0, C, 1)}
    result = transcribe(fake(said), counting(60), batch_size=4, clip_timestamps="10,41,5,7,2,3")
    assert [(s["seek"], s["text"]) for s in result["segments"]] == [
        (1000, " two three"),
        (3500, " four"),
        (500, " one"),
        (200, " four"),
    ]
    assert transcribe(fake(said), counting(30), batch_size=4, clip_timestamps="40,50")["segments"] == []


def test_prompts() -> None:
    def prompts(**options: Any) -> list[list[int]]:
        model = fake(SAID)
        transcribe(model, counting(56), batch_size=2, **options)
        return [row[1:-1] for batch in model.started for row in batch]

    hint = tokenizer_of("tiny.en").encode(" Names.")
    assert prompts() == [[], [], []]
    assert prompts(condition_on_previous_text=False) == [[], [], []]
    assert prompts(initial_prompt="Names.") == [hint, hint, hint]
    assert prompts(initial_prompt="Names.", carry_initial_prompt=True) == [hint, hint, hint]


def test_windows_where_nobody_speaks_are_skipped() -> None:
    silent: dict[str, Any] = {"no_speech": {2500: 0.7}, "unsure": {2500}}
    said = SAID | {2500: segment(0, 6 * C, 10)}
    assert 2500 not in [s["seek"] for s in transcribe(fake(said, **silent), counting(106), batch_size=4)["segments"]]
    thresholds: list[dict[str, Any]] = [
        {"no_speech_threshold": None},
        {"no_speech_threshold": 0.8},
        {"logprob_threshold": -3.0},
    ]
    for options in thresholds:
        result = transcribe(fake(said, **silent), counting(106), batch_size=4, **options)
        assert 2500 in [s["seek"] for s in result["segments"]]


def test_the_language_is_detected_once() -> None:
    tokenizer = tokenizer_of("base")
    polish = tokenizer.to_language_token("pl")
    said = {window: [tokenizer.timestamp_begin, 100, tokenizer.timestamp_begin + 100] for window in (0, 2500, 5000)}
    model = FakeModel("base", Script(dimensions("base").n_vocab, tokenizer.eot, said, language=polish))
    assert transcribe(model, counting(70), batch_size=2)["language"] == "pl"
    assert model.started[0] == [[tokenizer.sot]]
    assert [[row[-2] for row in batch] for batch in model.started[1:]] == [[polish, polish], [polish]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: expected a number of windows"),
        ({"batch_size": 2.0}, r"batch_size is 2\.0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": 4, "condition_on_previous_text": True}, "needs one window after the other"),
    ],
    ids=str,
)
def test_what_batches_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        transcribe(fake(SAID), "there is no such file", **options)


# --- cuts ------------------------------------------------------------------------------------------------------------


def speech(*silences: tuple[float, float], seconds: float = 30) -> np.ndarray:
    """Features of noise as loud as speech, with silences from one second to another."""
    mel = RANDOM.uniform(0.2, 0.8, (80, round(seconds * 100))).astype(np.float32)
    for begin, end in silences:
        mel[:, round(begin * 100) : round(end * 100)] = RANDOM.uniform(-0.9, -0.7)
    return mel


@pytest.mark.parametrize(
    ("silences", "where"),
    [
        ([(20, 20.4)], (20, 20.4)),
        ([(20, 20.4), (27, 27.4)], (27, 27.4)),  # the later of two alike
        ([(24, 24.8), (27, 27.3)], (24, 24.8)),  # the longer one
        ([(18, 18.35), (29, 29.3)], (29, 29.3)),  # unless it is hardly longer and much earlier
        ([(5, 8), (22, 22.2)], (22, 22.3)),  # never in the first half
        ([(26, 30)], (29.7, 30)),  # silence stays with the window that it follows
        ([(22.5, 22.6)], (22.45, 22.65)),  # a short one if there is no other
    ],
    ids=str,
)
def test_cuts_are_in_pauses(silences: list[tuple[float, float]], where: tuple[float, float]) -> None:
    begin, end = where
    assert 100 * begin <= find_cut(speech(*silences)) <= 100 * end


def test_the_quietest_spot() -> None:
    for width in (1, 5, 9, 10, 11, 81):
        assert 0 <= quietest(speech(seconds=width / 100)) < width
    assert 30 <= quietest(speech((0.3, 0.5), seconds=0.81)) <= 50


def test_a_cut_is_always_in_the_second_half() -> None:
    flat = np.full((80, 3000), RANDOM.uniform(-1, 1), np.float32)
    for mel in (flat, speech(), speech((0, 30)), speech((0, 14.9)), RANDOM.normal(size=(128, 3000)).astype(np.float32)):
        assert 1500 <= find_cut(mel) <= 3000


def test_windows_follow_each_other_without_gap_or_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("max_whisper.batched.find_cut", pauses.find_cut)
    features = Features(fake({}), ArrayRecording(counting(200.25)))
    windows = list(cut_at_pauses(features, [(0, 7000), (100, 10**9)]))
    for clip, begin, end in ((0, 0, 7000), (1, 100, 20025)):
        found = [window for window in windows if window.clip == clip]
        assert [window.begin for window in found] == [begin, *[window.end for window in found[:-1]]]
        assert found[-1].end == end
        assert all(0 < window.end - window.begin <= 3000 for window in found)
    assert windows == sorted(windows)
    assert list(cut_at_pauses(features, [(500, 500), (30000, 40000)])) == []
    assert Window(0, 5, 10) < Window(0, 6, 7) < Window(1, 0, 1)


@pytest.mark.parametrize(
    ("running", "kept"),
    [
        ([True, True, True], [0, 1, 2]),
        ([False, True, True], [2, 1]),
        ([True, False, True, False, True], [0, 4, 2]),
        ([False, False, True], [2]),
        ([False, False], []),
    ],
)
def test_closing_up(running: list[bool], kept: list[int]) -> None:
    assert _closed_up(running) == kept

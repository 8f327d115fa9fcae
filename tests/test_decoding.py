"""Rules, options and the decoding loop; the network is a fake one (`fake_model`)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from max_whisper.decoding import DecodingOptions, DecodingResult, compression_ratio, decode, detect_language
from max_whisper.errors import OptionError
from max_whisper.options import check_batching, decoding_options, language_code, parse_clips
from max_whisper.rules import SUPPRESSED, SUPPRESSED_AT_BEGIN, TIMESTAMP_RULE, TokenRules
from tests.fake_model import FakeModel, Script, dimensions, follow, log_sum_exp, pick, tokenizer_of

NAMES = ("tiny.en", "base")
EVERYWHERE = SUPPRESSED | TIMESTAMP_RULE
AT_BEGIN = EVERYWHERE | SUPPRESSED_AT_BEGIN


def rules_of(name: str, **options: Any) -> TokenRules:
    return TokenRules(dimensions(name), tokenizer_of(name), decoding_options(**options))


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_rules_by_hand(name: str) -> None:
    rules, eot, zero, end = (
        rules_of(name),
        tokenizer_of(name).eot,
        tokenizer_of(name).timestamp_begin,
        dimensions(name).n_vocab,
    )
    assert end == zero + 1501
    assert rules.next([]) == (AT_BEGIN, zero, zero, zero + 51)  # a timestamp of at most 1.00 s
    assert rules.next([zero]) == (EVERYWHERE, 0, zero, zero)  # text, or the end
    assert rules.next([zero + 7, 100]) == (EVERYWHERE, 0, zero + 8, end)  # text goes on, or the segment ends later
    assert rules.next([zero + 7, 100, zero + 9]) == (EVERYWHERE, eot, zero + 9, end)  # the next begins, or the end
    assert rules.next([zero + 7, 100, zero + 9, zero + 9]) == (EVERYWHERE, 0, zero, zero)
    assert rules.next([zero + 7, 100, zero + 9, zero + 12, 5, 6]) == (EVERYWHERE, 0, zero + 13, end)
    assert rules.next([100]) == (EVERYWHERE, 0, zero, end)  # no timestamp yet, as after a start forced by hand
    assert rules.next([100, zero + 3]) == (EVERYWHERE, eot, zero + 3, end)


@pytest.mark.parametrize("without_timestamps", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_rules_follow_from_what_was_said(name: str, without_timestamps: bool) -> None:
    """A decoder that goes on by itself needs three tokens of all that were picked."""
    dims, rules, rng = dimensions(name), rules_of(name, without_timestamps=without_timestamps), np.random.default_rng(4)
    for _ in range(500):
        sampled = rng.choice([3, 50, dims.timestamp_begin, dims.timestamp_begin + 9], rng.integers(1, 6)).tolist()
        said = rules.said(sampled)
        for earlier in range(len(sampled)):
            assert follow(rules.next(sampled[:earlier]), said, dims) == rules.next(sampled)
        assert rules.said(sampled, ended=True) == (sampled[-1], tokenizer_of(name).eot, said[2])
    assert rules.said([]) == (-1, -1, -1)


def test_rules_of_options() -> None:
    zero, end = tokenizer_of("base").timestamp_begin, dimensions("base").n_vocab
    assert rules_of("base", without_timestamps=True).next([])[1:] == (0, zero, end)
    assert rules_of("base", without_timestamps=True).next([5])[0] == SUPPRESSED
    for anywhere in (None, 0.0, 30.0):
        assert rules_of("base", max_initial_timestamp=anywhere).next([])[2:] == (zero, end)
    assert rules_of("base", max_initial_timestamp=0.2).next([])[2:] == (zero, zero + 11)


@pytest.mark.parametrize("name", NAMES)
def test_suppression_mask(name: str) -> None:
    tokenizer = tokenizer_of(name)
    never = [
        tokenizer.sot,
        tokenizer.sot_prev,
        tokenizer.sot_lm,
        tokenizer.no_speech,
        tokenizer.transcribe,
        tokenizer.translate,
    ]

    def suppressed(bit: int, **options: Any) -> set[int]:
        return set(np.flatnonzero(rules_of(name, **options).mask & bit).tolist())

    usual = {*never, *tokenizer.non_speech_tokens, tokenizer.no_timestamps}
    assert suppressed(SUPPRESSED) == usual
    assert suppressed(SUPPRESSED, suppress_tokens="-1,11, 13") == usual | {11, 13}
    assert suppressed(SUPPRESSED, suppress_tokens=[11, 13]) == {*never, 11, 13, tokenizer.no_timestamps}
    assert suppressed(SUPPRESSED, without_timestamps=True) == usual - {tokenizer.no_timestamps}
    for nothing in ("", None, []):
        assert suppressed(SUPPRESSED, suppress_tokens=nothing) == {tokenizer.no_timestamps}
    assert suppressed(SUPPRESSED_AT_BEGIN) == {*tokenizer.encode(" "), tokenizer.eot}
    assert suppressed(SUPPRESSED_AT_BEGIN, suppress_blank=False) == set()
    with pytest.raises(OptionError, match="vocabulary has"):
        rules_of(name, suppress_tokens=[dimensions(name).n_vocab])


def filtered(name: str, options: DecodingOptions, sampled: list[int], logits: np.ndarray) -> np.ndarray:
    """What openai-whisper's three filters leave of the logits, said again as plainly as possible, in float64."""
    tokenizer, out = tokenizer_of(name), logits.astype(np.float64)
    zero = tokenizer.timestamp_begin
    if options.suppress_blank and not sampled:
        out[[*tokenizer.encode(" "), tokenizer.eot]] = -np.inf
    if options.suppress_tokens:
        out[list(tokenizer.non_speech_tokens)] = -np.inf
        for token in ("transcribe", "translate", "sot", "sot_prev", "sot_lm", "no_speech"):
            out[getattr(tokenizer, token)] = -np.inf
    if options.without_timestamps:
        return out
    out[tokenizer.no_timestamps] = -np.inf
    times = [token for token in sampled if token >= zero]
    ended = len(sampled) >= 1 and sampled[-1] >= zero
    paired = ended and (len(sampled) < 2 or sampled[-2] >= zero)
    if paired:
        out[zero:] = -np.inf
    elif ended:
        out[: tokenizer.eot] = -np.inf
    if times:
        out[zero : times[-1] + (0 if ended and not paired else 1)] = -np.inf
    if not sampled:
        out[:zero] = -np.inf
        if options.max_initial_timestamp:
            out[zero + round(options.max_initial_timestamp / 0.02) + 1 :] = -np.inf
    if log_sum_exp(out[zero:]) > out[:zero].max():
        out[:zero] = -np.inf
    return out


OPTIONS = [
    DecodingOptions(),
    DecodingOptions(without_timestamps=True),
    DecodingOptions(suppress_tokens="", suppress_blank=False, max_initial_timestamp=None),
    DecodingOptions(max_initial_timestamp=0.1),
]


def walk(name: str, options: DecodingOptions, seed: int) -> Iterator[tuple[np.ndarray, list[int], int, float]]:
    """A walk along what the rules allow: at each step random logits, what was sampled, and what is picked next.

    Timestamps, the end of text and a few words get a head start that varies, so that every rule matters now and then.
    """
    tokenizer, rng = tokenizer_of(name), np.random.default_rng(seed)
    rules = TokenRules(dimensions(name), tokenizer, options)
    sampled: list[int] = []
    while len(sampled) < 40:
        logits = rng.standard_normal(dimensions(name).n_vocab).astype(np.float32)
        logits[tokenizer.timestamp_begin :] += rng.uniform(-2, 4)
        logits[rng.integers(0, tokenizer.eot, 5)] += rng.uniform(4, 8)
        logits[[220, tokenizer.eot, tokenizer.no_timestamps]] += rng.uniform(0, 8)
        logits[list(tokenizer.non_speech_tokens[:5])] += rng.uniform(0, 8)
        token, log_prob = pick(logits, rules.next(sampled), rules.mask, tokenizer.timestamp_begin)
        yield logits, list(sampled), token, log_prob
        sampled.append(token if token != tokenizer.eot else 100)


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("name", NAMES)
def test_rules_mean_what_the_filters_say(name: str, options: DecodingOptions) -> None:
    kinds = set()
    for seed in range(2):
        for logits, sampled, token, log_prob in walk(name, options, seed):
            expected = filtered(name, options, sampled, logits)
            assert token == expected.argmax()
            assert log_prob == pytest.approx(expected[token] - log_sum_exp(expected), abs=1e-9)
            kinds.add((token >= tokenizer_of(name).timestamp_begin, token == tokenizer_of(name).eot))
    assert len(kinds) == 3  # text, timestamps and ends were all picked


@pytest.mark.live
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("name", NAMES)
def test_rules_against_openai_whisper(name: str, options: DecodingOptions) -> None:
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("whisper.decoding")
    import whisper.tokenizer  # pyright: ignore[reportMissingImports]

    tokenizer = whisper.tokenizer.get_tokenizer(name == "base", num_languages=99, language="en", task="transcribe")
    task = theirs.DecodingTask.__new__(theirs.DecodingTask)
    task.tokenizer, task.options = tokenizer, theirs.DecodingOptions(**{**vars(options), "language": "en"})
    filters = [theirs.SuppressBlank(tokenizer, 0)] if options.suppress_blank else []
    if options.suppress_tokens:
        filters.append(theirs.SuppressTokens(task._get_suppress_tokens()))
    if not options.without_timestamps:
        latest = options.max_initial_timestamp and round(options.max_initial_timestamp / 0.02)
        filters.append(theirs.ApplyTimestampRules(tokenizer, 0, latest))
    for logits, sampled, token, log_prob in walk(name, options, seed=9):
        expected = torch.from_numpy(logits)[None].clone()
        for each in filters:
            each.apply(expected, torch.tensor([sampled], dtype=torch.long))
        assert token == expected.argmax().item()
        assert log_prob == pytest.approx(expected.log_softmax(-1)[0, token].item(), abs=1e-5)


# --- decoding --------------------------------------------------------------------------------------------------------


def fake(name: str, tokens: dict[int, list[int]], **script: object) -> FakeModel:
    """A model that says `tokens` (timestamps counted from 1_000_000) of the window that starts at a frame."""
    tokenizer = tokenizer_of(name)
    shifted = {
        at: [t if t < 1_000_000 else t - 1_000_000 + tokenizer.timestamp_begin for t in said]
        for at, said in tokens.items()
    }
    return FakeModel(name, Script(dimensions(name).n_vocab, tokenizer.eot, shifted, **script))  # pyright: ignore[reportArgumentType]


def mel_of(*windows: int) -> np.ndarray:
    """Features of windows of the fake model that start at these frames, (B, 80, 3000)."""
    mel = np.zeros((len(windows), 80, 3000), np.float32)
    mel[:, 0, 0] = (np.asarray(windows) + 1) / 2**14
    return mel


def one(model: FakeModel, **options: Any) -> DecodingResult:
    result = decode(model, mel_of(0)[0], **options)
    assert not isinstance(result, list)
    return result


T = 1_000_000
HELLO = [T + 0, 100, 101, 102, T + 50]


def test_decode_one_window() -> None:
    model = fake("tiny.en", {0: HELLO}, no_speech={0: 0.25})
    tokenizer = tokenizer_of("tiny.en")
    result = one(model)
    assert result.tokens == [tokenizer.timestamp_begin, 100, 101, 102, tokenizer.timestamp_begin + 50]
    assert result.text == tokenizer.decode([100, 101, 102]).strip()
    assert (result.language, result.language_probs, result.temperature) == ("en", None, 0.0)
    assert result.no_speech_prob == pytest.approx(0.25, rel=1e-3)
    assert -1e-3 < result.avg_logprob <= 0
    assert result.compression_ratio == compression_ratio(result.text)
    assert model.started == [[[tokenizer.sot]]]


def test_the_mean_log_probability_counts_the_end() -> None:
    model = fake("tiny.en", {0: HELLO}, unsure={0})
    # each of three text tokens has nine rivals that are e^-0.01 times as probable; timestamps and end are certain
    text = -np.log(1 + 9 * np.exp(-0.01))
    assert one(model).avg_logprob == pytest.approx(3 * text / 6, abs=1e-4)
    # cut off before its end, a window has no end to count, but is divided by as many
    assert one(model, sample_len=3).avg_logprob == pytest.approx(2 * text / 4, abs=1e-4)


def test_rows_do_not_see_each_other() -> None:
    said = {0: HELLO, 500: [T + 10, *range(200, 230), T + 90, T + 90, 7, T + 100], 900: []}
    model = fake("base", said, no_speech={900: 0.9}, unsure={500})
    options = DecodingOptions(language="en")
    together = decode(model, mel_of(0, 500, 900), options)
    apart = [result for window in (0, 500, 900) for result in [decode(model, mel_of(window)[0], options)]]
    assert isinstance(together, list)
    assert together == apart
    assert [len(result.tokens) for result in together] == [5, 35, 1]  # the first token is always a timestamp
    assert decode(model, model.embed_audio(mel_of(0, 500, 900)), options) == together


def test_decoding_stops_at_sample_len_and_at_the_context() -> None:
    model = fake("tiny.en", {0: [T, *[100] * 400]})
    assert len(one(model).tokens) == 224
    assert len(one(model, sample_len=10).tokens) == 10
    # prompt: the marker, 223 tokens, the start; 448 positions in all, and the last one's pick needs none
    assert len(one(model, sample_len=400, prompt=[5] * 300).tokens) == 448 + 1 - 225


def test_what_a_window_starts_with() -> None:
    model, tokenizer = fake("base", {0: HELLO}), tokenizer_of("base", "es", "translate")

    def started(**options: Any) -> list[int]:
        model.started.clear()
        one(model, language="spanish", task="translate", **options)
        return model.started[-1][0]

    sequence = list(tokenizer.sot_sequence)
    assert sequence == [tokenizer.sot, tokenizer.to_language_token("es"), tokenizer.translate]
    assert started() == sequence
    assert started(without_timestamps=True) == [*sequence, tokenizer.no_timestamps]
    assert started(prompt=" hola ") == [tokenizer.sot_prev, *tokenizer.encode(" hola"), *sequence]
    assert started(prompt=list(range(300))) == [tokenizer.sot_prev, *range(77, 300), *sequence]
    assert started(prompt=[]) == sequence
    assert started(prefix="sí") == [*sequence, *tokenizer.encode(" sí")]
    # a prefix is cut to what is left of half the context, which with the default length is everything
    assert started(prefix=list(range(50))) == [*sequence, *range(50)]
    assert started(prefix=list(range(50)), sample_len=214) == [*sequence, *range(40, 50)]
    with pytest.raises(OptionError, match="501 tokens: the model's context holds 448"):
        started(prefix=list(range(498)))


def test_detect_language() -> None:
    tokenizer = tokenizer_of("base")
    model = fake("base", {0: HELLO}, language=tokenizer.to_language_token("pl"))
    token, probabilities = detect_language(model, mel_of(0)[0])
    assert isinstance(probabilities, dict)
    assert token == tokenizer.to_language_token("pl")
    assert list(probabilities) == list(tokenizer.all_language_codes)
    assert len(probabilities) == 99
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert probabilities["pl"] == pytest.approx(np.exp(10) / (np.exp(10) + 98), abs=1e-5)
    tokens, by_row = detect_language(model, mel_of(0, 500))
    assert np.array_equal(np.asarray(tokens), np.asarray([token, token]))
    assert by_row == [probabilities, probabilities]

    model.started.clear()
    result = one(model)
    assert (result.language, result.language_probs) == ("pl", probabilities)
    assert model.started[-1][0][1] == token
    with pytest.raises(OptionError, match="English-only"):
        detect_language(fake("tiny.en", {}), mel_of(0))


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sing"}, "'sing'.*transcribe or translate"),
        ({"language": "klingon"}, "'klingon' is not known"),
        ({"language": "germn"}, "did you mean 'german'"),
        ({"temperature": 0.2}, "only 0"),
        ({"temperature": (0.0, 0.2)}, "only 0"),
        ({"beam_size": 5}, "beam_size=5 is not supported: only greedy"),
        ({"best_of": 5}, "best_of"),
        ({"patience": 1.0}, "patience"),
        ({"length_penalty": 0.0}, "length_penalty"),
        ({"word_timestamps": True}, "word_timestamps"),
        ({"hallucination_silence_threshold": 2.0}, "it needs word timestamps"),
        ({"fp16": True}, "load_model"),
        ({"sample_len": 0}, "at least 1"),
        ({"max_initial_timestamp": -1.0}, "0 to 30"),
        ({"suppress_tokens": "1,x"}, "'1,x'"),
        ({"suppress_tokens": [-3]}, "token ids"),
        ({"suppress_tokens": [1.9]}, "token ids"),
        ({"suppress_tokens": 5}, "token ids"),
        ({"suppress_tokens": iter([-1, 5])}, "token ids"),
        ({"suppress_tokens": np.array([1, 2])}, "token ids"),
        ({"language": 5}, "5 is not known"),
        ({"temperature": np.array([0.0, 0.2])}, "only 0"),
        ({"temperature": None}, "only 0"),
        ({"sample_len": 1.5}, "1.5: expected at least 1"),
        ({"max_initial_timestamp": "1"}, "'1': expected 0 to 30"),
        ({"prefix": 5}, "prefix is 5: expected text, or a list"),
        ({"prefix": ["a"]}, "expected text, or a list"),
        ({"prompt": [-1]}, r"prompt is \[-1\]: expected text"),
        ({"supress_blank": False}, "did you mean 'suppress_blank'"),
    ],
    ids=str,
)
def test_options_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        decoding_options(**options)
    with pytest.raises(OptionError, match=message):
        decode(fake("base", {}), mel_of(0), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": [99999999]}, "has token 99999999: this model has 51865"),
        ({"suppress_tokens": [*range(50364, 51865)]}, "leaves nothing that a window's first token could be"),
        ({"suppress_tokens": [*range(50364)]}, "leaves nothing that text could be"),
    ],
    ids=["prefix", "timestamps", "text"],
)
def test_options_that_a_model_refuses(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        decode(fake("base", {}), mel_of(0), **options)


def test_numbers_may_be_numpys() -> None:
    assert decoding_options(sample_len=np.int64(3), suppress_tokens=[np.int32(5)], max_initial_timestamp=np.float32(1))
    check_batching(np.int64(2), None)  # pyright: ignore[reportArgumentType]


def test_options_that_ask_for_nothing_special() -> None:
    neutral = {"beam_size": None, "best_of": None, "patience": None, "length_penalty": None, "fp16": False}
    assert decoding_options(**neutral, temperature=0, language="German") == DecodingOptions(language="German")


def test_languages() -> None:
    assert [language_code(name) for name in ("en", "EN", "English", "castilian", "yue", "Cantonese")] == [
        "en",
        "en",
        "en",
        "es",
        "yue",
        "yue",
    ]
    assert one(fake("tiny.en", {}), language="English").language == "en"
    with pytest.raises(OptionError, match=r"'de'.*multilingual model"):
        one(fake("tiny.en", {}), language="de")
    with pytest.raises(OptionError, match="'translate' is not known to this model"):
        one(fake("tiny.en", {}), task="translate")
    with pytest.raises(OptionError, match="'yue' is not known to this model"):
        one(fake("base", {}), language="yue")


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ("0", [(0, None)]),
        ("", [(0, None)]),
        ([], [(0, None)]),
        ("1.5,4,5", [(150, 400), (500, None)]),
        ([2, 6.004], [(200, 600)]),
    ],
)
def test_clips(clips: str | list[float], expected: list[tuple[int, int | None]]) -> None:
    assert [(start, end if end < 1 << 60 else None) for start, end in parse_clips(clips)] == expected


@pytest.mark.parametrize(
    "clips", ["a", "1,,2", "-1", "-0.001", [float("nan")], [float("inf")], [10**400], 1e308, "1e308", 3]
)
def test_clips_that_are_refused(clips: object) -> None:
    with pytest.raises(OptionError, match="expected seconds"):
        parse_clips(clips)  # pyright: ignore[reportArgumentType]

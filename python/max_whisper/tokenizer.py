"""Text to token ids and back, with the vocabulary that a checkpoint brings.

A Whisper vocabulary is, in the order of ids: byte-pair tokens (GPT-2's; multilingual models have a set of their own,
whose last one is empty), eight specials with the languages among them, and a time stamp for every 20 ms of the window.
Only the byte-pair tokens differ in more than number, so a `Vocabulary` keeps these and derives the rest.
"""

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from max_whisper.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    import tiktoken

# In the order of their tokens. The last one came with large-v3.
_LANGUAGE_TABLE = """
    en english, zh chinese, de german, es spanish, ru russian, ko korean, fr french, ja japanese, pt portuguese,
    tr turkish, pl polish, ca catalan, nl dutch, ar arabic, sv swedish, it italian, id indonesian, hi hindi,
    fi finnish, vi vietnamese, he hebrew, uk ukrainian, el greek, ms malay, cs czech, ro romanian, da danish,
    hu hungarian, ta tamil, no norwegian, th thai, ur urdu, hr croatian, bg bulgarian, lt lithuanian, la latin,
    mi maori, ml malayalam, cy welsh, sk slovak, te telugu, fa persian, lv latvian, bn bengali, sr serbian,
    az azerbaijani, sl slovenian, kn kannada, et estonian, mk macedonian, br breton, eu basque, is icelandic,
    hy armenian, ne nepali, mn mongolian, bs bosnian, kk kazakh, sq albanian, sw swahili, gl galician,
    mr marathi, pa punjabi, si sinhala, km khmer, sn shona, yo yoruba, so somali, af afrikaans, oc occitan,
    ka georgian, be belarusian, tg tajik, sd sindhi, gu gujarati, am amharic, yi yiddish, lo lao, uz uzbek,
    fo faroese, ht haitian creole, ps pashto, tk turkmen, nn nynorsk, mt maltese, sa sanskrit,
    lb luxembourgish, my myanmar, bo tibetan, tl tagalog, mg malagasy, as assamese, tt tatar, haw hawaiian,
    ln lingala, ha hausa, ba bashkir, jw javanese, su sundanese, yue cantonese
"""
LANGUAGES: dict[str, str] = {
    code: name for code, name in (entry.strip().split(maxsplit=1) for entry in _LANGUAGE_TABLE.split(","))
}
TO_LANGUAGE_CODE = {name: code for code, name in LANGUAGES.items()} | {
    "burmese": "my",
    "castilian": "es",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
}
WRITTEN_WITHOUT_SPACES = {"ja", "lo", "my", "th", "yue", "zh"}

# n_vocab: (byte-pair tokens, languages) of English-only models, of multilingual ones, and from large-v3 on.
SIZES = {51864: (50256, 99), 51865: (50257, 99), 51866: (50257, 100)}
N_TIMESTAMPS = 1501  # 0.00 s to 30.00 s

# GPT-2's cut of text into pieces that are merged by themselves: English contractions, words, numbers, other, space.
PIECES = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What annotates speech but is not spoken: brackets, dashes and quotes that start a word, notes.
UNSPOKEN = """
    " # ( ) * + / : ; < = > @ [ \\ ] ^ _ ` { | } ~ 「 」 『 』
    << >> <<< >>> -- --- -( -[ (' (" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪
"""
MUSIC = "♩♪♫♬♭♮♯"  # share their first bytes: suppressing the first token of each loses no common character

OLD_NAMES = {"<|nocaptions|>": "<|nospeech|>", "<|iw|>": "<|he|>"}


def _alphabet() -> str:
    """How GPT-2 writes the 256 bytes: as the character of that number if it is printable, else as the next beyond 255."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


ALPHABET = _alphabet()
BYTES = {character: byte for byte, character in enumerate(ALPHABET)}


def _foreign_character(text: str) -> str | None:
    """The first character that is not in GPT-2's alphabet: all at once, one by one would cost more than loading a model."""
    known = np.zeros(max(map(ord, ALPHABET)) + 2, np.bool_)  # the last place stands for all beyond
    known[list(map(ord, ALPHABET))] = True
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    foreign = ~known[np.minimum(points, len(known) - 1)]
    return text[int(foreign.argmax())] if foreign.any() else None


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a checkpoint.

    Attributes:
        ids: Each byte-pair token, in GPT-2's alphabet, to its id; lower ids merge first.
        num_languages: Language tokens, the first so many of `LANGUAGES`.
    """

    ids: dict[str, int]
    num_languages: int

    @classmethod
    def from_tokens(cls, tokens: Sequence[str], n_vocab: int, source: str = "the vocabulary") -> "Vocabulary":
        """Makes a vocabulary from token strings by id, as vocabulary files list them.

        Args:
            tokens: Byte-pair tokens in GPT-2's alphabet, then specials and time stamps as far as they are listed: they
                have to be where openai-whisper has them.
            n_vocab: Rows of the checkpoint's token embedding.
            source: What to call the list in errors.

        Raises:
            CheckpointError: The list is not that of a Whisper model with so many tokens.
        """
        if n_vocab not in SIZES:
            raise CheckpointError(f"n_vocab is {n_vocab}: expected one of {', '.join(map(str, SIZES))} (Whisper's)")
        n_text, num_languages = SIZES[n_vocab]
        listed = tokens.index("<|endoftext|>") if "<|endoftext|>" in tokens else len(tokens)
        if listed != n_text:
            raise CheckpointError(f"{source} has {listed} text tokens: a model of {n_vocab} tokens has {n_text}")
        if foreign := _foreign_character("".join(tokens[:n_text])):
            raise CheckpointError(f"{source} has {foreign!r} in a token: expected GPT-2's alphabet of 256 bytes")
        ids = dict(zip(tokens[:n_text], range(n_text), strict=True))
        if len(ids) != n_text or not all(character in ids for character in ALPHABET):
            raise CheckpointError(f"{source} repeats tokens or lacks single bytes: expected {n_text} different tokens")
        vocabulary = cls(ids, num_languages)
        expected = list(vocabulary.special_tokens)
        for i, token in enumerate(tokens[n_text:]):
            wanted = expected[i] if i < len(expected) else "nothing"
            if OLD_NAMES.get(token, token) != wanted:
                raise CheckpointError(f"{source} has {token!r} as token {n_text + i}: expected {wanted!r}")
        return vocabulary

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self.ids) + len(self.special_tokens)

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows more than English, by the tokens it was trained with."""
        return len(self.ids) > SIZES[51864][0]

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Specials, languages and time stamps to their ids, in the order of these."""
        names = [
            "endoftext",
            "startoftranscript",
            *list(LANGUAGES)[: self.num_languages],
            "translate",
            "transcribe",
            "startoflm",
            "startofprev",
            "nospeech",
            "notimestamps",
            *(f"{i * 0.02:.2f}" for i in range(N_TIMESTAMPS)),
        ]
        return {f"<|{name}|>": i for i, name in enumerate(names, len(self.ids))}

    @cached_property
    def _spelled(self) -> list[str]:
        return [*self.ids, *self.special_tokens]

    def token_bytes(self, token: int) -> bytes:
        """What a token writes."""
        spelled = self._spelled[token]
        return bytes(map(BYTES.__getitem__, spelled)) if token < len(self.ids) else spelled.encode()

    @cached_property
    def ranks(self) -> dict[bytes, int]:
        """The byte-pair tokens as bytes, to their ids."""
        return {self.token_bytes(token): token for token in range(len(self.ids))}

    def merge(self, piece: str) -> list[int]:
        """Byte-pair coding of one piece of text, a pair at a time, the lowest rank first.

        For pieces of a few bytes, when `encoding` would take longer to make than to use.
        """
        parts = [ALPHABET[byte] for byte in piece.encode()]
        while pairs := [(self.ids[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in self.ids]:
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self.ids[part] for part in parts]

    @cached_property
    def encoding(self) -> "tiktoken.Encoding":
        """The byte-pair coder."""
        import tiktoken  # making a coder takes 50 ms, which a start without a prompt can do without

        return tiktoken.Encoding(
            f"whisper-{self.n_vocab}",
            pat_str=PIECES,
            mergeable_ranks=self.ranks,
            special_tokens=self.special_tokens,
            explicit_n_vocab=self.n_vocab,
        )


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary, and the language and task that it is used for; names as in openai-whisper.

    Attributes:
        vocabulary: The tokens.
        language: Code of the language spoken; None for English-only models, which are told none.
        task: "transcribe" or "translate"; None for English-only models.
    """

    vocabulary: Vocabulary
    language: str | None = None
    task: str | None = None

    def encode(self, text: str) -> list[int]:
        """Turns text into tokens.

        Raises:
            OptionError: The name of a special token is in the text, which would be ambiguous.
        """
        for name in re.findall(r"<\|[^|]*\|>", text):
            if name in self.special_tokens:
                raise OptionError(f"the text contains {name}, which names a special token: expected plain text")
        return self.vocabulary.encoding.encode_ordinary(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turns tokens into text, time stamps left out; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_with_timestamps(token for token in tokens if token < self.timestamp_begin)

    def decode_with_timestamps(self, tokens: Iterable[int]) -> str:
        """Turns tokens into text, time stamps written as <|1.08|>."""
        return b"".join(map(self.vocabulary.token_bytes, tokens)).decode("utf-8", errors="replace")

    @property
    def special_tokens(self) -> dict[str, int]:
        """Names of the tokens that are not text, to their ids."""
        return self.vocabulary.special_tokens

    @cached_property
    def eot(self) -> int:
        """Ends a transcript; ids below it are text."""
        return self.special_tokens["<|endoftext|>"]

    @cached_property
    def sot(self) -> int:
        """Starts a transcript."""
        return self.special_tokens["<|startoftranscript|>"]

    @cached_property
    def sot_lm(self) -> int:
        """Starts text without speech."""
        return self.special_tokens["<|startoflm|>"]

    @cached_property
    def sot_prev(self) -> int:
        """Starts the text before the window."""
        return self.special_tokens["<|startofprev|>"]

    @cached_property
    def transcribe(self) -> int:
        """Asks for what is said."""
        return self.special_tokens["<|transcribe|>"]

    @cached_property
    def translate(self) -> int:
        """Asks for an English translation."""
        return self.special_tokens["<|translate|>"]

    @cached_property
    def no_speech(self) -> int:
        """Says that nobody speaks."""
        return self.special_tokens["<|nospeech|>"]

    @cached_property
    def no_timestamps(self) -> int:
        """Asks for text only."""
        return self.special_tokens["<|notimestamps|>"]

    @cached_property
    def timestamp_begin(self) -> int:
        """The time stamp 0.00 s; the ids from it on are time stamps."""
        return self.special_tokens["<|0.00|>"]

    @cached_property
    def language_token(self) -> int:
        """The token of `language`.

        Raises:
            OptionError: The tokenizer has no language.
        """
        if self.language is None:
            raise OptionError("this tokenizer has no language: get one with language=...")
        return self.to_language_token(self.language)

    def to_language_token(self, language: str) -> int:
        """Finds the token of a language code.

        Raises:
            OptionError: This vocabulary has no such language.
        """
        if language not in self.all_language_codes:
            n_known = self.vocabulary.num_languages
            raise OptionError(f"language {language!r} is not one of this model's {n_known}: expected a code like 'en'")
        return self.special_tokens[f"<|{language}|>"]

    @cached_property
    def all_language_tokens(self) -> tuple[int, ...]:
        """Tokens of all languages of this vocabulary."""
        return tuple(self.special_tokens[f"<|{code}|>"] for code in self.all_language_codes)

    @cached_property
    def all_language_codes(self) -> tuple[str, ...]:
        """Codes of all languages of this vocabulary, in the order of their tokens."""
        return tuple(LANGUAGES)[: self.vocabulary.num_languages]

    @cached_property
    def sot_sequence(self) -> tuple[int, ...]:
        """What every transcript starts with: the start, and of a multilingual model the language and the task."""
        language = () if self.language is None else (self.language_token,)
        task = () if self.task is None else (self.special_tokens[f"<|{self.task}|>"],)
        return (self.sot, *language, *task)

    @cached_property
    def sot_sequence_including_notimestamps(self) -> tuple[int, ...]:
        """The same for a transcript without time stamps."""
        return (*self.sot_sequence, self.no_timestamps)

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens that write what nobody says, such as brackets and notes; common punctuation is not among them."""
        encode = self.vocabulary.merge  # each is one piece
        found = {encode(" -")[0], encode(" '")[0]}  # within words they are fine
        for symbol in (*UNSPOKEN.split(), *MUSIC):
            for tokens in (encode(symbol), encode(" " + symbol)):
                if len(tokens) == 1 or symbol in MUSIC:
                    found.add(tokens[0])
        return tuple(sorted(found))

    def split_to_word_tokens(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Groups tokens into words, or into characters where words are not set apart by spaces.

        Returns:
            The words, and the tokens of each.
        """
        if self.language in WRITTEN_WITHOUT_SPACES:
            return self.split_tokens_on_unicode(tokens)
        return self.split_tokens_on_spaces(tokens)

    def split_tokens_on_unicode(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Groups tokens into the shortest runs that are whole characters; bytes that never become one stay U+FFFD."""
        text = self.decode_with_timestamps(tokens)
        words: list[str] = []
        groups: list[list[int]] = []
        start, position = 0, 0
        for end in range(1, len(tokens) + 1):
            word = self.decode_with_timestamps(tokens[start:end])
            broken = word.find("\ufffd")
            if broken < 0 or text[position + broken : position + broken + 1] == "\ufffd":
                words.append(word)
                groups.append(list(tokens[start:end]))
                start, position = end, position + len(word)
        return words, groups

    def split_tokens_on_spaces(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Groups tokens into words: each starts at a space, a special token or a punctuation mark."""
        words: list[str] = []
        groups: list[list[int]] = []
        for piece, group in zip(*self.split_tokens_on_unicode(tokens), strict=True):
            starts_word = group[0] >= self.eot or piece.startswith(" ") or piece.strip() in string.punctuation
            if starts_word or not words:
                words.append(piece)
                groups.append(group)
            else:
                words[-1] += piece
                groups[-1] += group
        return words, groups


def get_tokenizer(vocabulary: Vocabulary, *, language: str | None = None, task: str | None = None) -> Tokenizer:
    """Makes a tokenizer for a language and a task.

    Args:
        vocabulary: The checkpoint's.
        language: Code or English name, in any case; English if None.
        task: "transcribe" or "translate"; to transcribe if None.

    Raises:
        OptionError: The language or task is not known, or not to this vocabulary.
    """
    name = (language or "en").lower()
    code = TO_LANGUAGE_CODE.get(name, name)
    known = list(LANGUAGES)[: vocabulary.num_languages] if vocabulary.is_multilingual else ["en"]
    tasks = ["transcribe", "translate"] if vocabulary.is_multilingual else ["transcribe"]
    if code not in known:
        raise OptionError(
            f"language {language!r} is not known to this model: expected "
            + ("one of " + ", ".join(known) if vocabulary.is_multilingual else "English; use a multilingual model")
        )
    if task not in (None, *tasks):
        raise OptionError(f"task {task!r} is not known to this model: expected {' or '.join(tasks)}")
    if not vocabulary.is_multilingual:
        return Tokenizer(vocabulary)
    return Tokenizer(vocabulary, code, task or "transcribe")

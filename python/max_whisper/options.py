"""The options of decoding, and what makes a value of theirs wrong: checked here, before anything is computed."""

import math
import sys
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from operator import index
from typing import Any

from max_whisper.audio import CHUNK_LENGTH, FRAMES_PER_SECOND
from max_whisper.errors import OptionError
from max_whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

TASKS = ("transcribe", "translate")

# openai-whisper's options that ask for more than greedy decoding, and why they are refused. None and False ask for
# nothing and are accepted.
_UNSUPPORTED = {
    "beam_size": "only greedy decoding is there",
    "best_of": "only greedy decoding is there",
    "patience": "only greedy decoding is there",
    "length_penalty": "only greedy decoding is there",
    "word_timestamps": "only segments have timestamps",
    "hallucination_silence_threshold": "it needs word timestamps",
    "fp16": "the number format is chosen when the model is loaded, load_model(name, dtype=...)",
}


@dataclass(frozen=True)
class DecodingOptions:
    """How a window is decoded, in openai-whisper's names.

    Attributes:
        task: "transcribe", or "translate" into English.
        language: Code or English name of the language spoken; None detects it.
        temperature: 0, which is greedy decoding; nothing else is supported.
        sample_len: Most tokens to pick for a window; None for half the decoder's context.
        prompt: Text or tokens that precede the window.
        prefix: Text or tokens that the window's transcript starts with.
        suppress_tokens: Token ids never to pick, as numbers or separated by commas, -1 standing for the symbols nobody
            speaks. Nothing at all (None, "" or []) also allows the special tokens that are otherwise never picked.
        suppress_blank: Whether a window may neither start with a space nor end before it began.
        without_timestamps: Whether to pick text only.
        max_initial_timestamp: Latest start of a window's first segment, in seconds; None or 0 for no limit.

    Raises:
        OptionError: If a value is one that no model accepts.
    """

    task: str = "transcribe"
    language: str | None = None
    temperature: float = 0.0
    sample_len: int | None = None
    prompt: str | Sequence[int] | None = None
    prefix: str | Sequence[int] | None = None
    suppress_tokens: str | Sequence[int] | None = "-1"
    suppress_blank: bool = True
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise OptionError(f"task {self.task!r} is not known: expected {' or '.join(TASKS)}")
        if self.language is not None:
            language_code(self.language)
        if not is_number(self.temperature) or self.temperature != 0:
            raise OptionError(f"temperature {self.temperature!r} is not supported: only 0, greedy decoding")
        if self.sample_len is not None and not (is_whole(self.sample_len) and self.sample_len >= 1):
            raise OptionError(f"sample_len is {self.sample_len!r}: expected at least 1 token")
        latest = self.max_initial_timestamp
        if latest is not None and not (is_number(latest) and 0 <= latest <= CHUNK_LENGTH):
            raise OptionError(f"max_initial_timestamp is {latest!r}: expected 0 to {CHUNK_LENGTH} s")
        for name, text in (("prompt", self.prompt), ("prefix", self.prefix)):
            if not (text is None or isinstance(text, str) or _are_token_ids(text)):
                raise OptionError(f"{name} is {text!r}: expected text, or a list of token ids")
        parse_suppress_tokens(self.suppress_tokens)


def is_number(value: object) -> bool:
    """Whether a value is a real number, Python's or NumPy's; NaN is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def is_whole(value: object) -> bool:
    """Whether a value is an integer, Python's or NumPy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _are_token_ids(value: object) -> bool:
    return isinstance(value, Sequence) and all(is_whole(item) and item >= 0 for item in value)


def decoding_options(**options: Any) -> DecodingOptions:
    """Makes options from keywords; whatever is unknown or unsupported is refused, not ignored.

    Raises:
        OptionError: If a name is not an option's, or a value is not supported.
    """
    known = [field.name for field in fields(DecodingOptions)]
    for name, value in options.items():
        if name in _UNSUPPORTED and value is not None and value is not False:
            raise OptionError(f"{name}={value!r} is not supported: {_UNSUPPORTED[name]}")
        if name not in _UNSUPPORTED and name not in known:
            raise OptionError(f"{name!r} is not an option" + _did_you_mean(name, known))
    return DecodingOptions(**{name: value for name, value in options.items() if name in known})


def language_code(language: str) -> str:
    """Finds the code of a language given by code or English name, in any case.

    Raises:
        OptionError: If Whisper knows no such language.
    """
    name = language.lower() if isinstance(language, str) else ""
    if name in LANGUAGES:
        return name
    if name in TO_LANGUAGE_CODE:
        return TO_LANGUAGE_CODE[name]
    hint = _did_you_mean(name, [*TO_LANGUAGE_CODE, *LANGUAGES]) or ": expected a code like en or a name like English"
    raise OptionError(f"language {language!r} is not known{hint}")


def parse_suppress_tokens(suppress_tokens: str | Sequence[int] | None) -> list[int]:
    """Reads `suppress_tokens` into token ids, -1 left among them.

    Raises:
        OptionError: If something in it is neither a token id nor -1.
    """
    if suppress_tokens is None:
        return []
    try:
        if isinstance(suppress_tokens, str):
            tokens = [int(item) for item in suppress_tokens.split(",")] if suppress_tokens else []
        elif isinstance(suppress_tokens, Sequence | Set):  # what can be gone through again
            tokens = [index(item) for item in suppress_tokens]
        else:
            tokens = [-2]
    except (TypeError, ValueError):
        tokens = [-2]
    if min(tokens, default=0) < -1:
        raise OptionError(f"suppress_tokens is {suppress_tokens!r}: expected token ids, or -1 for non-speech symbols")
    return tokens


def parse_clips(clip_timestamps: str | Sequence[float]) -> list[tuple[int, int]]:
    """Reads start,end,start,... in seconds into pairs of frames; a last end left out is the end of any recording.

    Raises:
        OptionError: If they are not times.
    """
    try:
        items = clip_timestamps.split(",") if isinstance(clip_timestamps, str) and clip_timestamps else clip_timestamps
        times = [float(item) for item in items]
        frames = [round(time * FRAMES_PER_SECOND) for time in times] or [0]
    except (TypeError, ValueError, OverflowError):  # infinity is the last
        times, frames = [math.nan], []
    if not all(time >= 0 for time in times):
        raise OptionError(f"clip_timestamps is {clip_timestamps!r}: expected seconds as start,end,start,...")
    if len(frames) % 2 == 1:
        frames.append(sys.maxsize)
    return list(zip(frames[::2], frames[1::2], strict=True))


def check_batching(batch_size: int | None, condition_on_previous_text: bool | None) -> None:
    """Refuses what windows side by side cannot do.

    Raises:
        OptionError: The batch size is no positive number, or windows are to be conditioned on windows beside them.
    """
    if batch_size is None:
        return
    if not is_whole(batch_size) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}: expected a number of windows, 1 or more, or None")
    if condition_on_previous_text:
        raise OptionError(
            "condition_on_previous_text needs one window after the other: leave out batch_size, or the condition"
        )


def _did_you_mean(name: str, choices: Iterable[str]) -> str:
    close = get_close_matches(name, choices, n=1)
    return f": did you mean {close[0]!r}?" if close else ""

"""Long audio: openai-whisper's algorithm at temperature 0, a window of 30 s at a time.

Each window starts where the last complete segment of the window before it ended, as told by the timestamps among its
tokens; what was said before is its prompt. A window in which nobody seems to speak is skipped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypedDict

import numpy as np

from max_whisper.audio import (
    FRAMES_PER_SECOND,
    HOP_LENGTH,
    N_FRAMES,
    N_SAMPLES,
    N_SAMPLES_PER_TOKEN,
    SAMPLE_RATE,
    load_audio,
    pad_or_trim,
)
from max_whisper.decoding import DecodingResult, DecodingTask, Model, detect_language
from max_whisper.errors import OptionError
from max_whisper.options import decoding_options, parse_clips
from max_whisper.tokenizer import LANGUAGES, Tokenizer
from max_whisper.writers import format_timestamp

FRAMES_PER_TIMESTAMP = N_SAMPLES_PER_TOKEN // HOP_LENGTH
SECONDS_PER_TIMESTAMP = N_SAMPLES_PER_TOKEN / SAMPLE_RATE


class Segment(TypedDict):
    """A stretch of speech with its text; openai-whisper's keys.

    `seek` is where its window starts, in frames of 10 ms; `start` and `end` are seconds; `avg_logprob`,
    `compression_ratio` and `no_speech_prob` are those of the whole window.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Transcription(TypedDict):
    """What was said; openai-whisper's keys."""

    text: str
    segments: list[Segment]
    language: str


class TranscribingModel(Model, Protocol):
    """What transcription needs of a model."""

    def log_mel_spectrogram(self, audio: np.ndarray, padding: int = 0) -> np.ndarray:
        """Turns samples and so many zeros after them into features, float32 (n_mels, frames)."""
        ...


def transcribe(
    model: TranscribingModel,
    audio: Any,
    *,
    verbose: bool | None = None,
    temperature: float = 0.0,
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool = True,
    initial_prompt: str | None = None,
    carry_initial_prompt: bool = False,
    clip_timestamps: str | Sequence[float] = "0",
    on_segment: Callable[[Segment], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **decode_options: Any,
) -> Transcription:
    """Transcribes a recording of any length; names, defaults and result are openai-whisper's.

    Args:
        model: The model.
        audio: What `load_audio` takes: a path, the bytes of a file, a file object, or float32 samples at 16 kHz.
        verbose: Whether to print segments as they come (True), the detected language only (False), or nothing (None).
        temperature: 0, nothing else.
        compression_ratio_threshold: Accepted; decides about another attempt at a higher temperature, which is not made.
        logprob_threshold: Windows as probable as this (mean log probability) are kept even if nobody seems to speak.
        no_speech_threshold: Windows where it is likelier than this that nobody speaks are skipped; None: none is.
        condition_on_previous_text: Whether a window is prompted with the text before it.
        initial_prompt: Text to prompt the first window with: names, spelling, style.
        carry_initial_prompt: Whether to prompt every window with it.
        clip_timestamps: Stretches to transcribe as start,end,start,... in seconds; the last end may be left out.
        on_segment: Called with every segment as soon as it is complete.
        on_progress: Called with the frames of 10 ms done and to do after each window.
        decode_options: Fields of `DecodingOptions`: language, task, suppress_tokens, without_timestamps, ...

    Returns:
        The text, its segments, and the code of the language given or detected.

    Raises:
        OptionError: If an option is unknown or has a value that is not supported; before anything is computed.
        AudioError: If the audio cannot be read.
    """
    if "prompt" in decode_options:
        raise OptionError("prompt is for a single window: use initial_prompt")
    for name, threshold in (
        ("compression_ratio_threshold", compression_ratio_threshold),
        ("logprob_threshold", logprob_threshold),
        ("no_speech_threshold", no_speech_threshold),
    ):
        if threshold is not None and not isinstance(threshold, int | float):
            raise OptionError(f"{name} is {threshold!r}: expected a number or None")
    clips = parse_clips(clip_timestamps)
    options = decoding_options(temperature=temperature, **decode_options)
    task = DecodingTask(model, options)
    context = Context(task.tokenizer, initial_prompt, carry_initial_prompt, model.dims.n_text_ctx)

    mel = model.log_mel_spectrogram(load_audio(audio), padding=N_SAMPLES)
    content_frames = mel.shape[-1] - N_FRAMES
    language = task.language
    if language is None:
        language = _detect_language(model, mel)
        task = DecodingTask(model, replace(options, language=language))
        if verbose is not None:
            print(f"Detected language: {LANGUAGES[language].title()}")

    segments: list[Segment] = []
    for clip_start, clip_end in clips:
        seek, clip_end = clip_start, min(clip_end, content_frames)
        while seek < clip_end:
            frames = min(N_FRAMES, clip_end - seek)
            window = pad_or_trim(mel[:, seek : seek + frames], N_FRAMES)
            (result,) = task.run(model.embed_audio(window[None]), context.prompt())

            advance = frames
            if not nobody_speaks(result, no_speech_threshold, logprob_threshold):
                spans, advance = split_window(result.tokens, task.tokenizer.timestamp_begin, frames)
                found = [_segment(i, seek, span, task.tokenizer, result) for i, span in enumerate(spans, len(segments))]
                segments += found
                for segment in found:
                    context.add(segment["tokens"])
                    if verbose:
                        times = f"{format_timestamp(segment['start'])} --> {format_timestamp(segment['end'])}"
                        print(f"[{times}] {segment['text']}", flush=True)
                    if on_segment:
                        on_segment(segment)
                if not condition_on_previous_text:
                    context.forget()
            seek += advance
            if on_progress:
                on_progress(min(seek, content_frames), content_frames)
    return {"text": context.text(), "segments": segments, "language": language}


class Context:
    """What was said so far, and what of it prompts the next window.

    Args:
        tokenizer: The model's tokenizer.
        initial_prompt: Text that counts as said before the recording.
        carry_initial_prompt: Whether it stands at the front of every prompt.
        n_text_ctx: The decoder's context; a prompt takes half of it at most.

    Raises:
        OptionError: If the prompt cannot be written in tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, initial_prompt: str | None, carry_initial_prompt: bool, n_text_ctx: int
    ) -> None:
        self._tokenizer = tokenizer
        self._initial = [] if initial_prompt is None else tokenizer.encode(" " + initial_prompt.strip())
        self._carry = carry_initial_prompt
        self._room = n_text_ctx // 2 - 1 - len(self._initial)
        self._tokens = list(self._initial)
        self._begin = 0

    def add(self, tokens: Sequence[int]) -> None:
        """Takes in what a segment said."""
        self._tokens += tokens

    def forget(self) -> None:
        """Prompts with nothing of what was said so far."""
        self._begin = len(self._tokens)

    def prompt(self) -> list[int]:
        """The prompt of the next window; decoding cuts what is too long from its front."""
        if not self._carry:
            return self._tokens[self._begin :]
        since = max(len(self._initial), self._begin)
        return self._initial + self._tokens[since:][-self._room :]

    def text(self) -> str:
        """All that was said, without the initial prompt."""
        return self._tokenizer.decode(self._tokens[len(self._initial) :])


@dataclass(frozen=True)
class Span:
    """A segment within its window.

    Attributes:
        start: Seconds from the window's start.
        end: Seconds from the window's start.
        tokens: Its tokens, timestamps included.
    """

    start: float
    end: float
    tokens: list[int]


def split_window(tokens: Sequence[int], timestamp_begin: int, frames: int) -> tuple[list[Span], int]:
    """Splits a window's tokens where two timestamps meet: there one segment ends and the next begins.

    Args:
        tokens: What was decoded from the window.
        timestamp_begin: The token of 0.00 s.
        frames: Frames of 10 ms of the window that hold sound.

    Returns:
        The segments, and how many frames further the next window starts: where the last complete segment ends if
        another had begun, else past this window.
    """

    def seconds(timestamp: int) -> float:
        return (timestamp - timestamp_begin) * SECONDS_PER_TIMESTAMP

    timed = [token >= timestamp_begin for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if timed[i - 1] and timed[i]]
    if not cuts:
        timestamps = [token for token in tokens if token >= timestamp_begin]
        spoken_to_the_end = not timestamps or timestamps[-1] == timestamp_begin
        end = frames / FRAMES_PER_SECOND if spoken_to_the_end else seconds(timestamps[-1])
        return [Span(0.0, end, list(tokens))], frames
    complete = timed[-2:] == [False, True]  # nothing is said after the last timestamp
    if complete:
        cuts.append(len(tokens))
    pieces = [list(tokens[begin:end]) for begin, end in zip([0, *cuts], cuts, strict=False)]
    spans = [Span(seconds(piece[0]), seconds(piece[-1]), piece) for piece in pieces]
    advance = (pieces[-1][-1] - timestamp_begin) * FRAMES_PER_TIMESTAMP
    return spans, frames if complete or advance <= 0 else advance


def nobody_speaks(result: DecodingResult, no_speech_threshold: float | None, logprob_threshold: float | None) -> bool:
    """Tells whether a window is to be skipped: probably no speech, and an improbable text."""
    if no_speech_threshold is None or result.no_speech_prob <= no_speech_threshold:
        return False
    return logprob_threshold is None or result.avg_logprob <= logprob_threshold


def _detect_language(model: Model, mel: np.ndarray) -> str:
    """The most probable language of the first 30 s."""
    _, probabilities = detect_language(model, pad_or_trim(mel, N_FRAMES))
    assert isinstance(probabilities, dict)
    return max(probabilities, key=probabilities.__getitem__)


def _segment(index: int, seek: int, span: Span, tokenizer: Tokenizer, result: DecodingResult) -> Segment:
    """A segment of a recording; one without text or duration keeps its place but says nothing."""
    offset = seek * HOP_LENGTH / SAMPLE_RATE
    start, end = offset + span.start, offset + span.end
    text = tokenizer.decode([token for token in span.tokens if token < tokenizer.eot])
    empty = start == end or not text.strip()
    return {
        "id": index,
        "seek": seek,
        "start": start,
        "end": end,
        "text": "" if empty else text,
        "tokens": [] if empty else span.tokens,
        "temperature": result.temperature,
        "avg_logprob": result.avg_logprob,
        "compression_ratio": result.compression_ratio,
        "no_speech_prob": result.no_speech_prob,
    }

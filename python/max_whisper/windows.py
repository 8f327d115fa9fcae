"""What a window says, as segments of the recording; the same whichever way windows are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from max_whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_SAMPLES_PER_TOKEN, SAMPLE_RATE
from max_whisper.decoding import DecodingResult
from max_whisper.tokenizer import Tokenizer

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


@dataclass(frozen=True)
class Thresholds:
    """When a window is skipped: probably nobody speaks, and its text is improbable.

    Attributes:
        no_speech: Probability beyond which nobody seems to speak; None: somebody always does.
        logprob: Mean log probability beyond which a text is kept all the same; None: none is.
    """

    no_speech: float | None
    logprob: float | None

    def skip(self, result: DecodingResult) -> bool:
        """Tells whether a window is to be skipped."""
        if self.no_speech is None or result.no_speech_prob <= self.no_speech:
            return False
        return self.logprob is None or result.avg_logprob <= self.logprob


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


def hear(
    result: DecodingResult, seek: int, frames: int, tokenizer: Tokenizer, thresholds: Thresholds
) -> tuple[list[Segment], int]:
    """Turns what was decoded from a window into segments.

    Args:
        result: What was decoded.
        seek: The window's first frame.
        frames: Its frames of 10 ms that hold sound.
        tokenizer: Writes the text.
        thresholds: Whether it is skipped.

    Returns:
        The segments, numbered from 0, none of a window that is skipped; and how many frames of the window they cover.
    """
    if thresholds.skip(result):
        return [], frames
    spans, advance = split_window(result.tokens, tokenizer.timestamp_begin, frames)
    return [_segment(i, seek, span, tokenizer, result) for i, span in enumerate(spans)], advance


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

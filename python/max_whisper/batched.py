"""Windows side by side: cut at pauses, encoded and decoded together, so that weights are read once for all of them.

No window knows what another one said. One that could not be heard to its end, because the model stopped in the middle of
a segment, is heard again from there on, in the next batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from max_whisper.audio import FRAMES_PER_SECOND, N_FRAMES
from max_whisper.decoding import DecodingResult, DecodingTask
from max_whisper.features import Features
from max_whisper.pauses import find_cut, quietest
from max_whisper.windows import Segment, Thresholds, hear

SILENT_REST = FRAMES_PER_SECOND
"""Frames: what is left of a window in which nothing had been begun is heard again if it is longer than this."""

NEARBY = 4 * FRAMES_PER_SECOND // 10
"""Frames around a timestamp in which the pause that it means is looked for."""


@dataclass(frozen=True, order=True)
class Window:
    """A stretch of a recording; windows sort in the order of the transcript.

    Attributes:
        clip: Which of the clips it belongs to.
        begin: Its first frame.
        end: The frame behind it, 30 s later at most.
    """

    clip: int
    begin: int
    end: int


def batched(
    task: DecodingTask,
    features: Features,
    clips: Sequence[tuple[int, int]],
    prompt: Sequence[int],
    thresholds: Thresholds,
    batch_size: int,
) -> Iterator[tuple[list[Segment], int]]:
    """Transcribes stretches of a recording.

    Args:
        task: Decodes windows.
        features: The recording.
        clips: First frame and end of each stretch.
        prompt: Tokens that prompt every window.
        thresholds: Which windows are skipped.
        batch_size: Most windows to decode together.

    Yields:
        The segments of each window, in order, and the frame up to which the recording is done.
    """
    fresh = cut_at_pauses(features, clips)
    waiting: list[Window] = []
    heard: list[tuple[Window, list[Segment]]] = []
    while True:
        while len(waiting) < batch_size and (window := next(fresh, None)):
            waiting.append(window)
        if not waiting:
            return
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        mel = np.stack([features.window(w.begin, w.end - w.begin, features.silence) for w in batch])
        for window, result in zip(batch, task.run(task.model.embed_audio(mel), prompt, spend=True), strict=True):
            segments, advance = hear(result, window.begin, window.end - window.begin, task.tokenizer, thresholds)
            heard.append((window, segments))
            rest = Window(window.clip, window.begin + advance, window.end)
            if _worth_hearing(rest, result, task.tokenizer.timestamp_begin):
                waiting.append(_from_a_pause(rest, window, features))
        waiting.sort()
        heard.sort(key=lambda one: one[0])
        while heard and not (waiting and waiting[0] < heard[0][0]):
            window, segments = heard.pop(0)
            yield segments, window.end


def cut_at_pauses(features: Features, clips: Sequence[tuple[int, int]]) -> Iterator[Window]:
    """Cuts stretches of a recording into windows of 30 s at most, where nobody speaks if possible."""
    for clip, (begin, end) in enumerate(clips):
        end = min(end, features.frames)
        while begin < end:
            whole = end - begin <= N_FRAMES
            cut = end if whole else begin + find_cut(features.stretch(begin, N_FRAMES))
            yield Window(clip, begin, cut)
            begin = cut


def _from_a_pause(rest: Window, window: Window, features: Features) -> Window:
    """Begins what is left of a window between words: timestamps are exact to a few tenths of a second at best."""
    first = max(rest.begin - NEARBY, (window.begin + rest.begin + 1) // 2)  # never back to where it came from
    last = min(rest.end - 1, rest.begin + NEARBY)
    return replace(rest, begin=first + quietest(features.stretch(first, last + 1 - first)))


def _worth_hearing(rest: Window, result: DecodingResult, timestamp_begin: int) -> bool:
    begun = bool(result.tokens) and result.tokens[-1] < timestamp_begin
    length = rest.end - rest.begin
    return length > 0 if begun else length > SILENT_REST

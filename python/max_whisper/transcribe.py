"""Recordings of any length to text: openai-whisper's `transcribe`, at temperature 0.

Two ways lead through a recording: one window after the other, each prompted with the one before and starting where it
ended (`sequential.py`, openai-whisper's algorithm), or many windows side by side (`batched.py`), which is faster.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypedDict

from max_whisper.audio import N_FRAMES
from max_whisper.batched import batched
from max_whisper.decoding import DecodingTask, Model, detect_language
from max_whisper.errors import OptionError
from max_whisper.features import Features, Featurizer
from max_whisper.options import check_batching, decoding_options, is_number, parse_clips
from max_whisper.recording import open_recording
from max_whisper.sequential import Context, sequential
from max_whisper.tokenizer import LANGUAGES
from max_whisper.windows import Segment, Thresholds
from max_whisper.writers import format_timestamp


class Transcription(TypedDict):
    """What was said; openai-whisper's keys."""

    text: str
    segments: list[Segment]
    language: str


class TranscribingModel(Model, Featurizer, Protocol):
    """What transcription needs of a model."""


def transcribe(
    model: TranscribingModel,
    audio: Any,
    *,
    verbose: bool | None = None,
    temperature: float = 0.0,
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool | None = None,
    initial_prompt: str | None = None,
    carry_initial_prompt: bool = False,
    clip_timestamps: str | Sequence[float] = "0",
    batch_size: int | None = None,
    on_segment: Callable[[Segment], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **decode_options: Any,
) -> Transcription:
    """Transcribes a recording of any length; names, defaults and result are openai-whisper's.

    Args:
        model: The model.
        audio: What `load_audio` takes: a path, the bytes of a file, a file object, or float32 samples at 16 kHz; or an
            open `Recording`.
        verbose: Whether to print segments as they come (True), the detected language only (False), or nothing (None).
        temperature: 0, nothing else.
        compression_ratio_threshold: Accepted; decides about another attempt at a higher temperature, which is not made.
        logprob_threshold: Windows as probable as this (mean log probability) are kept even if nobody seems to speak.
        no_speech_threshold: Windows where it is likelier than this that nobody speaks are skipped; None: none is.
        condition_on_previous_text: Whether a window is prompted with the text before it: by default it is, except in
            batches, where it cannot be.
        initial_prompt: Text to prompt the first window with: names, spelling, style; in batches, every window.
        carry_initial_prompt: Whether to prompt every window with it.
        clip_timestamps: Stretches to transcribe as start,end,start,... in seconds; the last end may be left out.
        batch_size: Most windows to encode and decode together, cut at pauses; None for one after the other.
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
        if threshold is not None and not is_number(threshold):
            raise OptionError(f"{name} is {threshold!r}: expected a number or None")
    if initial_prompt is not None and not isinstance(initial_prompt, str):
        raise OptionError(f"initial_prompt is {initial_prompt!r}: expected text")
    check_batching(batch_size, condition_on_previous_text)
    clips = parse_clips(clip_timestamps)
    options = decoding_options(temperature=temperature, **decode_options)
    task = DecodingTask(model, options)
    context = Context(task.tokenizer, initial_prompt, carry_initial_prompt, model.dims.n_text_ctx)
    thresholds = Thresholds(no_speech_threshold, logprob_threshold)

    def windows(features: Features) -> Iterator[tuple[list[Segment], int]]:
        if batch_size is not None:
            return batched(task, features, clips, context.prompt(), thresholds, batch_size)
        condition = condition_on_previous_text is not False
        return sequential(task, features, clips, context, thresholds, condition=condition)

    recording = open_recording(audio)
    try:
        # In batches, windows are looked at for pauses, as many as a batch takes, before they are encoded.
        features = Features(model, recording, windows=batch_size or 1)
        language = task.language
        if language is None:
            language = _detect_language(model, features)
            task = DecodingTask(model, replace(options, language=language))
            if verbose is not None:
                print(f"Detected language: {LANGUAGES[language].title()}")

        segments: list[Segment] = []
        for found, done in windows(features):
            for segment in found:
                segment["id"] = len(segments)
                segments.append(segment)
                if verbose:
                    times = f"{format_timestamp(segment['start'])} --> {format_timestamp(segment['end'])}"
                    print(f"[{times}] {segment['text']}", flush=True)
                if on_segment:
                    on_segment(segment)
            if on_progress:
                on_progress(min(done, features.frames), features.frames)
    finally:
        if recording is not audio:
            recording.close()
    text = task.tokenizer.decode(token for segment in segments for token in segment["tokens"])
    return {"text": text, "segments": segments, "language": language}


def _detect_language(model: Model, features: Features) -> str:
    """The most probable language of the first 30 s."""
    _, probabilities = detect_language(model, features.stretch(0, N_FRAMES))
    assert isinstance(probabilities, dict)
    return max(probabilities, key=probabilities.__getitem__)

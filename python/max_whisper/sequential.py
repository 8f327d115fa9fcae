"""One window after the other, as in openai-whisper: each starts where the last complete segment before it ended.

Where that is, the timestamps among the window's tokens tell; what was said before is the next window's prompt.
"""

from collections.abc import Iterator, Sequence

from max_whisper.audio import N_FRAMES
from max_whisper.decoding import DecodingTask
from max_whisper.features import Features
from max_whisper.tokenizer import Tokenizer
from max_whisper.windows import Segment, Thresholds, hear


def sequential(
    task: DecodingTask,
    features: Features,
    clips: Sequence[tuple[int, int]],
    context: "Context",
    thresholds: Thresholds,
    *,
    condition: bool,
) -> Iterator[tuple[list[Segment], int]]:
    """Transcribes stretches of a recording.

    Args:
        task: Decodes windows.
        features: The recording.
        clips: First frame and end of each stretch.
        context: What prompts a window.
        thresholds: Which windows are skipped.
        condition: Whether what was said prompts the next window.

    Yields:
        The segments of each window, and the frame up to which the recording is done.
    """
    for begin, end in clips:
        seek, end = begin, min(end, features.frames)
        while seek < end:
            frames = min(N_FRAMES, end - seek)
            mel = features.window(seek, frames)
            (result,) = task.run(task.model.embed_audio(mel[None]), context.prompt())
            segments, advance = hear(result, seek, frames, task.tokenizer, thresholds)
            for segment in segments:
                context.add(segment["tokens"])
            if segments and not condition:
                context.forget()
            seek += advance
            yield segments, seek


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
        self._initial = [] if initial_prompt is None else tokenizer.encode(" " + initial_prompt.strip())
        self._carry = carry_initial_prompt
        self._longest = n_text_ctx // 2 - 1
        self._said: list[int] = []
        self._forgotten = False

    def add(self, tokens: Sequence[int]) -> None:
        """Takes in what a segment said."""
        self._said += tokens

    def forget(self) -> None:
        """Prompts with nothing of what was said so far."""
        self._said.clear()
        self._forgotten = True

    def prompt(self) -> list[int]:
        """The prompt of the next window; decoding cuts what is too long from its front."""
        if not self._carry:
            del self._said[: -self._longest]
            return [*([] if self._forgotten else self._initial), *self._said]
        return self._initial + self._said[-(self._longest - len(self._initial)) :]

"""What the command line says and where: text to standard output, all else to standard error."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from max_whisper.errors import OutputError, WhisperError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from max_whisper.windows import Segment


def complain(error: WhisperError) -> None:
    """Prints an error as one line."""
    print(f"max-whisper: error: {' '.join(str(error).split())}", file=sys.stderr)


def say(message: str) -> None:
    """Prints what is going on."""
    print(f"max-whisper: {message}", file=sys.stderr, flush=True)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back: an exception while MAX's libraries are loaded ends the process with a crash."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def writing_output() -> Iterator[None]:
    """Around what writes to standard output.

    Raises:
        OutputError: It is full, say.
    """
    try:
        yield
    except BrokenPipeError:  # whoever reads the text has seen enough
        raise
    except OSError as error:
        silence_output()
        raise OutputError(
            f"cannot write to standard output ({error.strerror}): make room, or write files with --output-dir"
        ) from error


def show(text: str) -> None:
    """Prints a line of text to standard output, at once.

    Raises:
        OutputError: As `writing_output`.
    """
    with writing_output():
        print(text, flush=True)


def silence_output() -> None:
    """Keeps Python from complaining, when it ends, that nobody reads standard output any more."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class TranscriptPrinter:
    """Prints the segments of one recording as they come, and on a terminal how far it is.

    The bar appears only when a first window has left more to do, so that a short recording costs no import of Rich.

    Args:
        label: What to call the recording.
        times: Whether to print when each segment was said.
    """

    def __init__(self, label: str, *, times: bool) -> None:
        self._label = label
        self._times = times
        self._bar: tuple[Progress, TaskID] | None = None

    def segment(self, segment: "Segment") -> None:
        """Prints a segment on a line of its own, unless it says nothing."""
        text = segment["text"].strip()
        if not text:
            return
        if self._times:
            from max_whisper.writers import format_timestamp

            text = f"[{format_timestamp(segment['start'])} --> {format_timestamp(segment['end'])}] {text}"
        with self._bar_hidden():
            show(text)

    def progress(self, done: int, total: int) -> None:
        """Shows how many of the frames are done."""
        if self._bar is None and done < total and sys.stderr and sys.stderr.isatty():
            self._bar = _start_bar(self._label, total)
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    @contextmanager
    def _bar_hidden(self) -> Iterator[None]:
        if self._bar is None:
            yield
        else:
            self._bar[0].stop()
            yield
            self._bar[0].start()


def _start_bar(label: str, total: int) -> "tuple[Progress, TaskID]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task(label, total=total)
    bar.start()
    return bar, task

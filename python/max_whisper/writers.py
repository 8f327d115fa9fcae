"""Transcripts as files: plain text, subtitles, a table, or everything; byte for byte as openai-whisper writes them."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from max_whisper.errors import OptionError, OutputError

Result = Mapping[str, Any]
"""What `transcribe` returns; the writers need its `segments`, each with `start` and `end` (s) and `text`."""


def format_timestamp(seconds: float, *, always_include_hours: bool = False, decimal_marker: str = ".") -> str:
    """Writes a time as [HH:]MM:SS.mmm; the hours where there are any, or always."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    before = f"{hours:02d}:" if hours or always_include_hours else ""
    return f"{before}{minutes:02d}:{milliseconds // 1000:02d}{decimal_marker}{milliseconds % 1000:03d}"


def write_txt(result: Result, file: TextIO) -> None:
    """Writes the text, a line for each segment."""
    for segment in result["segments"]:
        file.write(segment["text"].strip() + "\n")


def write_vtt(result: Result, file: TextIO) -> None:
    """Writes WebVTT subtitles."""
    file.write("WEBVTT\n\n")
    for times, text in _subtitles(result, always_include_hours=False, decimal_marker="."):
        file.write(f"{times}\n{text}\n\n")


def write_srt(result: Result, file: TextIO) -> None:
    """Writes SubRip subtitles."""
    for number, (times, text) in enumerate(_subtitles(result, always_include_hours=True, decimal_marker=","), 1):
        file.write(f"{number}\n{times}\n{text}\n\n")


def write_tsv(result: Result, file: TextIO) -> None:
    """Writes a table: start and end in whole milliseconds, and text, separated by tabs."""
    file.write("start\tend\ttext\n")
    for segment in result["segments"]:
        start, end = round(1000 * segment["start"]), round(1000 * segment["end"])
        text = segment["text"].strip().replace("\t", " ")
        file.write(f"{start}\t{end}\t{text}\n")


def write_json(result: Result, file: TextIO) -> None:
    """Writes the whole result."""
    json.dump(result, file)


def _subtitles(result: Result, *, always_include_hours: bool, decimal_marker: str) -> Iterator[tuple[str, str]]:
    def time(seconds: float) -> str:
        return format_timestamp(seconds, always_include_hours=always_include_hours, decimal_marker=decimal_marker)

    for segment in result["segments"]:
        text = segment["text"].strip().replace("-->", "->")  # an arrow would start another subtitle
        yield f"{time(segment['start'])} --> {time(segment['end'])}", text


WRITERS: dict[str, Callable[[Result, TextIO], None]] = {
    "txt": write_txt,
    "vtt": write_vtt,
    "srt": write_srt,
    "tsv": write_tsv,
    "json": write_json,
}
OUTPUT_FORMATS = (*WRITERS, "all")


def get_writer(
    output_format: str, output_dir: str | os.PathLike[str]
) -> Callable[[Result, str | os.PathLike[str]], list[Path]]:
    """Makes a function that writes results into a directory, which is made and tried at once.

    Args:
        output_format: One of `OUTPUT_FORMATS`.
        output_dir: Where to write.

    Returns:
        A function of a result and the path of its recording. It writes `<recording's name>.<format>`, over what was
        there before, and returns the paths written; raises OutputError as `write_file` does.

    Raises:
        OptionError: There is no such format.
        OutputError: The directory cannot be made or written to.
    """
    if output_format not in OUTPUT_FORMATS:
        raise OptionError(f"output format {output_format!r} is not known: expected {', '.join(OUTPUT_FORMATS)}")
    folder = check_output_dir(output_dir)
    formats = list(WRITERS) if output_format == "all" else [output_format]

    def write(result: Result, audio_path: str | os.PathLike[str]) -> list[Path]:
        files = {name: folder / f"{output_stem(audio_path)}.{name}" for name in formats}
        for name, file in files.items():
            write_file(result, file, name)
        return list(files.values())

    return write


def output_stem(audio_path: str | os.PathLike[str]) -> str:
    """What a recording's transcripts are called, without their ending."""
    return os.path.splitext(os.path.basename(audio_path))[0]  # noqa: PTH119, PTH122 (openai-whisper's; pathlib's keeps a last dot)


def check_output_dir(output_dir: str | os.PathLike[str]) -> Path:
    """Makes sure that a directory is there and can be written to; makes it if it is missing.

    Raises:
        OutputError: It cannot be made, is something else, or nothing can be written there.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"cannot write into {str(folder)!r} ({error.strerror}): expected a directory to write to; name another one"
        ) from None
    return folder


def write_file(result: Result, path: Path, output_format: str) -> None:
    """Writes one file, all of it or nothing: a failure leaves what was there before.

    Args:
        result: What `transcribe` returned.
        path: The file; its directory exists.
        output_format: One of `WRITERS`.

    Raises:
        OutputError: The file cannot be written.
    """
    unfinished = path.with_name(f".{uuid4().hex}.part")
    try:
        with unfinished.open("x", encoding="utf-8", newline="\n") as file:
            WRITERS[output_format](result, file)
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r} ({error.strerror}): make room or name another output directory"
        ) from None
    finally:
        with suppress(OSError):  # not there: it was made whole, or never begun
            unfinished.unlink()

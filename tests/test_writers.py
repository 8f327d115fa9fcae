"""The writers: expectations are what openai-whisper 20250625 writes for the same result."""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from max_whisper.errors import OptionError, OutputError
from max_whisper.writers import (
    OUTPUT_FORMATS,
    WRITERS,
    check_output_dir,
    format_timestamp,
    get_writer,
    write_file,
)


def segment(number: int, start: float, end: float, text: str) -> dict[str, Any]:
    return {
        "id": number,
        "seek": 0,
        "start": start,
        "end": end,
        "text": text,
        "tokens": [50364, 13, 50464],
        "temperature": 0.0,
        "avg_logprob": -1 / 3,
        "compression_ratio": 1.5,
        "no_speech_prob": 1e-8,
    }


RESULT: dict[str, Any] = {
    "text": ' Plain. "Quoted" é',
    "segments": [
        segment(0, 0.0, 2.5, " Plain."),
        segment(1, 2.5, 3599.9996, " Tab\there --> arrow\t"),
        segment(2, 3600.0004, 36061.0015, " Zażółć ♪ 你好\u2028é"),
        segment(3, 36061.0015, 400000.5, ""),
    ],
    "language": "en",
}
EMPTY: dict[str, Any] = {"text": "", "segments": [], "language": "de"}

EXPECTED = {
    "txt": "Plain.\nTab\there --> arrow\nZażółć ♪ 你好\u2028é\n\n",
    "vtt": "WEBVTT\n\n"
    "00:00.000 --> 00:02.500\nPlain.\n\n"
    "00:02.500 --> 01:00:00.000\nTab\there -> arrow\n\n"
    "01:00:00.000 --> 10:01:01.002\nZażółć ♪ 你好\u2028é\n\n"
    "10:01:01.002 --> 111:06:40.500\n\n\n",
    "srt": "1\n00:00:00,000 --> 00:00:02,500\nPlain.\n\n"
    "2\n00:00:02,500 --> 01:00:00,000\nTab\there -> arrow\n\n"
    "3\n01:00:00,000 --> 10:01:01,002\nZażółć ♪ 你好\u2028é\n\n"
    "4\n10:01:01,002 --> 111:06:40,500\n\n\n",
    "tsv": "start\tend\ttext\n"
    "0\t2500\tPlain.\n"
    "2500\t3600000\tTab here --> arrow\n"
    "3600000\t36061002\tZażółć ♪ 你好\u2028é\n"
    "36061002\t400000500\t\n",
    "json": '{"text": " Plain. \\"Quoted\\" \\u00e9", "segments": ['
    '{"id": 0, "seek": 0, "start": 0.0, "end": 2.5, "text": " Plain.", "tokens": [50364, 13, 50464], '
    '"temperature": 0.0, "avg_logprob": -0.3333333333333333, "compression_ratio": 1.5, "no_speech_prob": 1e-08}, '
    '{"id": 1, "seek": 0, "start": 2.5, "end": 3599.9996, "text": " Tab\\there --> arrow\\t", '
    '"tokens": [50364, 13, 50464], '
    '"temperature": 0.0, "avg_logprob": -0.3333333333333333, "compression_ratio": 1.5, "no_speech_prob": 1e-08}, '
    '{"id": 2, "seek": 0, "start": 3600.0004, "end": 36061.0015, '
    '"text": " Za\\u017c\\u00f3\\u0142\\u0107 \\u266a \\u4f60\\u597d\\u2028\\u00e9", "tokens": [50364, 13, 50464], '
    '"temperature": 0.0, "avg_logprob": -0.3333333333333333, "compression_ratio": 1.5, "no_speech_prob": 1e-08}, '
    '{"id": 3, "seek": 0, "start": 36061.0015, "end": 400000.5, "text": "", "tokens": [50364, 13, 50464], '
    '"temperature": 0.0, "avg_logprob": -0.3333333333333333, "compression_ratio": 1.5, "no_speech_prob": 1e-08}'
    '], "language": "en"}',
}
EXPECTED_EMPTY = {
    "txt": "",
    "vtt": "WEBVTT\n\n",
    "srt": "",
    "tsv": "start\tend\ttext\n",
    "json": '{"text": "", "segments": [], "language": "de"}',
}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("output_format", WRITERS)
def test_bytes_of_each_format(tmp_path: Path, output_format: str) -> None:
    write = get_writer(output_format, tmp_path)
    for result, expected in ((RESULT, EXPECTED), (EMPTY, EXPECTED_EMPTY)):
        files = write(result, "some/where/talk.v2.flac")
        assert files == [tmp_path / f"talk.v2.{output_format}"]
        assert files[0].read_bytes() == expected[output_format].encode()
    assert listing(tmp_path) == [f"talk.v2.{output_format}"]


def test_all_writes_every_format(tmp_path: Path) -> None:
    files = get_writer("all", str(tmp_path))(RESULT, tmp_path / "talk.wav")
    assert [file.suffix[1:] for file in files] == [*WRITERS] == [*OUTPUT_FORMATS[:-1]]
    for file in files:
        assert file.read_text(encoding="utf-8") == EXPECTED[file.suffix[1:]]
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8")) == RESULT


@pytest.mark.live
def test_bytes_are_openai_whispers() -> None:
    utils = pytest.importorskip("whisper.utils")
    for output_format, write in WRITERS.items():
        for result in (RESULT, EMPTY):
            ours, theirs = io.StringIO(), io.StringIO()
            write(result, ours)
            utils.get_writer(output_format, ".").write_result(result, theirs)
            assert ours.getvalue() == theirs.getvalue()


@pytest.mark.parametrize(
    ("seconds", "short", "long"),
    [
        (0, "00:00.000", "00:00:00,000"),
        (0.0015, "00:00.002", "00:00:00,002"),
        (0.0025, "00:00.002", "00:00:00,002"),  # to even
        (2.675, "00:02.675", "00:00:02,675"),
        (59.9995, "01:00.000", "00:01:00,000"),
        (3599.9994, "59:59.999", "00:59:59,999"),
        (3599.9995, "01:00:00.000", "01:00:00,000"),
        (359999.999, "99:59:59.999", "99:59:59,999"),
        (360000, "100:00:00.000", "100:00:00,000"),
    ],
)
def test_format_timestamp(seconds: float, short: str, long: str) -> None:
    assert format_timestamp(seconds) == short
    assert format_timestamp(seconds, always_include_hours=True, decimal_marker=",") == long


def test_missing_directories_are_made_and_nothing_is_left_in_them(tmp_path: Path) -> None:
    folder = check_output_dir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert listing(folder) == []
    assert check_output_dir(str(folder)) == folder


def test_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (file,) = get_writer("txt", tmp_path)(RESULT, "a.wav")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_what_was_there_is_replaced_whole(tmp_path: Path) -> None:
    old = tmp_path / "talk.txt"
    old.write_text("a longer text than the new one\n" * 100, encoding="utf-8")
    get_writer("txt", tmp_path)(RESULT, "talk.wav")
    assert old.read_text(encoding="utf-8") == EXPECTED["txt"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    old = tmp_path / "talk.json"
    old.write_text("precious", encoding="utf-8")
    with pytest.raises(TypeError):
        write_file({**RESULT, "more": object()}, old, "json")
    assert old.read_text(encoding="utf-8") == "precious"
    assert listing(tmp_path) == ["talk.json"]


@pytest.mark.parametrize("step", ["open", "replace"])
def test_a_full_disk_is_reported_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    old = tmp_path / "talk.txt"
    old.write_text("precious", encoding="utf-8")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        with pytest.raises(OutputError, match=r"cannot write '.*talk\.txt' \(No space left on device\)"):
            write_file(RESULT, old, "txt")
    assert old.read_text(encoding="utf-8") == "precious"
    assert listing(tmp_path) == ["talk.txt"]


def refused(folder: Path, reason: str) -> None:
    for call in (lambda: check_output_dir(folder), lambda: get_writer("all", folder)):
        with pytest.raises(OutputError) as caught:
            call()
        message = str(caught.value)
        assert str(folder) in message
        assert reason in message
        assert "\n" not in message


def test_directories_that_cannot_be_written_to_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    refused(file, "File exists")
    refused(file / "below", "Not a directory")
    refused(Path("/proc/nowhere"), "No such file or directory")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # the superuser may write anywhere
        refused(locked, "Permission denied")


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "talk.txt").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        get_writer("txt", tmp_path)(RESULT, "talk.wav")
    assert listing(tmp_path) == ["talk.txt"]


def test_unknown_formats_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="output format 'docx' is not known: expected txt, vtt, srt, tsv, json, all"):
        get_writer("docx", tmp_path / "out")
    assert listing(tmp_path) == []

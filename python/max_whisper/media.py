"""Files and streams to samples: FFmpeg's libraries (through PyAV) decode, mix down and resample to 16 kHz.

The same way that openai-whisper takes, so that the same file gives the same samples. A file that is damaged or was cut
short is refused rather than half transcribed.
"""

import io
import os
import re
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import ThreadType
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from max_whisper.audio import SAMPLE_RATE, AudioSource
from max_whisper.errors import AudioError

# How far a stream may end before its declared length (s): encoder delay and padding account for less.
LENGTH_TOLERANCE = 0.1
# Containers (FFmpeg's names) that state how long they are. Elsewhere FFmpeg guesses the length from the bit rate.
DECLARE_LENGTH = {"aiff", "au", "flac", "mov,mp4,m4a,3gp,3g2,mj2", "ogg", "tta", "wav", "wv"}
# Containers whose streams may pause: where they end is told by the last time stamp, not by the number of samples.
MAY_PAUSE = {"matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"}
# Containers whose length FFmpeg takes from the file's size, but whose last packet it marks as incomplete.
MARK_CUT_PACKET = {"caf", "w64"}
# A WAV writer that could not go back to its header left a length of this or more in it, or zero.
WAV_LENGTH_UNKNOWN = 0x7FFFF000
WAV_SLACK = 64  # bytes by which careless writers overstate the length: they count the header as sound
OGG_PAGE_MAX = 27 + 255 + 255 * 255  # bytes in the largest page


def decode(source: AudioSource) -> Iterator[np.ndarray]:
    """Decodes a recording piece by piece.

    Args:
        source: What `load_audio` takes, arrays excepted.

    Yields:
        int16 (n,), 16 kHz mono: `load_audio` before the division by 32768.

    Raises:
        AudioError: As `load_audio`; what comes late in a recording is found late.
    """
    file, label = _open(source)
    with file:
        yield from _decode(file, label)


def _open(source: object) -> tuple[BinaryIO, str]:
    """Returns a seekable binary file, and what to call it in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        file, label = io.BytesIO(source), f"the audio given as {memoryview(source).nbytes} bytes"
    elif source == "-":
        file, label = _read_standard_input(), "standard input"
    elif isinstance(source, str | os.PathLike):
        file, label = _open_path(Path(source)), repr(os.fspath(source))
    elif callable(read := getattr(source, "read", None)):
        data = read()
        if not isinstance(data, bytes):
            raise AudioError(
                f"the audio file object gives {type(data).__name__}: expected bytes; open it with mode 'rb'"
            )
        file, label = io.BytesIO(data), "the audio file object"
    else:
        raise AudioError(
            f"audio of type {type(source).__name__}: expected a path, '-', bytes, a binary file object or a NumPy array"
        )
    return file, label


def _read_standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise AudioError("'-' reads standard input, which is closed: expected a recording; pipe one in")
    if sys.stdin.isatty():
        raise AudioError("'-' reads standard input, which is a terminal: expected a recording; pipe one in")
    try:
        return io.BytesIO(sys.stdin.buffer.read())
    except OSError as error:
        raise AudioError(
            f"standard input cannot be read ({error.strerror or error}): expected a recording; pipe one in"
        ) from None


def _open_path(path: Path) -> BinaryIO:
    if "\0" in str(path):
        raise AudioError(f"{str(path)!r} holds a zero byte: expected the path of an audio or video file")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{str(path)!r} is a directory: expected an audio or video file; name the files in it")
        if stat.S_ISREG(mode):
            return path.open("rb")
        return io.BytesIO(path.read_bytes())  # a pipe: cannot be sought in
    except FileNotFoundError:
        raise AudioError(f"no such file: {str(path)!r}: expected an audio or video file; check the path") from None
    except OSError as error:
        raise AudioError(
            f"{str(path)!r} cannot be read ({error.strerror}): check the path and its permissions"
        ) from None


def _decode(file: BinaryIO, label: str) -> Iterator[np.ndarray]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise AudioError(f"{label} is empty: expected an audio or video file, got 0 bytes")
    if (missing := _missing_bytes(file, size)) > WAV_SLACK:
        raise AudioError(
            f"{label} is cut short: expected at least {missing} more bytes at its end; fetch it again, or convert it "
            "(ffmpeg -i FILE rest.wav) to use what is left"
        )
    try:
        container = av.open(file, "r", metadata_errors="ignore")
    except FFmpegError as error:
        raise AudioError(
            f"{label} is not a recording that FFmpeg can read, or is cut short ({error.strerror}): "
            "expected an audio or video file (wav, flac, mp3, ogg, m4a, mp4, mkv ...)"
        ) from None
    with container:
        stream = _sound_stream(container, label)
        frames = _frames(container, stream, _declared_seconds(container, stream, file), label)
        empty = True
        try:
            for chunk in _resampled(frames):
                empty = False
                yield chunk.to_ndarray()[0]
        except FFmpegError as error:
            raise AudioError(
                f"{label} cannot be mixed down to {SAMPLE_RATE} Hz mono ({error.strerror}): "
                f"it has {stream.channels} channels at {stream.rate} Hz; convert it to mono first"
            ) from None
    if empty:
        raise AudioError(f"{label} holds no sound: 0 samples were decoded, expected at least one")


def _sound_stream(container: InputContainer, label: str) -> AudioStream:
    """Picks the stream that the ffmpeg command would: one marked as default first, then the one with most channels."""
    if not container.streams.audio:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise AudioError(f"{label} has no sound: expected an audio stream, found only {', '.join(kinds)}")
    decodable = [stream for stream in container.streams.audio if stream.codec_context is not None]
    if not decodable:
        raise AudioError(f"{label} is encoded in a way that this FFmpeg cannot decode: convert it, e.g. to flac")
    stream = max(decodable, key=lambda stream: (bool(stream.disposition & Disposition.default), stream.channels))
    stream.codec_context.thread_type = ThreadType.AUTO
    return stream


def _frames(container: InputContainer, stream: AudioStream, declared: float | None, label: str) -> Iterator[AudioFrame]:
    """Decodes a stream and makes sure that all `declared` seconds of it are there; None: it does not say how many."""
    may_pause = container.format.name in MAY_PAUSE
    failure, end = None, 0.0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt and container.format.name in MARK_CUT_PACKET:
                failure = "its last packet is incomplete"
            for frame in packet.decode():
                if "flt" in frame.format.name or "dbl" in frame.format.name:
                    _check_finite(frame, end, label)
                start = frame.time if may_pause and frame.time is not None else end
                end = start + frame.samples / frame.sample_rate
                yield frame
    except FFmpegError as error:
        failure = error.strerror
    if declared is None:
        decoded, whole = f"{end:.2f} s", failure is None
    else:  # what fails to decode behind the declared end is not sound but tags or padding
        decoded, whole = f"{end:.2f} of {declared:.2f} s", end >= declared - LENGTH_TOLERANCE
    if not whole:
        raise AudioError(
            f"{label} is damaged or cut short ({failure or 'data is missing'}): only {decoded} could be decoded; "
            "fetch it again, or convert it (ffmpeg -i FILE rest.wav) to use what is left"
        )


def _check_finite(frame: AudioFrame, start: float, label: str) -> None:
    finite = np.isfinite(frame.to_ndarray())
    if not finite.all():
        raise AudioError(
            f"{label} has NaN or infinite samples near {start:.2f} s: expected finite ones; export it again"
        )


def _resampled(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    """Mixes down to 16 kHz mono s16; a stream whose format changes on the way starts a new resampler."""
    resampler, setup = av.AudioResampler("s16", "mono", SAMPLE_RATE), None
    for frame in frames:
        before, setup = setup, (frame.format.name, frame.layout.name, frame.sample_rate)
        if before not in (None, setup):
            yield from filter(None, resampler.resample(None))
            resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        yield from resampler.resample(frame)
    yield from filter(None, resampler.resample(None))  # a resampler with nothing to do answers [None]


def _declared_seconds(container: InputContainer, stream: AudioStream, file: BinaryIO) -> float | None:
    """Returns the length that the container itself states, or None where it states none."""
    if container.format.name == "matroska,webm":  # its muxers note where each stream ends
        noted = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
        return 3600 * int(noted[1]) + 60 * int(noted[2]) + float(noted[3]) if noted else None
    if stream.duration is None or stream.time_base is None:
        return None
    seconds = float(stream.duration * stream.time_base)
    if container.format.name == "mp3":  # where FFmpeg does not believe the tag, it guesses
        tagged = _mp3_seconds(file, stream.rate)
        return tagged and min(tagged, seconds)
    return seconds if container.format.name in DECLARE_LENGTH else None


def _mp3_seconds(file: BinaryIO, rate: int) -> float | None:
    """Returns at least how long an MP3 is by the Xing or Info tag in its first frame, None without one."""
    start, header = 0, _read_at(file, 0, 10)
    if header[:3] == b"ID3":  # title, cover ...; four bytes of seven bits say how long that is
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
    frame = _read_at(file, start, 64)
    for tag in (13, 21, 36):  # where the samples would begin: MPEG-2 mono, MPEG-1 mono or MPEG-2 stereo, MPEG-1 stereo
        if frame[tag : tag + 4] in (b"Xing", b"Info") and frame[tag + 7] & 1:
            n_frames = int.from_bytes(frame[tag + 8 : tag + 12], "big")
            return max(0, n_frames - 3) * (1152 if rate >= 32000 else 576) / rate  # up to three are delay and padding
    return None


def _missing_bytes(file: BinaryIO, size: int) -> int:
    """Returns how many bytes a WAV, AVI or Ogg file lacks at its end: FFmpeg takes it for a shorter whole one."""
    magic = _read_at(file, 0, 12)
    if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
        return _wav_end(file) - size
    if magic[:4] == b"RIFF" and magic[8:] == b"AVI ":
        return 8 + int.from_bytes(magic[4:8], "little") - size
    if magic[:4] == b"OggS":
        return _last_ogg_page_end(file, size) - size
    return 0


def _wav_end(file: BinaryIO) -> int:
    """Returns where the samples of a WAV should end by its header, 0 if that does not say."""
    position = 12
    while len(header := _read_at(file, position, 8)) == 8:
        name, length = struct.unpack("<4sI", header)
        if name == b"data":
            return position + 8 + length if length < WAV_LENGTH_UNKNOWN else 0
        position += 8 + length + length % 2
    return 0


def _last_ogg_page_end(file: BinaryIO, size: int) -> int:
    """Returns where the last page of an Ogg file should end: its header lists the lengths of the pieces in it."""
    start = max(0, size - OGG_PAGE_MAX)
    tail = _read_at(file, start, OGG_PAGE_MAX)
    page = tail.rfind(b"OggS")
    if page < 0:
        return 0
    header = tail[page : page + 27]
    n_pieces = header[26] if len(header) == 27 else 0
    return start + page + 27 + n_pieces + sum(tail[page + 27 : page + 27 + n_pieces])


def _read_at(file: BinaryIO, position: int, n_bytes: int) -> bytes:
    """Reads without moving the file's position, which FFmpeg's reader relies on."""
    before = file.tell()
    file.seek(position)
    data = file.read(n_bytes)
    file.seek(before)
    return data

"""Reading audio: files are made here, in every container that PyAV can write, and then mistreated."""

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import threading
import wave
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from max_whisper.audio import (
    CHUNK_LENGTH,
    FRAMES_PER_SECOND,
    HOP_LENGTH,
    N_FRAMES,
    N_SAMPLES,
    N_SAMPLES_PER_TOKEN,
    SAMPLE_RATE,
    TOKENS_PER_SECOND,
    load_audio,
    pad_or_trim,
)
from max_whisper.errors import AudioError

TONES = ((0.3, 220.0), (0.2, 1000.0), (0.1, 3100.0))  # amplitude, Hz: all below half of 8 kHz


def tones(rate: int, seconds: float, channel: int = 0) -> np.ndarray:
    """Sine waves, float64; other channels have them half a tone higher. Exact at any rate."""
    t = np.arange(round(rate * seconds)) / rate
    return np.sum([a * np.sin(2 * np.pi * f * 2 ** (channel / 12) * t) for a, f in TONES], axis=0)


def noise(n: int, seed: int = 0) -> np.ndarray:
    """Loud noise, int16: no two samples alike, so that a shift or a gap shows."""
    return np.random.default_rng(seed).integers(-32768, 32768, n).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def wav_bytes(
    data: bytes, form: int, bits: int, rate: int = SAMPLE_RATE, length: int | None = None, channels: int = 1
) -> bytes:
    """A WAV of any sample format (1: integers, 3: floats), whose header claims any length."""
    block = channels * bits // 8
    head = struct.pack("<IHHIIHH", 16, form, channels, rate, rate * block, block, bits)
    length = len(data) if length is None else length
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + length, 2**32 - 1))
        + b"WAVEfmt "
        + head
        + b"data"
        + struct.pack("<I", length)
        + data
    )


@cache
def encode(
    name: str,
    codec: str,
    *,
    rate: int = 44100,
    seconds: float = 3.0,
    layouts: tuple[str, ...] = ("stereo",),
    picture: bool = False,
) -> bytes:
    """A file of tones, one stream per layout (the n-th a half tone higher), in the container that the name implies."""
    file = io.BytesIO()
    container_format = {"m4a": "mp4", "mkv": "matroska", "opus": "ogg", "oga": "ogg", "aac": "adts"}.get(name, name)
    with av.open(file, "w", format=container_format) as container:
        videos: list[Any] = [container.add_stream("mpeg4", rate=10, width=64, height=64)] if picture else []
        streams: list[Any] = [container.add_stream(codec, rate=rate, layout=layout) for layout in layouts]
        for video in videos:
            for i in range(round(10 * seconds)):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * i % 256, np.uint8), format="rgb24")
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        for i, stream in enumerate(streams):
            n_channels = stream.codec_context.layout.nb_channels
            samples = np.stack([tones(rate, seconds, i)] * n_channels).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layouts[i])
            frame.rate, frame.pts = rate, 0
            resampler = av.AudioResampler(
                stream.codec_context.format, layouts[i], rate, stream.codec_context.frame_size
            )
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    return file.getvalue()


def refused(source: Any, *parts: str) -> None:
    """The source is refused with one line that has all these parts in it."""
    with pytest.raises(AudioError) as caught:
        load_audio(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# What comes in


def test_16_bit_16_khz_mono_is_bit_exact_from_every_kind_of_source(tmp_path: Path) -> None:
    samples = noise(SAMPLE_RATE + 37)
    expected = samples.astype(np.float32) / 32768
    path = write_wav(tmp_path / "noise: 100% übel.wav", samples)
    data = path.read_bytes()
    with path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file, samples]
        for source in sources:
            loaded = load_audio(source)
            assert loaded.dtype == np.float32
            np.testing.assert_array_equal(loaded, expected)


def test_standard_input(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise(4000))
    code = "import max_whisper.audio as a, sys; sys.stdout.buffer.write(a.load_audio('-').tobytes())"
    with path.open("rb") as file:
        out = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, check=True).stdout
    np.testing.assert_array_equal(np.frombuffer(out, np.float32), load_audio(path))


def test_named_pipe(tmp_path: Path) -> None:
    data = write_wav(tmp_path / "a.wav", noise(100_000)).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    np.testing.assert_array_equal(load_audio(pipe), load_audio(data))
    writer.join()


def test_arrays() -> None:
    samples = tones(SAMPLE_RATE, 0.5).astype(np.float32)
    assert load_audio(samples) is samples
    assert np.shares_memory(load_audio(samples[100:]), samples)
    np.testing.assert_array_equal(load_audio(samples[::2]), samples[::2])
    np.testing.assert_array_equal(load_audio(samples.astype(np.float64)), samples)
    read_only = samples.copy()
    read_only.setflags(write=False)
    np.testing.assert_array_equal(load_audio(read_only), samples)
    extremes = np.array([-32768, -1, 0, 1, 32767], np.int16)
    np.testing.assert_array_equal(load_audio(extremes), np.array([-1, -1 / 32768, 0, 1 / 32768, 32767 / 32768]))


@pytest.mark.parametrize(
    ("form", "bits", "pack"),
    [
        (1, 8, lambda x: np.rint(x * 128 + 128).astype("u1").tobytes()),
        (1, 24, lambda x: b"".join(int(v).to_bytes(3, "little", signed=True) for v in np.rint(x * 2**23))),
        (1, 32, lambda x: np.rint(x * 2**31).astype("<i4").tobytes()),
        (3, 32, lambda x: x.astype("<f4").tobytes()),
        (3, 64, lambda x: x.astype("<f8").tobytes()),
    ],
)
def test_sample_formats(form: int, bits: int, pack: Callable[[np.ndarray], bytes]) -> None:
    samples = tones(SAMPLE_RATE, 0.25)
    loaded = load_audio(wav_bytes(pack(samples), form, bits))
    assert len(loaded) == len(samples)
    assert np.abs(loaded - samples).max() <= (1 / 128 if bits == 8 else 1 / 32768)
    np.testing.assert_array_equal(loaded * 32768, np.rint(loaded * 32768))  # 16-bit steps, as in openai-whisper


def test_floats_beyond_full_scale_are_clipped() -> None:
    loaded = load_audio(wav_bytes(np.array([1.5, -1.5, 0.5], "<f4").tobytes(), 3, 32))
    np.testing.assert_array_equal(loaded, np.array([32767 / 32768, -1, 0.5], np.float32))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_and_mixing_down_against_the_exact_wave(tmp_path: Path, rate: int) -> None:
    left, right = tones(rate, 1.0), tones(rate, 1.0, channel=1)
    stereo = np.rint(np.stack([left, right], axis=1) * 32767).astype(np.int16)
    loaded = load_audio(write_wav(tmp_path / "stereo.wav", stereo, rate))
    expected = (tones(SAMPLE_RATE, 1.0) + tones(SAMPLE_RATE, 1.0, channel=1)) / 2
    assert abs(len(loaded) - SAMPLE_RATE) <= 1
    inner = slice(400, SAMPLE_RATE - 400)  # beyond the ends there is nothing to interpolate with
    assert np.abs(loaded[inner] - expected[inner]).max() < 3e-3  # the filter's ripple; a shift by a sample is 0.3


WHOLE = [
    ("wav", "pcm_f32le", 0.002),
    ("flac", "flac", 0.002),
    ("aiff", "pcm_s16be", 0.002),
    ("mkv", "flac", 0.002),
    ("mp3", "libmp3lame", 0.02),
    ("opus", "libopus", 0.02),
    ("webm", "libopus", 0.02),
    ("m4a", "aac", 0.02),
]


@pytest.mark.parametrize(("name", "codec", "tolerance"), WHOLE)
def test_containers_and_codecs(name: str, codec: str, tolerance: float) -> None:
    loaded = load_audio(encode(name, codec, rate=48000))
    expected = tones(SAMPLE_RATE, 3.0)
    assert 0 <= len(loaded) - len(expected) < 1000  # codecs pad to whole frames
    inner = slice(1000, len(expected) - 1000)
    assert np.sqrt(np.mean((loaded[inner] - expected[inner]) ** 2)) < tolerance


def test_sound_of_a_video() -> None:
    loaded = load_audio(encode("mp4", "aac", rate=48000, picture=True))
    assert np.abs(loaded[1000:-2000] - tones(SAMPLE_RATE, 4.0)[1000 : len(loaded) - 2000]).max() < 0.05


def test_of_several_streams_the_one_with_most_channels() -> None:
    loaded = load_audio(encode("mkv", "flac", rate=SAMPLE_RATE, layouts=("mono", "stereo", "mono")))
    assert np.abs(loaded - tones(SAMPLE_RATE, 3.0, channel=1)).max() < 1e-3


def test_a_stream_may_change_its_format_on_the_way() -> None:
    first = encode("aac", "aac", rate=44100, seconds=1)
    second = encode("aac", "aac", rate=SAMPLE_RATE, seconds=1, layouts=("mono",))
    joined = load_audio(first + second)
    n_first = len(load_audio(first))
    assert len(joined) == n_first + len(load_audio(second))
    assert np.abs(joined[n_first + 3000 : n_first + 12000]).max() > 0.3


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_that_was_streamed_and_never_learnt_its_length(length: int) -> None:
    samples = noise(30_000)
    loaded = load_audio(wav_bytes(samples.tobytes(), 1, 16, length=length))
    np.testing.assert_array_equal(loaded * 32768, samples)


def test_tags_are_not_sound(tmp_path: Path) -> None:
    mp3 = encode("mp3", "libmp3lame")
    for tag in (b"TAG" + bytes(125), b"hello world " * 100):
        n = len(load_audio(mp3 + tag))
        assert 0 <= n - len(load_audio(mp3)) < 1600  # the encoder's padding at most
    wav = wav_bytes(noise(8000).tobytes(), 1, 16)
    artist = b"LIST" + struct.pack("<I", 16) + b"INFOIART" + struct.pack("<I", 4) + b"\xe9\xff\xfe\0"  # not UTF-8
    path = tmp_path / "tagged.wav"
    path.write_bytes(wav[:36] + artist + wav[36:])
    np.testing.assert_array_equal(load_audio(path), load_audio(wav))


def test_recordings_that_packages_bring_decode_as_when_the_golden_transcripts_were_made() -> None:
    golden = json.loads(Path(__file__).parent.joinpath("golden", "base.json").read_text(encoding="utf-8"))
    folders = {
        "moonshine-voice": ("moonshine_voice", "assets"),
        "pytest-audioeval": ("pytest_audioeval", "samples/audio"),
    }
    n_compared = 0
    for clip, digest in {case["clip"]: case["sha256"] for case in golden["cases"]}.items():
        kind, _, name = clip.partition("/")
        package, folder = folders.get(kind, ("", ""))
        spec = importlib.util.find_spec(package) if package else None
        if spec is not None and spec.submodule_search_locations:
            samples = load_audio(Path(spec.submodule_search_locations[0]) / folder / name)
            assert sha256(samples.astype("<f4").tobytes()).hexdigest() == digest, clip
            n_compared += 1
    if not n_compared:
        pytest.skip("no package with recordings is installed")


# What is refused


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *[(name, codec) for name, codec, _ in WHOLE],
        ("oga", "flac"),
        ("au", "pcm_s16be"),
        ("caf", "pcm_s16le"),
        ("avi", "pcm_s16le"),
        ("aac", "aac"),
    ],
)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, name: str, codec: str, kept: float) -> None:
    data = encode(name, codec, rate=48000)
    load_audio(data)
    path = tmp_path / f"cut.{name}"
    path.write_bytes(data[: round(len(data) * kept)])
    refused(path, f"cut.{name}'", "cut short")


def test_wav_cut_between_two_packets_is_refused() -> None:
    data = wav_bytes(noise(40960).tobytes(), 1, 16)
    refused(data[: 44 + 40960], "cut short", "40960 more bytes")


@pytest.mark.parametrize("tag_at", ["MPEG-1 stereo", "MPEG-1 mono", "MPEG-2 stereo", "MPEG-2 mono"])
def test_truncated_mp3_is_refused_by_the_length_in_its_tag(tag_at: str) -> None:
    rate, layout = (44100 if "MPEG-1" in tag_at else 16000), tag_at.split()[1]
    data = encode("mp3", "libmp3lame", rate=rate, layouts=(layout,))
    load_audio(data)
    refused(data[: len(data) // 2], "damaged or cut short", "could be decoded")


@pytest.mark.parametrize(
    ("name", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("m4a", "aac"), ("opus", "libopus")]
)
def test_files_damaged_in_the_middle_are_refused(name: str, codec: str) -> None:
    data = bytearray(encode(name, codec, rate=48000))
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    refused(bytes(data), "damaged or cut short", "of ", "s could be decoded")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    samples = np.zeros(20_000, np.float32)
    samples[16_000] = bad
    refused(samples, f"sample 16000 of the audio array is {bad}")
    refused(samples.astype(np.float64), f"sample 16000 of the audio array is {bad}")
    refused(wav_bytes(samples.astype("<f4").tobytes(), 3, 32), "NaN or infinite samples", "s: expected finite")


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.zeros((100, 2), np.float32), ("shape (100, 2)", "one channel", "mean(axis=1)")),
        (np.zeros((), np.float32), ("shape ()",)),
        (np.zeros(0, np.float32), ("0 samples",)),
        (np.zeros(10, np.int32), ("int32", "float32 or float64 in [-1, 1], or int16")),
        (np.zeros(10, np.float16), ("float16",)),
        (np.zeros(10, np.complex64), ("complex64",)),
        (np.zeros(10, bool), ("bool",)),
        (np.full(10, 12345.0, np.float32), ("reaches 12345", "divide 16-bit samples by 32768")),
        (np.full(10, -32768.0), ("reaches 32768",)),
    ],
)
def test_arrays_that_are_not_samples_are_refused(array: np.ndarray, parts: tuple[str, ...]) -> None:
    refused(array, *parts)


def test_paths_that_are_no_recording_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.wav", "no such file", "nowhere.wav", "check the path")
    refused(tmp_path, "is a directory")
    refused(str(write_wav(tmp_path / "a.wav", noise(10)) / "b.wav"), "cannot be read (Not a directory)")
    for name, content, part in (
        ("empty.wav", b"", "is empty"),
        ("notes.md", b"# Not a recording\n" * 100, "not a recording that FFmpeg can read"),
        ("notes.txt", b"FFmpeg draws text files as video.\n" * 100, "no sound"),
        ("zeros.wav", bytes(5000), "not a recording that FFmpeg can read"),
        ("random.mp3", np.random.default_rng(0).bytes(20_000), "random.mp3'"),
        ("header.wav", wav_bytes(b"", 1, 16), "0 samples were decoded"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        refused(path, f"{name}'", part)


def test_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    path.write_bytes(encode("mp4", "aac", seconds=1, layouts=(), picture=True))
    refused(path, "silent.mp4'", "has no sound", "found only video")


def test_more_channels_than_ffmpeg_knows_how_to_mix_are_refused() -> None:
    refused(wav_bytes(noise(9 * 1000).tobytes(), 1, 16, channels=9), "cannot be mixed down", "9 channels at 16000 Hz")


def test_sources_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    refused([0.0, 0.1], "audio of type list", "expected a path")
    refused(None, "audio of type NoneType")
    refused(io.StringIO("text"), "gives str", "mode 'rb'")
    refused(io.BytesIO(b""), "the audio file object is empty")
    refused(b"RIFF", "the audio given as 4 bytes", "not a recording")


# Sizes


def test_constants_agree() -> None:
    assert N_SAMPLES == CHUNK_LENGTH * SAMPLE_RATE == 480_000
    assert N_FRAMES * HOP_LENGTH == N_SAMPLES
    assert FRAMES_PER_SECOND * HOP_LENGTH == TOKENS_PER_SECOND * N_SAMPLES_PER_TOKEN == SAMPLE_RATE


@pytest.mark.parametrize("n", [1, 479_999, 480_000, 480_001, 1_000_000])
def test_pad_or_trim_samples(n: int) -> None:
    samples = np.arange(1, n + 1, dtype=np.float32)
    fitted = pad_or_trim(samples)
    assert fitted.shape == (N_SAMPLES,)
    assert fitted.dtype == np.float32
    np.testing.assert_array_equal(fitted[:n], samples[:N_SAMPLES])
    assert not fitted[n:].any()


def test_pad_or_trim_along_an_axis() -> None:
    mel = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(pad_or_trim(mel, 2), mel[:, :, :2])
    np.testing.assert_array_equal(pad_or_trim(mel, 2, axis=1), mel[:, :2])
    np.testing.assert_array_equal(pad_or_trim(mel, 5, axis=1), np.concatenate([mel, np.zeros((2, 2, 4))], axis=1))
    assert np.shares_memory(pad_or_trim(mel, 4), mel)

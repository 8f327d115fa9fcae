"""Recordings decoded by a process of its own: the same samples, the same errors, and nobody left behind."""

import os
import subprocess
import sys
import wave
from pathlib import Path
from time import sleep

import numpy as np
import pytest

from max_whisper.media import decode


def write_noise(path: Path, seconds: float) -> str:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-32768, 32768, round(16000 * seconds), np.int16).tobytes())
    return str(path)


def run(code: str, source: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Runs code on `beside`, with what it needs imported, in a process without threads."""
    head = "import os, sys, time\nfrom max_whisper.beside import DecodedBeside\nbeside = DecodedBeside(sys.argv[1])\n"
    return subprocess.run([sys.executable, "-c", head + code, source], input=stdin, capture_output=True, timeout=60)


@pytest.mark.parametrize("seconds", [0.01, 5, 70])  # the last is more than a pipe holds
def test_samples_are_those_of_decode(tmp_path: Path, seconds: float) -> None:
    source = write_noise(tmp_path / "noise.wav", seconds)
    code = "for piece in beside: sys.stdout.buffer.write(piece.tobytes())\nassert 'av' not in sys.modules"
    expected = np.concatenate(list(decode(source))).tobytes()
    for result in (run(code, source), run(code, "-", stdin=Path(source).read_bytes())):
        assert (result.stderr, result.stdout == expected) == (b"", True)


def test_errors_are_those_of_decode(tmp_path: Path) -> None:
    source = tmp_path / "cut.wav"
    write_noise(source, 5)
    source.write_bytes(source.read_bytes()[:-1000])
    code = """if True:
        from max_whisper.errors import AudioError
        try:
            list(beside)
        except AudioError as error:
            print(error)
    """
    with pytest.raises(Exception, match="is cut short: expected at least 1000 more bytes") as expected:
        list(decode(source))
    assert run(code, str(source)).stdout.decode() == f"{expected.value}\n"


@pytest.mark.parametrize("begun", [False, True])
def test_a_process_that_dies_is_an_error(tmp_path: Path, begun: bool) -> None:
    """Once before it has written anything, once when the pipe is full and a piece is not whole."""
    code = f"""if True:
        from max_whisper.errors import AudioError
        pieces = iter(beside)
        if {begun}:
            next(pieces)
            time.sleep(0.5)
        os.kill(beside._child, 9)
        try:
            list(pieces)
        except AudioError as error:
            print(error)
    """
    result = run(code, write_noise(tmp_path / "noise.wav", 70))
    assert b"noise.wav' could not be decoded: the process that did it ended with -9" in result.stdout


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """Even while it waits for more of standard input."""
    os.mkfifo(source := tmp_path / "pipe")
    with open(source, "r+b", buffering=0):  # noqa: PTH123
        code = "print(beside._child, flush=True)\ntime.sleep(0.3)\nos.kill(os.getpid(), 9)"
        child = int(run(code, str(source)).stdout)
        for _ in range(50):
            if not Path(f"/proc/{child}").exists():
                return
            sleep(0.1)
    pytest.fail("the process that decodes is still there")


def test_nobody_is_left_behind(tmp_path: Path) -> None:
    """The process that decodes holds standard error: this would wait for it."""
    assert run("os._exit(3)", write_noise(tmp_path / "noise.wav", 70)).returncode == 3
    code = "list(beside)\ntry: os.waitpid(-1, 0)\nexcept ChildProcessError: print('none')"
    assert run(code, write_noise(tmp_path / "noise.wav", 1)).stdout == b"none\n"

"""The command line: what goes where, what is refused and when; the network is a fake one (`fake_model`)."""

import io
import json
import os
import re
import subprocess
import sys
import wave
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import max_whisper.model
from max_whisper.checkpoint import Checkpoint
from max_whisper.cli import main
from max_whisper.console import TranscriptPrinter
from max_whisper.errors import DeviceError, OutputError
from max_whisper.outputs import Outputs
from tests.fake_model import FakeModel, Script, counting, dimensions, tokenizer_of

TOKENIZER = tokenizer_of("tiny.en")
HELLO, WORLD = TOKENIZER.encode(" Hello"), TOKENIZER.encode(" world.")


def at(seconds: float) -> int:
    return TOKENIZER.timestamp_begin + round(seconds * 50)


SAID = {0: [at(0), *HELLO, at(2), at(2), *WORLD, at(4)], 3000: [at(0), *HELLO, at(1)]}


class Loads:
    """Stands in for `load_model`, and notes what it and the model's `transcribe` were asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.options: list[dict[str, Any]] = []

    def __call__(
        self, checkpoint: Checkpoint, device: str, dtype: str, *, progress: Callable[[str], None]
    ) -> FakeModel:
        name = checkpoint.source.split()[0]  # "tiny.en from ..."
        self.calls.append((name, device, dtype))
        model = FakeModel(name, Script(dimensions(name).n_vocab, TOKENIZER.eot, SAID))
        original = model.transcribe

        def transcribe(audio: np.ndarray, **options: Any) -> Any:
            self.options.append(options)
            return original(audio, **options)

        model.transcribe = transcribe
        return model


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    loads = Loads()
    monkeypatch.setattr(max_whisper.model, "load_model", loads)
    return loads


@pytest.fixture
def recording(tmp_path: Path) -> Callable[..., str]:
    def make(name: str = "talk.wav", seconds: float = 5) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(file), "wb") as out:
            out.setparams((1, 2, 16000, 0, "NONE", ""))
            out.writeframes((counting(seconds) * 32768).astype("<i2").tobytes())
        return str(file)

    return make


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    exit_code: int
    stdout: str
    stderr: str


def invoke(*arguments: str, stdin: bytes = b"") -> Result:
    """Runs the command line in this process."""
    output, error = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin))
    with redirect_stdout(output), redirect_stderr(error), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", given)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
    return Result(ended.value.code, output.getvalue(), error.getvalue())  # type: ignore[arg-type]


def run(*arguments: str, stdin: bytes = b"") -> Result:
    model = () if "--model" in arguments else ("--model", "tiny.en")
    return invoke("transcribe", *model, *arguments, stdin=stdin)


def error_of(result: Result, code: int = 1) -> str:
    """The one line that a failed command says."""
    assert result.exit_code == code
    assert result.stdout == ""
    assert re.fullmatch(r"max-whisper: error: [^\n]+\n", result.stderr)
    return result.stderr


# --- text and files --------------------------------------------------------------------------------------------------


def test_text_goes_to_standard_output(loads: Loads, recording: Callable[..., str], tmp_path: Path) -> None:
    result = run(recording())
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\nworld.\n", "")
    assert loads.calls == [("tiny.en", "cpu", None)]
    assert [file.name for file in tmp_path.iterdir()] == ["talk.wav"]


def test_verbose_adds_times_and_speed(loads: Loads, recording: Callable[..., str]) -> None:
    result = run(recording(), "--verbose")
    assert result.stdout == "[00:00.000 --> 00:02.000] Hello\n[00:02.000 --> 00:04.000] world.\n"
    assert re.search(r"talk\.wav: English, 5\.0 s in \d+\.\d\d s, [\d.]+ times real time\n$", result.stderr)


def test_standard_input(loads: Loads, recording: Callable[..., str], tmp_path: Path) -> None:
    data = Path(recording()).read_bytes()
    assert run("-", stdin=data).stdout == "Hello\nworld.\n"
    run("-", "-f", "txt", "-o", str(tmp_path / "out"), stdin=data)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["stdin.txt"]


def test_several_files_one_of_them_bad(loads: Loads, recording: Callable[..., str], tmp_path: Path) -> None:
    noise = tmp_path / "noise.txt"
    noise.write_text("not a recording")
    good, other, missing = recording("a.wav"), recording("b.wav"), str(tmp_path / "missing.wav")
    result = run(good, str(noise), missing, other, "-o", str(tmp_path / "out"), "-f", "txt")
    assert result.exit_code == 1
    assert result.stdout == f"==> {good} <==\nHello\nworld.\n==> {other} <==\nHello\nworld.\n"
    assert [("missing.wav" in line, "noise.txt" in line) for line in result.stderr.splitlines()] == [
        (True, False),  # found before anything is computed
        (False, True),
    ]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt"]
    assert len(loads.calls) == 1


def test_files_are_written_where_asked(
    loads: Loads, recording: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, out, here = recording(), tmp_path / "new" / "out", tmp_path / "here"
    result = run(talk, "--output-dir", str(out))
    assert (result.exit_code, result.stdout) == (0, "Hello\nworld.\n")
    assert sorted(file.name for file in out.iterdir()) == [
        f"talk.{kind}" for kind in ("json", "srt", "tsv", "txt", "vtt")
    ]
    assert (out / "talk.txt").read_text() == "Hello\nworld.\n"
    data = json.loads((out / "talk.json").read_text())
    assert (data["text"], len(data["segments"]), data["language"]) == (" Hello world.", 2, "en")
    here.mkdir()
    monkeypatch.chdir(here)
    run(talk, "--output-format", "srt")
    assert [file.name for file in here.iterdir()] == ["talk.srt"]
    assert (here / "talk.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:02,000\nHello\n")


def test_options_reach_the_model(loads: Loads, recording: Callable[..., str]) -> None:
    talk = recording()
    run(talk)
    run(
        *(talk, "--initial-prompt", "Names.", "--carry-initial-prompt", "--no-condition-on-previous-text"),
        *("--no-speech-threshold", "none", "--logprob-threshold", "-0.5", "--compression-ratio-threshold", "3"),
        *("--clip-timestamps", "1,2", "--without-timestamps", "--suppress-tokens", "-1,5", "--language", "English"),
        *("--batch-size", "4"),
    )
    usual, special = ({k: v for k, v in options.items() if not callable(v)} for options in loads.options)
    assert usual == {
        "language": None,
        "task": "transcribe",
        "condition_on_previous_text": None,
        "initial_prompt": None,
        "carry_initial_prompt": False,
        "clip_timestamps": "0",
        "batch_size": None,
        "no_speech_threshold": 0.6,
        "logprob_threshold": -1.0,
        "compression_ratio_threshold": 2.4,
        "suppress_tokens": "-1",
        "without_timestamps": False,
    }
    assert special == {
        "language": "English",
        "task": "transcribe",
        "condition_on_previous_text": False,
        "initial_prompt": "Names.",
        "carry_initial_prompt": True,
        "clip_timestamps": "1,2",
        "batch_size": 4,
        "no_speech_threshold": None,
        "logprob_threshold": -0.5,
        "compression_ratio_threshold": 3.0,
        "suppress_tokens": "-1,5",
        "without_timestamps": True,
    }


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--language", "klingon"], "'klingon' is not known"),
        (["--language", "de"], "'de' is not known to this model"),
        (["--task", "translate"], "'translate' is not known to this model"),
        (["--model", "huge"], "unknown model 'huge'"),
        (["--clip-timestamps", "x"], "clip_timestamps is 'x'"),
        (["--suppress-tokens", "x"], "suppress_tokens is 'x'"),
        (["--output-dir", "/dev/null/out"], "cannot write into '/dev/null/out'"),
        (["--dtype", "int4"], "dtype 'int4': expected bfloat16, float16, float32, int8"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--batch-size", "4", "--condition-on-previous-text"], "condition_on_previous_text needs one window after"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_and_no_model_loaded(
    arguments: list[str], message: str, loads: Loads, recording: Callable[..., str]
) -> None:
    assert message in error_of(run(recording(), *arguments))
    assert loads.calls == []


def test_unreadable_recordings(loads: Loads, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello")
    for name in ("empty.wav", "text.wav", "missing.wav", "."):
        file = str(tmp_path / name)
        assert repr(str(Path(file))) in error_of(run(file))
    assert loads.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--task", "sing"],
        ["-f", "doc"],
        ["--logprob-threshold", "x"],
        ["--device", "tpu"],
        ["--beam-size", "5"],
        ["--batch-size", "x"],
    ],
)
def test_wrong_usage(arguments: list[str], loads: Loads, recording: Callable[..., str]) -> None:
    result = run(*arguments, *([recording()] if arguments else []))
    assert (result.exit_code, result.stdout, loads.calls) == (2, "", [])


def test_outputs_do_not_overwrite_each_other(loads: Loads, recording: Callable[..., str], tmp_path: Path) -> None:
    first, second, out = recording("a/x.wav"), recording("b/x.wav"), str(tmp_path / "out")
    message = f"'{out}/x.txt' would be written from {second!r} over the transcript of {first!r}"
    assert message in error_of(run(first, second, "-f", "txt", "-o", out))
    twice = run(first, first, "-f", "txt", "-o", out)
    assert twice.exit_code == 0
    assert "y.txt': rename one" in error_of(run(recording("y.txt"), "-f", "txt", "-o", str(tmp_path)))


def test_a_file_that_cannot_be_written_costs_no_text(
    loads: Loads, recording: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    first, second = recording("a.wav"), recording("b.wav")
    result = run(first, second, "-f", "txt", "-o", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert result.stdout.count("Hello\nworld.\n") == 2
    assert "a.txt' (Is a directory)" in result.stderr
    assert (tmp_path / "out" / "b.txt").read_text() == "Hello\nworld.\n"


def test_errors_of_the_model_end_it_all(recording: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: Any, **__: Any) -> None:
        raise DeviceError("this CPU\nlacks it")

    monkeypatch.setattr(max_whisper.model, "load_model", load_model)
    assert error_of(run(recording())) == "max-whisper: error: this CPU lacks it\n"


def test_interrupted(recording: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(max_whisper.model, "load_model", load_model)
    result = run(recording())
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


# --- build and info --------------------------------------------------------------------------------------------------


def test_build_compiles_for_the_models_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from max_whisper import compiled, packed

    calls, packs = [], []

    def build(
        dims: Any,
        device: str,
        dtype: str,
        *,
        architecture: str | None,
        force: bool,
        progress: Callable[[str], None],
    ) -> Path:
        calls.append((dims, device, dtype, architecture, force))
        progress("compiling ...")
        return Path("/cache/graphs.mef")

    monkeypatch.setattr(compiled, "build", build)

    def pack(checkpoint: Any, dtype: str, say: Callable[[str], None], *, device: str) -> None:
        packs.append((checkpoint.dims, dtype, device))

    monkeypatch.setattr(packed, "load", pack)
    for arguments, force in ((["--model", "tiny.en"], False), (["-m", "tiny.en", "--force"], True)):
        result = invoke("build", *arguments)
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == "max-whisper: compiling ...\nmax-whisper: the graphs of tiny.en are in /cache\n"
        assert calls.pop() == (dimensions("tiny.en"), "cpu", "float16", None, force)
        assert packs.pop() == (dimensions("tiny.en"), "float16", "cpu")
    assert invoke("build", "--model", "huge").exit_code == 1


def test_info(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAX_WHISPER_CACHE", str(tmp_path))
    result = invoke("info")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["versions", "target", "models", "cache"]
    assert any(line.split() == ["max", version("max")] for line in lines)
    assert any(re.match(r"  tiny\.en  +\d+ MB in ", line) for line in lines)
    assert lines[-1] == f"  {tmp_path}  0 compiled models"


# --- the process -----------------------------------------------------------------------------------------------------


def test_help() -> None:
    for arguments in (["--help"], ["transcribe", "-h"], ["build", "-h"], ["info", "--help"]):
        result = invoke(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("usage: ")


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "max_whisper", "--version"], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == (f"max-whisper {version('max-whisper')}\n", "")


def test_the_command_imports_little() -> None:
    """Each of these costs tens of milliseconds that a short recording would notice."""
    code = "import sys, max_whisper.cli; print({'rich', 'numpy', 'av', 'max', 'importlib.metadata'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_a_transcription_imports_only_what_runs_it(recording: Callable[..., str]) -> None:
    """The graph builder, tiktoken, FFmpeg and the hub's client would make every start half a second longer."""
    code = """if True:
        import sys
        import max_whisper.recording
        from max_whisper import cli

        def interrupt(_):  # MAX is loaded by now, the recording decoded by another process
            raise KeyboardInterrupt

        max_whisper.recording.SpooledRecording = interrupt
        try:
            cli.main()
        except SystemExit as end:
            heavy = {"av", "max.engine", "max.graph", "asyncio", "tiktoken", "huggingface_hub", "importlib.metadata"}
            print(end.code, "max" in sys.modules, sorted(heavy & set(sys.modules)))
    """
    command = [sys.executable, "-c", code, "transcribe", "--model", "tiny.en", recording()]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("130 True []\n", "")


def test_a_reader_that_stops_reading_is_no_error() -> None:
    """`max-whisper transcribe talk.wav | head -1`."""
    code = "import sys, max_whisper.cli as cli; cli.info = lambda _: print('line\\n' * 100_000); cli.main(['info'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def buffered(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with what it prints buffered, as it is unless somebody asked for something else."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("arguments", [["--help"], ["transcribe", "--help"]])
def test_what_is_printed_arrives_before_the_process_ends(arguments: list[str]) -> None:
    """The process ends without Python's usual cleaning up."""
    result = buffered("-m", "max_whisper", *arguments)
    assert result.returncode == 0
    assert result.stdout.startswith("usage: max-whisper")
    assert result.stdout.endswith("\n")


def test_text_before_an_error_arrives() -> None:
    code = """if True:
        import max_whisper.cli as cli
        from max_whisper.errors import AudioError
        def info(_):
            print("the first file")
            raise AudioError("the second")
        cli.info = info
        import sys
        sys.argv = ["max-whisper", "info"]
        cli.run()
    """
    result = buffered("-c", code)
    assert (result.returncode, result.stdout) == (1, "the first file\n")
    assert result.stderr == "max-whisper: error: the second\n"


@pytest.mark.parametrize("arguments", ["--version", "info"])
def test_a_full_disk_behind_standard_output_is_one_line(arguments: str) -> None:
    command = f"exec {sys.executable} -m max_whisper {arguments} > /dev/full"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert re.fullmatch(r"max-whisper: error: cannot write to standard output \(No space left.*\n", result.stderr)


def test_standard_streams_may_be_closed() -> None:
    """As they are for what some supervisors start."""
    command = f"exec {sys.executable} -m max_whisper --version >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    code = "import max_whisper.media as media; list(media.decode('-'))"
    for redirection, message in (
        ("<&-", "standard input, which is closed"),
        ("0>/dev/null", "standard input cannot be"),
    ):
        command = f'exec {sys.executable} -c "{code}" {redirection}'
        result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert message in result.stderr.splitlines()[-1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_on_a_terminal_only_for_more_than_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    segment: Any = {"start": 0.0, "end": 1.0, "text": " Hello"}
    for steps, shows in (([(500, 500)], False), ([(3000, 9000), (6000, 9000), (9000, 9000)], True)):
        error, out = Terminal(), io.StringIO()
        monkeypatch.setattr(sys, "stderr", error)
        monkeypatch.setattr(sys, "stdout", out)
        with TranscriptPrinter("talk.wav", times=False) as printer:
            for step in steps:
                printer.segment(segment)
                printer.progress(*step)
        assert ("talk.wav" in error.getvalue()) == shows
        assert out.getvalue() == "Hello\n" * len(steps)


def test_outputs_are_tried_before(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write into"):
        Outputs("txt", Path("/proc/nowhere"), ["a.wav"])
    Outputs(None, None, ["a.wav"]).write({"text": "", "segments": [], "language": "en"}, "a.wav")
    assert list(tmp_path.iterdir()) == []

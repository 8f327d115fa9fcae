"""The command line: `max-whisper transcribe`, `build` and `info`.

What takes time to import is imported where it is used.
"""

import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from max_whisper.console import TranscriptPrinter, complain, say
from max_whisper.errors import AudioError, OutputError, WhisperError

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(
    name="max-whisper",
    help="Speech to text with Whisper, from Mojo kernels on MAX graphs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: Rich's tables cut long option names
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command line; ends the process with 0, 1 after an error, 2 after wrong usage, 130 if interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="replace")  # an encoding that lacks a character is no reason to lose the text
    app()


@contextmanager
def _errors_as_lines() -> Iterator[None]:
    try:
        yield
    except WhisperError as error:
        complain(error)
        raise typer.Exit(1) from None


def _number_or_none(value: str | float) -> float | None:
    """Reads an option's value; Typer passes its default, a number, through here too."""
    try:
        return None if value in ("none", "None") else float(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a number nor none") from None


def _threshold(help: str) -> Any:
    return typer.Option(parser=_number_or_none, metavar="NUMBER|none", help=help)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"max-whisper {version('max-whisper')}")
        raise typer.Exit


Model = Annotated[str, typer.Option("--model", "-m", help="Name, folder or hub id of a Whisper checkpoint.")]
Device = Annotated[Literal["cpu", "gpu", "auto"], typer.Option(help="Where to compute.")]
Dtype = Annotated[str, typer.Option(help="Number format to compute in.")]


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def transcribe(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Recordings; - is standard input.")],
    model: Model = "base",
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="Code or name of the language; detected if not given.")
    ] = None,
    task: Annotated[
        Literal["transcribe", "translate"], typer.Option(help="Write what is said, or its English translation.")
    ] = "transcribe",
    output_format: Annotated[
        Literal["txt", "json", "srt", "vtt", "tsv", "all"] | None,
        typer.Option("--output-format", "-f", help="Also write a file of this format, into --output-dir or here."),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Also write files into this folder; all formats if none is given."),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print times with the text, and how long it took.")
    ] = False,
    initial_prompt: Annotated[
        str | None, typer.Option(help="Text to prompt the first window with: names, spelling, style.")
    ] = None,
    carry_initial_prompt: Annotated[
        bool, typer.Option("--carry-initial-prompt", help="Prompt every window with --initial-prompt.")
    ] = False,
    condition_on_previous_text: Annotated[
        bool, typer.Option(help="Prompt each window with what was said before.")
    ] = True,
    without_timestamps: Annotated[
        bool, typer.Option("--without-timestamps", help="Let the model write text only: segments of 30 s.")
    ] = False,
    clip_timestamps: Annotated[
        str, typer.Option(help="Stretches to transcribe: start,end,start,... in seconds; the last end may be left out.")
    ] = "0",
    no_speech_threshold: Annotated[
        float | None, _threshold("Skip windows where it is likelier than this that nobody speaks ...")
    ] = 0.6,
    logprob_threshold: Annotated[
        float | None, _threshold("... unless their text has a higher mean log probability than this.")
    ] = -1.0,
    compression_ratio_threshold: Annotated[
        float | None, _threshold("As in openai-whisper; no effect while only temperature 0 is there.")
    ] = 2.4,
    suppress_tokens: Annotated[
        str, typer.Option(help="Token ids never to write, separated by commas; -1: symbols nobody speaks.")
    ] = "-1",
) -> None:
    """Print what is said in recordings.

    With --output-format or --output-dir it is also written to files, named after the recordings.
    """
    with _errors_as_lines():
        from max_whisper.audio import SAMPLE_RATE
        from max_whisper.checkpoint import load_checkpoint
        from max_whisper.options import decoding_options, parse_clips
        from max_whisper.outputs import Outputs
        from max_whisper.target import check_device
        from max_whisper.tokenizer import get_tokenizer

        settings: dict[str, Any] = {
            "language": language,
            "task": task,
            "suppress_tokens": suppress_tokens,
            "without_timestamps": without_timestamps,
        }
        decoding_options(**settings)
        parse_clips(clip_timestamps)
        check_device(device, dtype)
        outputs = Outputs(output_format, output_dir, files)
        checkpoint = load_checkpoint(model)
        get_tokenizer(checkpoint.vocabulary, language=language, task=task)  # refuses what it does not know
        failed: list[str] = []
        recordings = _recordings([file for file in files if _is_there(file, failed)], failed)
        first = next(recordings, None)  # nothing is compiled for a recording that cannot be read
        if first is None:
            raise typer.Exit(1)

        from max_whisper.model import load_model

        whisper = load_model(checkpoint, device, dtype, progress=say)
        for file, samples in chain([first], recordings):
            if len(files) > 1:
                print(f"==> {file} <==", flush=True)
            began = perf_counter()
            with TranscriptPrinter(file, times=verbose) as printer:
                result = whisper.transcribe(
                    samples,
                    condition_on_previous_text=condition_on_previous_text,
                    initial_prompt=initial_prompt,
                    carry_initial_prompt=carry_initial_prompt,
                    clip_timestamps=clip_timestamps,
                    no_speech_threshold=no_speech_threshold,
                    logprob_threshold=logprob_threshold,
                    compression_ratio_threshold=compression_ratio_threshold,
                    on_segment=printer.segment,
                    on_progress=printer.progress,
                    **settings,
                )
            if verbose:
                _say_speed(file, result["language"], len(samples) / SAMPLE_RATE, perf_counter() - began)
            try:
                outputs.write(result, file)
            except OutputError as error:
                complain(error)
                failed.append(file)
        if failed:
            raise typer.Exit(1)


def _is_there(file: str, failed: list[str]) -> bool:
    """Tells whether a file can be opened at all; complains and notes it if not."""
    try:
        if file != "-" and stat.S_ISREG(Path(file).stat().st_mode):
            Path(file).open("rb").close()
    except OSError as error:
        complain(AudioError(f"{file!r} cannot be read ({error.strerror}): expected an audio or video file"))
        failed.append(file)
        return False
    return True


def _recordings(files: Iterable[str], failed: list[str]) -> "Iterator[tuple[str, np.ndarray]]":
    """Decodes one file after the other; complains about those that cannot be decoded, notes them and goes on."""
    from max_whisper.audio import load_audio

    for file in files:
        try:
            yield file, load_audio(file)
        except AudioError as error:
            complain(error)
            failed.append(file)


def _say_speed(file: str, language: str, length: float, took: float) -> None:
    from max_whisper.tokenizer import LANGUAGES

    speed = f"{length:.1f} s in {took:.2f} s, {length / took:.1f} times real time"
    say(f"{file}: {LANGUAGES[language].title()}, {speed}")


@app.command()
def build(
    model: Model = "base",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    force: Annotated[bool, typer.Option("--force", help="Compile again what the cache already holds.")] = False,
) -> None:
    """Compile a model's graphs ahead of time.

    The first transcription with a model does it otherwise; both keep what they compiled in the cache.
    """
    with _errors_as_lines():
        from max_whisper import compiled, packed
        from max_whisper.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(model)
        graphs = compiled.build(checkpoint.dims, device, dtype, force=force, progress=say)
        packed.load(checkpoint, dtype, say)
        say(f"the graphs of {model} are in {graphs.parent}")


@app.command()
def info() -> None:
    """Print versions, devices, models and cache."""
    with _errors_as_lines():
        import platform
        from importlib.metadata import version

        from max_whisper import compiled, target
        from max_whisper.cache import cache_dir
        from max_whisper.checkpoint import find_models

        packages = ("max-whisper", "max", "mojo", "numpy", "av")
        sections: dict[str, dict[str, str]] = {
            "versions": {**{name: version(name) for name in packages}, "python": platform.python_version()},
            "target": target.describe(),
            "models": {model.name: f"{model.size / 1e6:.0f} MB in {model.where}" for model in find_models()},
            "cache": {str(cache_dir()): f"{len(compiled.entries())} compiled models"},
        }
        for title, rows in sections.items():
            print(title)
            width = max(map(len, rows), default=0)
            for name, value in rows.items() or {"none": ""}.items():
                print(f"  {name:{width}}  {value}".rstrip())

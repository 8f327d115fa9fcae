"""The command line: `max-whisper transcribe`, `build` and `info`.

Every start pays for what is imported before the first word is printed. So the parser is the standard library's, and what
takes time to import is imported where it is used.
"""

import gc
import math
import os
import stat
import sys
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from max_whisper.console import TranscriptPrinter, complain, interrupts_held, say, show, silence_output, writing_output
from max_whisper.errors import AudioError, OutputError, WhisperError

if TYPE_CHECKING:
    from max_whisper.beside import DecodedBeside
    from max_whisper.recording import Recording

INTERRUPTED = 130  # what shells answer for a process that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; ends the process with 0, 1 after an error, 2 after wrong usage, 130 if interrupted.

    Args:
        arguments: What stands behind the command's name; the process's own if None.
    """
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="replace")  # an encoding that lacks a character is no reason to lose the text
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start threads at import, for packing weights only
    options = _parser().parse_args(_with_values_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        code = options.command(options)
        with writing_output():
            _flush()
    except WhisperError as error:
        complain(error)
        code = 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # whoever reads the text has seen enough
        silence_output()
        code = 1
    sys.exit(code)


def run() -> NoReturn:
    """`main` for a process that does nothing else: it ends at once, as taking MAX's libraries apart takes 0.15 s.

    Importing makes a hundred thousand objects and no garbage; looking for it after every 700 of them took 40 ms.
    """
    gc.set_threshold(100_000)
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        with suppress(BrokenPipeError):
            _flush()
        os._exit(end.code)
    raise AssertionError("main() ends the process")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream:  # a process may be started without
            stream.flush()


# --- options ---------------------------------------------------------------------------------------------------------


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="max-whisper",
        description="Speech to text with Whisper, from Mojo kernels on MAX graphs.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=lambda options: _print_version() if options.version else _print_help(parser))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Any, help: str, more: str = "") -> ArgumentParser:
        added = commands.add_parser(name, help=help, description=f"{help}. {more}", allow_abbrev=False)
        added.set_defaults(command=run)
        return added

    _add_transcribe_options(
        command(
            "transcribe",
            transcribe,
            "Print what is said in recordings",
            "With --output-format or --output-dir it is also written to files, named after the recordings.",
        )
    )
    build_parser = command(
        "build",
        build,
        "Compile a model's graphs ahead of time",
        "The first transcription with a model does it otherwise; both keep what they compiled in the cache.",
    )
    _add_model_options(build_parser)
    build_parser.add_argument(
        "--target", help="GPU architecture to build for, here or not: sm_80, sm_89, sm_90, gfx942 ..."
    )
    build_parser.add_argument(
        "--output", metavar="FOLDER", help="cache to build into, to be used elsewhere as its cache"
    )
    build_parser.add_argument("--force", action="store_true", help="compile again what the cache already holds")
    command("info", info, "Print versions, devices, models and cache")
    return parser


def _add_model_options(parser: ArgumentParser) -> None:
    parser.add_argument("--model", "-m", default="base", help="name, folder or hub id of a checkpoint (%(default)s)")
    parser.add_argument(
        "--device", choices=["cpu", "gpu", "auto"], default="cpu", help="where to compute (%(default)s)"
    )
    parser.add_argument("--dtype", help="number format of the weights (the default rounds nothing on a CPU)")


def _add_transcribe_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="recordings; - is standard input")
    _add_model_options(parser)
    add("--language", "-l", help="code or name of the language; detected if not given")
    add(
        "--task",
        choices=["transcribe", "translate"],
        default="transcribe",
        help="write what is said, or its English translation (%(default)s)",
    )
    add(
        "--output-format",
        "-f",
        choices=["txt", "json", "srt", "vtt", "tsv", "all"],
        help="also write a file of this format, into --output-dir or here",
    )
    add("--output-dir", "-o", type=Path, help="also write files into this folder; all formats if none is given")
    add("--verbose", "-v", action="store_true", help="print times with the text, and how long it took")
    add("--initial-prompt", metavar="TEXT", help="text to prompt the first window with: names, spelling, style")
    add("--carry-initial-prompt", action="store_true", help="prompt every window with --initial-prompt")
    add(
        "--condition-on-previous-text",
        action=BooleanOptionalAction,
        help="prompt each window with what was said before; as if given, unless there is a --batch-size",
    )
    add("--batch-size", type=int, metavar="N", help="cut at pauses and transcribe N windows together, which is faster")
    add("--without-timestamps", action="store_true", help="let the model write text only: segments of 30 s")
    add(
        "--clip-timestamps",
        default="0",
        metavar="SECONDS,...",
        help="stretches to transcribe: start,end,start,... in seconds; the last end may be left out",
    )
    for name, default, help in (
        ("no-speech", 0.6, "skip windows where it is likelier than this that nobody speaks ..."),
        ("logprob", -1.0, "... unless their text has a higher mean log probability than this"),
        ("compression-ratio", 2.4, "as in openai-whisper; no effect while only temperature 0 is there"),
    ):
        add(f"--{name}-threshold", type=_number_or_none, default=default, metavar="NUMBER|none", help=help)
    add(
        "--suppress-tokens",
        default="-1",
        metavar="IDS",
        help="token ids never to write, separated by commas; -1: symbols nobody speaks",
    )


def _number_or_none(value: str) -> float | None:
    try:
        number = None if value in ("none", "None") else float(value)
    except ValueError:
        number = math.nan
    if number is not None and math.isnan(number):
        raise ArgumentTypeError(f"{value!r} is neither a number nor none")
    return number


_MAY_BEGIN_WITH_A_DASH = {
    "--suppress-tokens",
    "--clip-timestamps",
    "--no-speech-threshold",
    "--logprob-threshold",
    "--compression-ratio-threshold",
}


def _with_values_joined(arguments: Sequence[str]) -> list[str]:
    """Writes `--suppress-tokens -1,5` as one argument: argparse takes what begins with a dash for another option."""
    result: list[str] = []
    for argument in arguments:
        if result and result[-1] in _MAY_BEGIN_WITH_A_DASH:
            result[-1] += f"={argument}"
        else:
            result.append(argument)
    return result


def _print_help(parser: ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return 2


def _print_version() -> int:
    from importlib.metadata import version

    show(f"max-whisper {version('max-whisper')}")
    return 0


# --- transcribe ------------------------------------------------------------------------------------------------------


def transcribe(options: Namespace) -> int:
    """Prints what is said in recordings, and writes it to files where asked."""
    from max_whisper.beside import DecodedBeside
    from max_whisper.checkpoint import load_checkpoint
    from max_whisper.options import check_batching, decoding_options, parse_clips
    from max_whisper.outputs import Outputs
    from max_whisper.target import choose
    from max_whisper.tokenizer import get_tokenizer

    settings: dict[str, Any] = {
        "language": options.language,
        "task": options.task,
        "suppress_tokens": options.suppress_tokens,
        "without_timestamps": options.without_timestamps,
    }
    decoding_options(**settings)
    parse_clips(options.clip_timestamps)
    check_batching(options.batch_size, options.condition_on_previous_text)
    choose(options.device, options.dtype)
    outputs = Outputs(options.output_format, options.output_dir, options.files)
    checkpoint = load_checkpoint(options.model)
    get_tokenizer(checkpoint.vocabulary, language=options.language, task=options.task)  # refuses what it does not know
    failed: list[str] = []
    files = [file for file in options.files if _is_there(file, failed)]
    # Where MAX is loaded already there is nothing to do meanwhile, and threads that a copy of the process would lack.
    beside = DecodedBeside(files[0]) if files and "max" not in sys.modules else None

    with interrupts_held():
        from max_whisper.model import load_model  # loads MAX's libraries, meanwhile

    recordings = _recordings(files, beside, failed)
    first = next(recordings, None)  # nothing is compiled for a recording that cannot be read
    if first is None:
        return 1

    whisper = load_model(checkpoint, options.device, options.dtype, progress=say)
    for file, recording in chain([first], recordings):
        if len(options.files) > 1:
            show(f"==> {file} <==")
        began = perf_counter()
        with TranscriptPrinter(file, times=options.verbose) as printer:
            result = whisper.transcribe(
                recording,
                condition_on_previous_text=options.condition_on_previous_text,
                initial_prompt=options.initial_prompt,
                carry_initial_prompt=options.carry_initial_prompt,
                clip_timestamps=options.clip_timestamps,
                batch_size=options.batch_size,
                no_speech_threshold=options.no_speech_threshold,
                logprob_threshold=options.logprob_threshold,
                compression_ratio_threshold=options.compression_ratio_threshold,
                on_segment=printer.segment,
                on_progress=printer.progress,
                **settings,
            )
        if options.verbose:
            _say_speed(file, result["language"], recording.seconds, perf_counter() - began)
        recording.close()
        try:
            outputs.write(result, file)
        except OutputError as error:
            complain(error)
            failed.append(file)
    return 1 if failed else 0


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


def _recordings(
    files: Iterable[str], beside: "DecodedBeside | None", failed: list[str]
) -> "Iterator[tuple[str, Recording]]":
    """Decodes one file after the other; complains about those that cannot be decoded, notes them and goes on.

    Args:
        files: The files.
        beside: The first one, if it is being decoded already.
        failed: Receives those that cannot be decoded.
    """
    from max_whisper.recording import SpooledRecording, open_recording

    for file in files:
        try:
            yield file, SpooledRecording(beside) if beside else open_recording(file)
        except AudioError as error:
            complain(error)
            failed.append(file)
        beside = None


def _say_speed(file: str, language: str, length: float, took: float) -> None:
    from max_whisper.tokenizer import LANGUAGES

    speed = f"{length:.1f} s in {took:.2f} s, {length / took:.1f} times real time"
    say(f"{file}: {LANGUAGES[language].title()}, {speed}")


# --- build and info --------------------------------------------------------------------------------------------------


def build(options: Namespace) -> int:
    """Compiles a model's graphs ahead of time."""
    from max_whisper import compiled, packed, target
    from max_whisper.cache import CACHE_VARIABLE
    from max_whisper.checkpoint import load_checkpoint

    if options.target:
        device, dtype = target.choose_target(options.target, options.dtype)
        checkpoint = load_checkpoint(options.model)
    else:
        target.choose(options.device, options.dtype)
        checkpoint = load_checkpoint(options.model)
        device, dtype = target.choose(options.device, options.dtype, checkpoint.dtype)
    if options.output:
        os.environ[CACHE_VARIABLE] = options.output
    packed.load(checkpoint, dtype, say, device=device)
    graphs = compiled.build(
        checkpoint.dims, device, dtype, architecture=options.target, force=options.force, progress=say
    )
    say(f"the graphs of {options.model} are in {graphs.parent}")
    return 0


def info(_: Namespace) -> int:
    """Prints versions, devices, models and cache."""
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
        show(title)
        width = max(map(len, rows), default=0)
        for name, value in rows.items() or {"none": ""}.items():
            show(f"  {name:{width}}  {value}".rstrip())
    return 0

"""Where transcripts are written: planned and tried before anything is computed, so that nothing is lost afterwards."""

from collections.abc import Sequence
from pathlib import Path

from max_whisper.errors import OptionError
from max_whisper.writers import WRITERS, Result, check_output_dir, output_stem, write_file

STANDARD_INPUT = "stdin"
"""What files are called that hold the transcript of standard input."""


class Outputs:
    """The files that the transcripts of some recordings go to, named after these.

    Args:
        output_format: One of the writers' formats, or "all"; None for all if there is a folder, for no files if not.
        folder: Where to write, made if it is missing; None for the current folder.
        recordings: The recordings' paths; "-" for standard input.

    Raises:
        OptionError: Two recordings would be written to the same file, or one over a recording.
        OutputError: The folder cannot be made or written to.
    """

    def __init__(self, output_format: str | None, folder: Path | None, recordings: Sequence[str]) -> None:
        self._files: dict[str, dict[str, Path]] = {}
        if output_format is None and folder is None:
            return
        formats = list(WRITERS) if output_format in (None, "all") else [output_format]
        folder = folder or Path()
        taken = {Path(recording).resolve(): repr(recording) for recording in recordings if recording != "-"}
        for recording in dict.fromkeys(recordings):
            stem = STANDARD_INPUT if recording == "-" else output_stem(recording)
            self._files[recording] = {name: folder / f"{stem}.{name}" for name in formats}
            for file in self._files[recording].values():
                if other := taken.get(file.resolve()):
                    raise OptionError(f"{str(file)!r} would be written from {recording!r} over {other}: rename one")
                taken[file.resolve()] = f"the transcript of {recording!r}"
        check_output_dir(folder)

    def write(self, result: Result, recording: str) -> None:
        """Writes one transcript, if any are to be written.

        Raises:
            OutputError: A file cannot be written.
        """
        for name, file in self._files.get(recording, {}).items():
            write_file(result, file, name)

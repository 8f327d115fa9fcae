"""A recording's samples in so little memory that hours cost no more than seconds.

A transcript needs the samples twice: features are clamped relative to the loudest spot of the whole recording, so that it
has to be heard to its end before the first window is ready. What FFmpeg decodes is 16-bit samples; they wait in a
temporary file (32 kB per second of sound; short recordings stay in memory), from where windows are read.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Self

import numpy as np

from max_whisper.audio import SAMPLE_RATE, as_floats, check_samples
from max_whisper.errors import AudioError

IN_MEMORY = 8 * 2**20  # bytes: four minutes


class Recording:
    """Samples at 16 kHz, read a stretch at a time.

    Attributes:
        n_samples: How many there are.
    """

    n_samples: int

    def read(self, begin: int, end: int) -> np.ndarray:
        """Gives samples `begin` to `end`, as far as there are so many, as float32 in [-1, 1]."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of what it keeps; reading is over."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.n_samples / SAMPLE_RATE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ArrayRecording(Recording):
    """Samples that are in memory anyway: float32 in [-1, 1] or int16."""

    def __init__(self, samples: np.ndarray) -> None:
        self._samples, self.n_samples = samples, len(samples)

    def read(self, begin: int, end: int) -> np.ndarray:
        """See `Recording`."""
        return as_floats(self._samples[begin:end])


class SpooledRecording(Recording):
    """Decoded samples in a temporary file.

    Args:
        pieces: The samples, int16, piece by piece.

    Raises:
        AudioError: The temporary file cannot be written.
    """

    def __init__(self, pieces: Iterable[np.ndarray]) -> None:
        self._file: BinaryIO = tempfile.SpooledTemporaryFile(IN_MEMORY)  # type: ignore[assignment]  # noqa: SIM115
        try:
            for piece in pieces:
                with _making_room():
                    self._file.write(piece.tobytes())
            with _making_room():
                self._file.flush()
        except BaseException:
            with suppress(OSError):  # it tries once more to write what did not fit
                self._file.close()
            raise
        self.n_samples = self._file.tell() // 2

    def read(self, begin: int, end: int) -> np.ndarray:
        """See `Recording`."""
        self._file.seek(2 * begin)
        return as_floats(np.frombuffer(self._file.read(2 * max(0, end - begin)), np.int16))

    def close(self) -> None:
        """See `Recording`."""
        self._file.close()


@contextmanager
def _making_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AudioError(
            f"the decoded samples cannot be kept in a temporary file ({error.strerror}): they take 32 kB per second of "
            "sound; set TMPDIR to a folder with more room"
        ) from None


def open_recording(source: Any) -> Recording:
    """Decodes a recording, whole, to be read stretch by stretch.

    Args:
        source: What `load_audio` takes, or a recording, which is returned as it is.

    Raises:
        AudioError: As `load_audio`; or there is no room for the samples.
    """
    if isinstance(source, Recording):
        return source
    if isinstance(source, np.ndarray):
        return ArrayRecording(check_samples(source))
    from max_whisper.media import decode

    return SpooledRecording(decode(source))

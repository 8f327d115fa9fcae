"""A recording is decoded by a process of its own, while this one loads MAX and a model.

Loading FFmpeg's libraries and decoding take 0.12 s of a core, loading MAX's and a model 0.2 s: side by side they take no
longer than the latter, and this process never holds the former. The samples come through a pipe:

    length | samples, int16        piece by piece
    END
    FAILED | what went wrong       instead of END
"""

import ctypes
import fcntl
import os
import signal
import struct
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from max_whisper.errors import AudioError

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_LENGTH = struct.Struct("<i")
_END, _FAILED = 0, -1
_PIPE_BYTES = 2**20
"""As much as Linux lets a pipe hold, 32 s of sound, to be decoded before somebody reads it."""


class DecodedBeside:
    """The samples of a recording, as `media.decode` gives them; to be gone through once.

    The new process begins as a copy of this one, so it is to be started before this one has threads: MAX's, above all.

    Args:
        source: A path, or "-" for standard input.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._read, write = os.pipe()
        if sys.platform == "linux":
            with suppress(PermissionError):  # who has many pipes may have only small ones
                fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._child = os.fork()
        if self._child == 0:
            os.close(self._read)  # else it would wait for itself to read when its parent is gone
            _be_the_child(source, write)
        os.close(write)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Gives the samples, int16, piece by piece.

        Raises:
            AudioError: As `media.decode`; or the process ended before it was done.
        """
        with os.fdopen(self._read, "rb") as pipe:
            while len(length := pipe.read(_LENGTH.size)) == _LENGTH.size:
                (n_bytes,) = _LENGTH.unpack(length)
                if n_bytes == _FAILED:
                    raise AudioError(pipe.read().decode())
                if n_bytes == _END:
                    os.waitpid(self._child, 0)
                    return
                piece = pipe.read(n_bytes)
                if len(piece) < n_bytes:
                    break
                yield np.frombuffer(piece, np.int16)
        _, status = os.waitpid(self._child, 0)
        raise AudioError(
            f"{self._source!r} could not be decoded: the process that did it ended with {os.waitstatus_to_exitcode(status)}"
            " (negative: the number of the signal that ended it); convert it first, e.g. to flac"
        )


def _end_with_the_parent() -> None:
    """Asks to be ended when the parent is: who waits for standard input would not notice by itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _be_the_child(source: str, write: int) -> None:
    """Decodes into the pipe and ends this process, without anything that its parent left it to do at its end."""
    code = 1
    try:
        _end_with_the_parent()
        from max_whisper.media import decode

        with os.fdopen(write, "wb") as pipe:
            try:
                for piece in decode(source):
                    pipe.write(_LENGTH.pack(piece.nbytes))
                    pipe.write(piece.data)
                pipe.write(_LENGTH.pack(_END))
            except AudioError as error:
                pipe.write(_LENGTH.pack(_FAILED) + str(error).encode())
        code = 0
    except (KeyboardInterrupt, BrokenPipeError):  # the parent says so, or is gone
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

"""Where this package keeps what it can make again: compiled graphs, packed weights, stamps of verified files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from max_whisper.errors import OutputError

CACHE_VARIABLE = "MAX_WHISPER_CACHE"
"""Environment variable that moves the cache elsewhere."""


def cache_dir() -> Path:
    """The cache's folder: `$MAX_WHISPER_CACHE`, or the user's cache folder of the operating system."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_path("max-whisper"))


@contextmanager
def writing() -> Iterator[None]:
    """Around what writes into the cache.

    Raises:
        OutputError: It cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write into the cache {str(cache_dir())!r} ({error.strerror}): make room, or set {CACHE_VARIABLE} to a "
            "folder that can be written to"
        ) from error

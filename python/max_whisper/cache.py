"""Where this package keeps what it can make again: compiled graphs, packed weights, stamps of verified files."""

import os
from pathlib import Path

from platformdirs import user_cache_path

CACHE_VARIABLE = "MAX_WHISPER_CACHE"
"""Environment variable that moves the cache elsewhere."""


def cache_dir() -> Path:
    """The cache's folder: `$MAX_WHISPER_CACHE`, or the user's cache folder of the operating system."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_path("max-whisper"))

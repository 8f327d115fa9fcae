"""Weight files of packages have the content that was pinned; how that is looked up is the cache's (`cache.has_digest`)."""

from pathlib import Path

from max_whisper import cache
from max_whisper.errors import CheckpointError


def is_verified(path: Path, sha256: str) -> bool:
    """Tells whether a file was found to have the expected content before, and has not been touched since."""
    try:
        return cache.is_stamped(path, sha256)
    except OSError:
        return False


def verify(path: Path, sha256: str) -> None:
    """Checks that a file has the expected content.

    Args:
        path: The file.
        sha256: Expected digest, hexadecimal.

    Raises:
        CheckpointError: The file cannot be read, or has another digest.
    """
    try:
        if not cache.has_digest(path, sha256):
            raise CheckpointError(
                f"{path} has SHA-256 {cache.file_digest(path)}, expected {sha256}: reinstall the package it belongs to"
            )
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error

"""SHA-256 of weight files, computed once per file: hashing 145 MB takes longer than everything else at start.

A file that has the expected digest leaves an empty stamp in the user's cache directory. The stamp's name is a digest
over the file's path, size, time of modification and expected content, so whatever changes, the file is checked again.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from max_whisper.cache import cache_dir
from max_whisper.errors import CheckpointError


def is_verified(path: Path, sha256: str) -> bool:
    """Tells whether a file was found to have the expected content before, and has not been touched since."""
    try:
        return _stamp(path, sha256).exists()
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
        stamp = _stamp(path, sha256)
        if stamp.exists():
            return
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if found != sha256:
        raise CheckpointError(f"{path} has SHA-256 {found}, expected {sha256}: reinstall the package it belongs to")
    with suppress(OSError):  # without a writable cache directory, the next start computes the digest again
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


def _stamp(path: Path, sha256: str) -> Path:
    state = path.stat()
    identity = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{sha256}"
    return cache_dir() / "verified" / hashlib.sha256(identity.encode()).hexdigest()

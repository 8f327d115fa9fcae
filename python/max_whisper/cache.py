"""Where this package keeps what it can make again: parsed kernels, compiled graphs, packed weights, stamps of files.

An entry is a folder named after everything that its file depends on. It holds the file and a manifest with its digest; what
does not match the manifest is made anew, never trusted. It is made in a folder of its own, reaches the disk and is moved to
its place at the end: neither two processes that make it at once nor a power cut leave half of one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from max_whisper.errors import OutputError

CACHE_VARIABLE = "MAX_WHISPER_CACHE"
"""Environment variable that moves the cache elsewhere."""

MANIFEST = "manifest.json"


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


def entry(
    kind: str, name: str, identity: Mapping[str, object], make: Callable[[Path], None], *, force: bool = False
) -> Path:
    """Returns a file of the cache; makes it if the cache has none that is whole.

    Args:
        kind: Folder of the cache.
        name: What the file is called.
        identity: All that the file depends on.
        make: Writes the file.
        force: Make it even if the cache has it.

    Raises:
        OutputError: The cache cannot be written to.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = cache_dir() / kind / digest[:32]
    if force or not _is_whole(folder / name, identity):
        with writing():
            folder.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
            try:
                building.chmod(0o777 & ~_umask())  # others may read what this user made
                make(building / name)
                sha256 = _written(building / name)
                (building / MANIFEST).write_text(json.dumps({"identity": identity, "sha256": sha256}, indent=1))
                if force or not _is_whole(folder / name, identity):  # another process may have been faster
                    _move(building, folder, name)
                    _leave_stamp(folder / name, sha256)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return folder / name


def _move(building: Path, folder: Path, name: str) -> None:
    """Puts a finished entry in place. One that is there already is never away: its files are replaced one by one."""
    try:
        building.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        for file in (name, MANIFEST):
            (building / file).replace(folder / file)


def _is_whole(file: Path, identity: Mapping[str, object]) -> bool:
    try:
        manifest = json.loads(file.with_name(MANIFEST).read_text())
        return manifest["identity"] == identity and has_digest(file, manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def has_digest(path: Path, sha256: str) -> bool:
    """Tells whether a file has a digest; computes it once for each state of the file.

    A file that has it leaves an empty stamp in the cache, whose name is a digest of the file's path, size, time of
    modification and content, so that whatever changes, it is looked at again.

    Args:
        path: The file.
        sha256: The digest, hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    if is_stamped(path, sha256):
        return True
    if file_digest(path) != sha256:
        return False
    _leave_stamp(path, sha256)
    return True


def is_stamped(path: Path, sha256: str) -> bool:
    """Tells whether a file was found to have a digest before, and has not been touched since.

    Raises:
        OSError: There is no such file.
    """
    return _stamp(path, sha256).exists()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _leave_stamp(path: Path, sha256: str) -> None:
    with suppress(OSError):  # without a writable cache, the next start computes the digest again
        stamp = _stamp(path, sha256)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


def _stamp(path: Path, sha256: str) -> Path:
    state = path.stat()
    identity = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{sha256}"
    return cache_dir() / "verified" / hashlib.sha256(identity.encode()).hexdigest()


def _written(path: Path) -> str:
    """The digest of a file that has reached the disk: what is moved into place is whole, whatever happens then."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_digest(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

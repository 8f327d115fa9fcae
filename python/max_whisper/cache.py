"""Where this package keeps what it can make again: parsed kernels, compiled graphs, packed weights, stamps of files.

An entry is a folder named after everything that its file depends on. It holds the file and a manifest with its digest; what
does not match the manifest is made anew, never trusted. It is made in a folder of its own and moved into place at the end,
so that two processes that make it at once do not meet.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
                make(building / name)
                manifest = {"identity": identity, "sha256": _digest(building / name)}
                (building / MANIFEST).write_text(json.dumps(manifest, indent=1))
                _move(building, folder, name, identity, force=force)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return folder / name


def _move(building: Path, folder: Path, name: str, identity: Mapping[str, object], *, force: bool) -> None:
    """Puts a finished entry in place; another process may have been faster, and its entry is as good."""
    if force or not _is_whole(folder / name, identity):
        stale = building.with_name(building.name + "-stale")
        if folder.exists():
            folder.rename(stale)
        try:
            building.rename(folder)
        except OSError:
            if not _is_whole(folder / name, identity):
                raise
        shutil.rmtree(stale, ignore_errors=True)


def _is_whole(file: Path, identity: Mapping[str, object]) -> bool:
    try:
        manifest = json.loads(file.with_name(MANIFEST).read_text())
        return manifest["identity"] == identity and manifest["sha256"] == _digest(file)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

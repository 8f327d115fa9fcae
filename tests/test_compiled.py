"""The cache of compiled graphs, with a compiler that writes what it was asked for."""

import ast
import json
import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from max_whisper import cache, compiled, target
from max_whisper.config import ModelDimensions
from max_whisper.errors import DeviceError, OutputError

UMASK = os.umask(0)
os.umask(UMASK)

TINY = ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
BASE = ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)


@pytest.fixture
def compilations(monkeypatch, tmp_path) -> list[ModelDimensions]:
    """The compilations so far."""
    done: list[ModelDimensions] = []

    def compile_to(dims: ModelDimensions, device: str, dtype: str, path: Path) -> None:
        done.append(dims)
        path.write_text(f"{dims} {dtype}")

    monkeypatch.setenv("MAX_WHISPER_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "compile_graphs", compile_to)
    return done


def test_compiles_once(compilations):
    first = compiled.build(TINY)
    assert compiled.build(TINY) == first
    assert first.read_text() == f"{TINY} float32"
    assert compilations == [TINY]


def test_entries_differ_by_what_they_depend_on(compilations, monkeypatch):
    paths = {compiled.build(TINY), compiled.build(BASE)}
    monkeypatch.setattr(target, "cpu_target", lambda device="cpu": "another")
    paths.add(compiled.build(TINY))
    monkeypatch.setattr(compiled, "sources", lambda: "edited")
    paths.add(compiled.build(TINY))
    assert len(paths) == len(compilations) == len(compiled.entries()) == 4


AROUND = {"cache", "checkpoint", "cross", "errors", "media", "runtime"}
"""Modules that what graphs are made of imports, and that change no graph."""


def imported(path: Path) -> set[str]:
    """The modules and folders of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, *inner = node.module.split(".")
            if package == "max_whisper":
                found |= {inner[0]} if inner else {alias.name for alias in node.names}
    return found


def test_the_digest_has_all_modules_that_graphs_are_made_of():
    package = Path(compiled.__file__).parent
    files = [
        *package.glob("graphs/*.py"),
        *package.glob("ops/*.py"),
        *(package / f"{x}.py" for x in compiled.FOUNDATIONS),
    ]
    assert set.union(*map(imported, files)) - AROUND == {*compiled.FOUNDATIONS, "graphs", "ops"} - {"compiled"}


def test_says_that_it_compiles(compilations):
    said: list[str] = []
    compiled.build(TINY, progress=said.append)
    assert len(said) == 1
    assert "compiling" in said[0]
    compiled.build(TINY, progress=said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_text("something else"),
        lambda path: (path.parent / cache.MANIFEST).unlink(),
        lambda path: (path.parent / cache.MANIFEST).write_text("{"),
        lambda path: (path.parent / cache.MANIFEST).write_text("[]"),
    ],
)
def test_a_damaged_entry_is_compiled_again(compilations, damage):
    path = compiled.build(TINY)
    damage(path)
    assert compiled.build(TINY) == path
    assert path.read_text() == f"{TINY} float32"
    assert len(compilations) == 2


def test_a_foreign_entry_is_compiled_again(compilations):
    """An entry copied from another machine says so in its manifest, whatever its folder is called."""
    path = compiled.build(TINY)
    manifest = json.loads((path.parent / cache.MANIFEST).read_text())
    manifest["identity"]["target"] = "another"
    (path.parent / cache.MANIFEST).write_text(json.dumps(manifest))
    compiled.build(TINY)
    assert len(compilations) == 2


def test_force(compilations):
    compiled.build(TINY)
    compiled.build(TINY, force=True)
    assert len(compilations) == 2


def test_others_may_read_what_one_user_made(compilations):
    """A cache that is built as root, into an image say, serves whoever runs there."""
    folder = compiled.build(TINY).parent
    assert folder.stat().st_mode & 0o055 == 0o055 & ~UMASK
    assert all(file.stat().st_mode & 0o044 == 0o044 & ~UMASK for file in folder.iterdir())


def test_an_entry_that_is_made_again_is_never_away(compilations):
    path = compiled.build(TINY)
    before = path.parent.stat().st_ino
    compiled.build(TINY, force=True)
    assert path.parent.stat().st_ino == before
    path.write_text("something else")
    compiled.build(TINY)
    assert path.parent.stat().st_ino == before
    assert [file.name for file in path.parents[1].iterdir()] == [path.parent.name]


def test_a_failed_compilation_leaves_nothing(compilations, monkeypatch, tmp_path):
    def fail(dims: ModelDimensions, device: str, dtype: str, path: Path) -> None:
        path.write_text("half")
        raise RuntimeError

    monkeypatch.setattr(compiled, "compile_graphs", fail)
    with pytest.raises(RuntimeError):
        compiled.build(TINY)
    assert list((tmp_path / "compiled").iterdir()) == []


def test_a_device_that_is_not_there_is_refused_first(compilations):
    with pytest.raises(DeviceError):
        compiled.build(TINY, "tpu")
    assert compilations == []


def _build_together(folder: str, barrier) -> str:
    def compile_to(dims: ModelDimensions, device: str, dtype: str, path: Path) -> None:
        barrier.wait(30)
        path.write_text(f"{dims} {dtype}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAX_WHISPER_CACHE", folder)
        patch.setattr(compiled, "compile_graphs", compile_to)
        return compiled.build(TINY).read_text()


def test_two_processes_at_once(tmp_path):
    context = get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        results = pool.starmap(_build_together, [(str(tmp_path), barrier)] * 2)
    assert results == [f"{TINY} float32"] * 2
    assert [path.name for path in (tmp_path / "compiled").iterdir() if path.name.startswith(".")] == []


def test_a_cache_that_cannot_be_written_to(compilations, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAX_WHISPER_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OutputError, match=r"cannot write into the cache '.*file' \(Not a directory\): .*MAX_WHISPER_CACHE"
    ):
        compiled.build(TINY)
    assert compilations == []

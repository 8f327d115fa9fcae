"""What people install: the archive that is built from the sources, and the wheel that is built from that archive."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from max_whisper import compiled
from max_whisper.demo import recording
from tests import models

REPOSITORY = Path(__file__).parents[1]
MODELS = ["tiny.en"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stdout[-2000:] + done.stderr[-2000:])
    return folder


def sources() -> set[str]:
    """The files of the package, kernels and graphs."""
    found = [*(REPOSITORY / "python").rglob("*.py"), *REPOSITORY.glob("graphs/*.py")]
    found += REPOSITORY.glob("kernels/**/*.mojo")
    return {str(path.relative_to(REPOSITORY)).removeprefix("python/") for path in found if "/." not in str(path)}


def test_both_hold_every_source(dist: Path) -> None:
    expected = {name if name.startswith("max_whisper/") else f"max_whisper/{name}" for name in sources()}
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert expected <= set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {f"python/{name}" for name in expected} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_a_wheel_finds_its_kernels_and_graphs(dist: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, it transcribes with graphs that were compiled from the same sources."""
    zipfile.ZipFile(next(dist.glob("*.whl"))).extractall(tmp_path)
    models.load("tiny.en")  # now they are in the cache
    code = (
        "import sys, max_whisper\n"
        "from max_whisper import compiled, load_model\n"
        "print(max_whisper.__file__, compiled.sources())\n"
        "print(load_model('tiny.en').transcribe(sys.argv[1])['text'])\n"
    )
    beckett = recording().with_name("beckett.wav")
    output = subprocess.run(
        [sys.executable, "-c", code, beckett],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    where, text = output.splitlines()
    assert where == f"{tmp_path / 'max_whisper' / '__init__.py'} {compiled.sources()}"
    assert "Ever tried, ever failed" in text


@pytest.mark.full
def test_a_wheel_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    """As a user meets it: everything from the package registry, compiled on first use."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next(dist.glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel}[demo]"], check=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MAX_WHISPER"))}
    environment |= {"MAX_WHISPER_CACHE": str(tmp_path / "cache")}
    output = subprocess.run(
        [python, "-m", "max_whisper.demo"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "it was the best of times" in output.stdout.lower()
    assert "times real time" in output.stderr

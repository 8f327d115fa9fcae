"""Every GPU op compiles for architectures that are not here. For sm_80 all other tests compile."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from max_whisper.cache import cache_dir
from max_whisper.config import ModelDimensions
from max_whisper.cross import compile_elsewhere
from tests.one_thread import one_core

ONE_LAYER = ModelDimensions(80, 1500, 384, 6, 1, 51864, 448, 384, 6, 1)
"""tiny.en has the same ops in four layers, which take the compiler three times as long."""


@pytest.fixture(autouse=True, scope="module")
def _compiles_as_users_do() -> Iterator[None]:
    """Without what the phantom tells MAX's compilers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MODULAR_", "PHANTOM_"))]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def compilations(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _compiles_as_users_do: None
) -> Iterator[dict[tuple[str, str], Future[Path]]]:
    """Those of the tests that are going to run, side by side: with one thread each they leave cores to one another."""

    def compile_one(which: int, architecture: str, dtype: str) -> Path:
        path = tmp_path_factory.mktemp(f"{architecture}-{dtype}") / "graphs.mef"
        with one_core(which):
            compile_elsewhere(ONE_LAYER, dtype, architecture, path)
        return path

    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = [item.callspec.params for item in tests if item.originalname == "test_compiles"]
    pairs = [(str(values["architecture"]), str(values["dtype"])) for values in asked]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {pair: pool.submit(compile_one, which, *pair) for which, pair in enumerate(pairs)}


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float16", marks=pytest.mark.gpu),
        *[pytest.param(name, marks=pytest.mark.full) for name in ("float32", "bfloat16")],
    ],
)
@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_compiles(architecture: str, dtype: str, compilations: dict[tuple[str, str], Future[Path]]) -> None:
    """All graphs, with every op; it fails on any error that the compiler prints."""
    assert compilations[architecture, dtype].result().stat().st_size > 50_000


@pytest.mark.full
@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90", "gfx942", "gfx1100"])
def test_builds(architecture: str) -> None:
    """The graphs of tiny.en, with `max-whisper build`. What is built is kept."""
    folder = cache_dir() / "architectures"
    options = ["--model", "tiny.en", "--target", architecture, "--output", str(folder)]
    result = subprocess.run(
        [sys.executable, "-m", "max_whisper", "build", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-2000:]
    built = Path(result.stderr.strip().rpartition(" are in ")[2])
    assert built.parent == folder / "compiled"
    assert (built / "graphs.mef").stat().st_size > 50_000

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # beside other tests, its threads wait for each other more than compute

import numpy as np
import pytest

from max_whisper.cache import cache_dir
from tests import ahead, models
from tests.one_thread import start_one_thread
from tests.phantom.install import install, is_needed
from tests.phantom.launch import Options


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("phantom GPU", "Debugging a kernel on the phantom GPU, with -m gpu and one test")
    group.addoption("--lines", action="store_true", help="name the Mojo line of a fault (compiles twice)")
    group.addoption("--only-block", metavar="[LAUNCH:]BLOCK", help="run one block of an op's first, or that, launch")
    group.addoption(
        "--trace-thread", metavar="THREAD", type=int, help="print each instruction of a thread of that block"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Where GPU tests are asked for and no GPU is there, puts the phantom one in its place: before MAX is imported."""
    marks = config.option.markexpr
    if ("gpu" in marks or "nightly" in marks) and "not gpu" not in marks and is_needed():
        options = config.option
        launch, _, block = (options.only_block or "").rpartition(":")
        driver = install(cache_dir() / "phantom", with_lines=options.lines)
        driver.options = Options(
            only_block=int(block) if block else None, only_launch=int(launch or 0), trace=options.trace_thread
        )
        start_one_thread("gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that capture device graphs come last: from then on, the phantom does not know the bounds of every buffer."""
    items.sort(key=lambda item: item.get_closest_marker("captures") is not None)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    modules = {getattr(item, "module", None) for item in session.items}
    together = models.prepare({name for module in modules for name in getattr(module, "MODELS", ())})
    ahead.start([getattr(module, "__name__", "") for module in modules], together)


def pytest_sessionfinish() -> None:
    models.stop()
    ahead.stop()


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh random data in every run; the seed is printed so that a failure can be repeated."""
    seed = int(os.environ.get("MAX_WHISPER_SEED") or np.random.SeedSequence().generate_state(1)[0])
    print(f"MAX_WHISPER_SEED={seed}")
    return np.random.default_rng(seed)

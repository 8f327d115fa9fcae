import os

import numpy as np
import pytest

from max_whisper.cache import cache_dir
from tests import models
from tests.phantom.install import install, is_needed


def pytest_configure(config: pytest.Config) -> None:
    """Where GPU tests are asked for and no GPU is there, puts the phantom one in its place: before MAX is imported."""
    marks = config.option.markexpr
    if "gpu" in marks and "not gpu" not in marks and is_needed():
        install(cache_dir() / "phantom")


def pytest_collection_finish(session: pytest.Session) -> None:
    wanted = [model for item in session.items for model in getattr(getattr(item, "module", None), "MODELS", ())]
    if wanted and not session.config.option.collectonly:
        models.start_builds(list(dict.fromkeys(wanted)))


def pytest_sessionfinish() -> None:
    models.stop_builds()


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh random data in every run; the seed is printed so that a failure can be repeated."""
    seed = int(os.environ.get("MAX_WHISPER_SEED") or np.random.SeedSequence().generate_state(1)[0])
    print(f"MAX_WHISPER_SEED={seed}")
    return np.random.default_rng(seed)

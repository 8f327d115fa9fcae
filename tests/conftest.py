import os
from pathlib import Path

import numpy as np
import pytest

from max_whisper.cache import cache_dir
from tests import models
from tests.phantom.install import install

REAL_GPUS = (Path("/dev/nvidia0"), Path("/dev/kfd"))


def pytest_configure(config: pytest.Config) -> None:
    """Where GPU tests are asked for and no GPU is there, puts the phantom one in its place: before MAX is imported."""
    if (
        "gpu" in config.option.markexpr
        and "not gpu" not in config.option.markexpr
        and not any(path.exists() for path in REAL_GPUS)
    ):
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

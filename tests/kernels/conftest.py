import os

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh random data in every run; the seed is printed so that a failure can be repeated."""
    seed = int(os.environ.get("MAX_WHISPER_SEED") or np.random.SeedSequence().generate_state(1)[0])
    print(f"MAX_WHISPER_SEED={seed}")
    return np.random.default_rng(seed)

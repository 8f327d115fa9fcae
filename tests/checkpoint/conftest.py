"""Models to read: a small one of random numbers, and the same as CTranslate2 names it."""

import numpy as np
import pytest

from max_whisper.config import expected_tensors
from tests.checkpoint.files import DIMS, Tensors, to_ctranslate2


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape, np.float32).astype(np.float16)
        for name, shape in expected_tensors(DIMS).items()
    }


@pytest.fixture(scope="module")
def variables(tensors: Tensors) -> dict[str, np.ndarray]:
    return to_ctranslate2(tensors)

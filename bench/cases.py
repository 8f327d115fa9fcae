"""Whisper's shapes, and how a bench turns arrays into a call."""

from collections.abc import Callable
from typing import Any

import numpy as np

from max_whisper import eager
from max_whisper.runtime import as_buffer, execute

STATES = {"tiny": 384, "base": 512, "small": 768, "medium": 1024, "large": 1280}
"""Width of the model's states; heads have 64 elements each."""

WEIGHTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "i8"}
"""Dtypes of packed weights, and what they are called in signatures. The built-in leg is in float32 throughout."""

VOCABULARIES = {"float32": "f32", "float16": "f16"}
"""Those of them that a vocabulary can have."""

AUDIO_CONTEXT = 1500
"""Rows of the encoder."""


def call(op: eager.Op, *arrays: np.ndarray, **parameters: Any) -> Callable[[], Any]:
    """Compiles an op and returns a call of it on buffers that are made once."""
    buffers = [as_buffer(np.ascontiguousarray(array)) for array in arrays]
    model = eager.compile_op(op, buffers, parameters)
    return lambda: execute(model, *buffers)


def random(*shape: int) -> np.ndarray:
    """Normal float32 numbers."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

"""What every reader owes: exactly the tensors of the model, and the sinusoids that not every format stores."""

import numpy as np

from max_whisper.config import ModelDimensions, expected_tensors
from max_whisper.errors import CheckpointError

_SHOWN = 3
_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))


def account_for(tensors: dict[str, np.ndarray], dims: ModelDimensions, source: str) -> None:
    """Checks that `tensors` are the model's, all of them and no others.

    Raises:
        CheckpointError: Tensors are missing, unexpected, mis-shaped or of another type than float16 and float32.
    """
    expected = expected_tensors(dims)
    faults = [f"{name} {shape} is missing" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            faults.append(f"{name} {tensor.shape} is unexpected")
        elif tensor.shape != expected[name]:
            faults.append(f"{name} is {tensor.shape}, expected {expected[name]}")
        elif tensor.dtype not in _DTYPES:
            faults.append(f"{name} is {tensor.dtype}, expected float16, bfloat16 or float32")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(f"{source} does not hold a whole Whisper model: {'; '.join(faults[:_SHOWN])}{more}")


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Computes the encoder's positional embedding.

    Column c < channels/2 is the sine, column channels/2 + c the cosine, of position × 10000^(-c / (channels/2 - 1)):
    wavelengths from 2π positions up to 2π·10000, evenly spaced on a log scale.

    Returns:
        float32 (length, channels).
    """
    half = channels // 2
    frequencies = 10000.0 ** (-np.arange(half) / (half - 1))
    angles = np.arange(length)[:, np.newaxis] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

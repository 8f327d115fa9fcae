"""The log-mel spectrogram of whole recordings: samples (B, n_samples) -> (B, n_mels, frames)."""

from max.dtype import DType
from max.graph import DeviceRef, Graph, TensorType

from max_whisper import ops


def log_mel_graph(module, dims, weights) -> None:
    """Builds the log-mel spectrogram.

    Args:
        n_mels: Mel bands.
        device: Where it runs.

    Returns:
        A graph from samples (B, n_samples) float32 and padding, the number of zeros behind them, to features.
    """
    raise NotImplementedError

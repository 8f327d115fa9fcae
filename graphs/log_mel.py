"""The log-mel spectrogram of whole recordings.

samples (B, n_samples), padding (1) -> features (B, n_mels, (n_samples + padding) / 160)
"""

from max.dtype import DType
from max.graph import DeviceRef, TensorType
from max.graph import ops as max_ops

from max_whisper import ops
from max_whisper.config import ModelDimensions
from max_whisper.graphs.module import GraphModule
from max_whisper.mel import mel_filters
from max_whisper.packing import pack_filters


def log_mel_graph(module: GraphModule, dims: ModelDimensions, device: DeviceRef) -> None:
    """Adds the graph "log_mel": samples (B, n_samples) float32 and padding (1) int32 -> features (B, n_mels, frames).

    Args:
        module: Receives the graph.
        dims: The model's sizes.
        device: Where it runs.
    """
    runs, weights = pack_filters(mel_filters(dims.n_mels))
    samples_type = TensorType(DType.float32, ["batch", "n_samples"], device=device)
    padding_type = TensorType(DType.int32, [1], device=DeviceRef.CPU())
    with module.graph("log_mel", [samples_type, padding_type]) as graph:
        samples, padding = (value.tensor for value in graph.inputs)
        constants = (max_ops.constant(array, device=device) for array in (runs, weights))
        graph.output(ops.log_mel(samples, padding, *constants))

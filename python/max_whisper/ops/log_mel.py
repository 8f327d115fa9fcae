"""The log-mel spectrogram, `kernels/ops/log_mel.mojo`."""

from max.graph import TensorValue

from max_whisper.ops.call import call, like


def log_mel(
    samples: TensorValue, padding: TensorValue, runs: TensorValue, weights: TensorValue, *, frames: str = "frames"
) -> TensorValue:
    """Log-mel spectrogram, as Whisper's encoder takes it.

    Args:
        samples: (B, n_samples), 16 kHz, finite.
        padding: (1) int32, on the host: zeros to be heard behind the samples; with them, a row has at least 201.
        runs: (n_mels, 2) int16, see `packing.pack_filters`.
        weights: (total length of the runs) float32.
        frames: What the graph calls the dimension (n_samples + padding) // 160.

    Returns:
        (B, n_mels, frames), the dtype of samples.
    """
    out = like(samples, [samples.shape[0], runs.shape[0], frames])
    return call("whisper_log_mel", [samples, padding, runs, weights], [out])[0]

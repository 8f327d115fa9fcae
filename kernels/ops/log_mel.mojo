"""The op of the log-mel spectrogram."""

import extensibility
from extensibility import InputTensor, OutputTensor, Tensor, TileTensorable
from layout.coord import coord_to_index_list
from max.gpu.host import DeviceContext
from std.utils import IndexList

from ..data import data, require, require_between, require_contiguous, require_size
from ..log_mel.cpu import Filters, HOP, REACH, log_mel
from ..log_mel.dft import BINS
from ..log_mel.gpu.launch import enqueue_log_mel
from ..log_mel.gpu.spectrogram import MAX_MELS, MAX_WEIGHTS


@extensibility.register("whisper_log_mel")
struct LogMel:
    """Computes the log-mel spectrogram of samples and `padding` zeros behind them.

    samples (B, n_samples), padding (1), runs (n_mels, 2) and weights (sum of the runs' lengths) -> (B, n_mels, frames)
    with frames = (n_samples + padding) / 160, rounded down. B and n_mels may be anything, n_samples 0 if there is padding.
    Padding lies on the host. On a GPU the host cannot see the runs; bins and weights that are not there count as nothing.
    """

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        output: OutputTensor[dtype=dtype, rank=3, ...],
        samples: InputTensor[dtype=dtype, rank=2, ...],
        padding: InputTensor[dtype=DType.int32, rank=1, ...],
        runs: InputTensor[dtype=DType.int16, rank=2, ...],
        weights: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var batch = samples.dim_size(0)
        var count = samples.dim_size(1)
        var mels = runs.dim_size(0)
        var zeros = Int(padding[0])
        var frames = _log_mel_frames(count, zeros)
        require_size(output.dim_size(0), batch, "log_mel", "B of the output")
        require_size(output.dim_size(1), mels, "log_mel", "n_mels of the output")
        require_size(output.dim_size(2), frames, "log_mel", "the number of frames of the output")
        require_size(runs.dim_size(1), 2, "log_mel", "the length of a run's description")
        require_contiguous(samples, "log_mel", "samples")
        require_contiguous(runs, "log_mel", "runs")
        require_contiguous(weights, "log_mel", "weights")
        comptime if target == "cpu":
            var total = 0
            for m in range(mels):
                var bins = Int(runs[m, 1])
                require_between(bins, 0, BINS, "log_mel", "runs", m, 1)
                require_between(Int(runs[m, 0]), 0, BINS - bins, "log_mel", "runs", m, 0)
                total += bins
            require_size(weights.dim_size(0), total, "log_mel", "the number of weights")
            var filters = Filters(data(runs), data(weights), mels)
            for b in range(batch):
                log_mel(
                    data(samples).unsafe_offset(b * count),
                    count,
                    zeros,
                    filters,
                    data(output).unsafe_offset(b * mels * frames),
                )
        else:
            var total = weights.dim_size(0)
            require(batch < 1 << 16, "log_mel", String("B is ", batch, ", on a GPU less than 65536 is expected"))
            require(mels <= MAX_MELS, "log_mel", String("n_mels is ", mels, ", on a GPU at most ", MAX_MELS))
            require(
                total <= MAX_WEIGHTS, "log_mel", String("there are ", total, " weights, on a GPU at most ", MAX_WEIGHTS)
            )
            enqueue_log_mel(
                data(output), data(samples), data(runs), data(weights), batch, count, zeros, mels, total, ctx
            )


@extensibility.register_shape_function("whisper_log_mel")
def log_mel_shape(
    samples: Some[Tensor], padding: Some[TileTensorable], runs: Some[Tensor], weights: Some[Tensor]
) raises -> IndexList[3]:
    """B, n_mels, (n_samples + padding) // 160."""
    var sizes = coord_to_index_list(samples.shape().tuple())
    require_size(coord_to_index_list(padding.shape().tuple())[0], 1, "log_mel", "the size of padding")
    var zeros = Int(padding.to_tile_tensor()[0])
    return IndexList[3](sizes[0], coord_to_index_list(runs.shape().tuple())[0], _log_mel_frames(sizes[1], zeros))


def _log_mel_frames(count: Int, padding: Int) raises -> Int:
    """Number of frames, if there are samples enough to mirror at both ends."""
    require(padding >= 0, "log_mel", String("padding is ", padding, ", expected at least 0"))
    require(
        count + padding > REACH,
        "log_mel",
        String("n_samples + padding is ", count + padding, ", expected at least ", REACH + 1, ": pad with zeros"),
    )
    return (count + padding) // HOP

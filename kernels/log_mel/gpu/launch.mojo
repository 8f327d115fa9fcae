"""Launches the log-mel spectrogram on a GPU: two kernels."""

from max.gpu.host import DeviceContext, FuncAttribute
from std.math import ceildiv

from ...data import Data
from ..cpu import HOP
from .clamp import CLAMP_BLOCKS, CLAMP_TEAMS, CLAMP_THREADS, clamp_kernel
from .slots import FRAMES, THREADS, X_BYTES
from .spectrogram import PARTS, spectrogram_kernel


def enqueue_log_mel[
    dtype: DType, //
](
    output: Data[dtype],
    samples: Data[dtype],
    runs: Data[DType.int16],
    weights: Data[DType.float32],
    batch: Int,
    count: Int,
    padding: Int,
    mels: Int,
    total: Int,
    ctx: DeviceContext,
) raises:
    """Launches both kernels.

    Args:
        output: `batch x mels x frames`, frames = (count + padding) // 160.
        samples: `batch x count`, finite.
        runs: `mels x 2`.
        weights: `total`.
        batch: B, less than 65536.
        count: Samples of a recording; with the padding at least 201.
        padding: Zeros behind them.
        mels: Filters, at most 128.
        total: Weights, at most 402.
        ctx: The device.
    """
    var frames = (count + padding) // HOP
    var blocks = ceildiv(frames, FRAMES)
    if batch * mels * blocks == 0:
        return
    var highest = ctx.enqueue_create_buffer[DType.float32](batch * blocks)
    var lowest = ctx.enqueue_create_buffer[DType.float32](batch * blocks * PARTS)
    ctx.enqueue_function[spectrogram_kernel[dtype]](
        output,
        highest,
        lowest,
        samples,
        runs,
        weights,
        Int64(count),
        Int64(count + padding),
        Int64(frames),
        Int32(mels),
        Int32(total),
        grid_dim=(blocks, batch),
        block_dim=THREADS,
        shared_mem_bytes=X_BYTES,
        func_attribute=FuncAttribute.MAX_DYNAMIC_SHARED_SIZE_BYTES(UInt32(X_BYTES)),
    )
    ctx.enqueue_function[clamp_kernel[dtype]](
        output,
        highest,
        lowest,
        Int64(frames),
        Int32(mels),
        Int32(blocks),
        grid_dim=(min(ceildiv(blocks * PARTS, CLAMP_TEAMS), CLAMP_BLOCKS), batch),
        block_dim=CLAMP_THREADS,
    )

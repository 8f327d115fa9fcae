"""A model of time, from counts and published rates: no clock was read.

    time of a launch = LAUNCH + max( least bytes / memory,
                                     the busiest multiprocessor's share of   bytes asked for / 64 bytes a cycle,
                                                                             tensor-core instructions / their rate,
                                                                             warp instructions / 4 a cycle )

Blocks are dealt to multiprocessors in rounds: with 109 blocks on 108 the busiest has two. How many instructions a kernel
takes is counted at small shapes and grows with its tensor-core instructions, or else with its bytes. The terms of the
maximum are taken to overlap perfectly, launches not to overlap at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from bench.gpu import work
from bench.gpu.peaks import INTAKE, ISSUE, MMA, Gpu
from bench.gpu.work import HEAD, Launch
from max_whisper.replay import STEPS

LAUNCH = 1.5e-6
"""Seconds of a launch that does nothing, in a captured graph on an H200."""

RUN = 43e-6
"""Seconds around a run of steps, measured on an H200's host: copies of arguments and results. A run of 16 takes 1,419 us,
one step 86 (tiny.en)."""

SPEECH, TOKENS, WINDOW = 161.5, 544, 30.0
"""The original project's recording, seconds; tokens in it, timestamps included, at the rate of tests/golden's long.flac
(554 in 164.6 s); the encoder's window."""

VOCABULARY, MELS, FRAMES, AUDIO = 51864, 80, 3000, 1500

CLAMPED = 0.44
"""Features that the log-mel's second kernel reads and writes; of speech it reads 0.6 and writes 0.27."""

SIZES = {"tiny": (384, 4), "base": (512, 6), "small": (768, 12), "medium": (1024, 24), "large": (1280, 32)}
"""Width and layers, of encoder and decoder each."""


@dataclass(frozen=True)
class Estimate:
    """What a launch takes.

    Attributes:
        seconds: Launch included.
        bound: What it waits for.
    """

    seconds: float
    bound: str


def estimate(launch: Launch, gpu: Gpu, instructions: Mapping[str, float]) -> Estimate:
    """Models one launch.

    Args:
        launch: What it does.
        gpu: Where.
        instructions: Warp instructions per unit of each kernel, see `Launch.units`.
    """
    busiest = ceil(launch.blocks / gpu.multiprocessors) / launch.blocks
    per_cycle = gpu.tensor / gpu.multiprocessors / gpu.clock
    issued = instructions.get(launch.kernel, 0) * launch.units
    terms = {
        "memory": launch.least / gpu.memory,
        "intake": busiest * launch.moved / INTAKE / gpu.clock,
        "tensor cores": busiest * launch.mma * MMA / per_cycle / gpu.clock,
        "issue": busiest * issued / ISSUE / gpu.clock,
    }
    bound = max(terms, key=lambda name: terms[name])
    return Estimate(LAUNCH + terms[bound], bound if terms[bound] > LAUNCH else "launch")


def encoder(batch: int, width: int, layers: int) -> list[Launch]:
    """Log-mel, encoder, and the keys and values of the audio for the decoder: once per window."""
    rows, heads = batch * AUDIO, width // HEAD
    mel = batch * MELS * FRAMES
    launches = [
        *work.log_mel(batch, FRAMES, MELS, again=CLAMPED),
        Launch("permutation", ceil(mel / 2048), 6 * mel, 6 * mel),
    ]
    launches += work.conv1d(batch, FRAMES, MELS, width, stride=1, positions=False)
    launches += work.conv1d(batch, FRAMES, width, width, stride=2, positions=True)
    for _ in range(layers):
        launches += work.layer_norm(rows, width) + work.linear(rows, 3 * width, width)
        launches += work.self_attention(batch, heads, AUDIO) + work.linear(rows, width, width)
        launches += work.layer_norm(rows, width, add=True) + work.linear(rows, 4 * width, width)
        launches += work.linear(rows, width, 4 * width, residual=True)
    launches += work.layer_norm(rows, width)
    for _ in range(layers):
        launches += work.linear(rows, 2 * width, width) + work.pack_heads(batch, heads, AUDIO)
    return launches


def decoder(batch: int, width: int, layers: int, past: int, length: int = 1) -> list[Launch]:
    """A step (length 1) or a prompt of the decoder, with the pick."""
    rows, heads = batch * length, width // HEAD
    launches = work.embed(rows, width)
    for _ in range(layers):
        launches += work.linear(rows, 3 * width, width, norm=True)
        if length == 1:
            launches += work.cached_attention(batch, heads, past)
            cross = work.cross_attention(batch, heads, AUDIO)
        else:
            launches += work.self_attention(batch, heads, length, keys=past + length)
            cross = work.self_attention(batch, heads, length, keys=AUDIO)
        launches += work.linear(rows, width, width, residual=True)
        launches += work.linear(rows, width, width, norm=True) + cross
        launches += work.linear(rows, width, width, residual=True)
        launches += work.linear(rows, 4 * width, width, norm=True)
        launches += work.linear(rows, width, 4 * width, residual=True)
    return launches + work.layer_norm(rows, width) + work.greedy(batch, width, VOCABULARY)


@dataclass(frozen=True)
class Transcription:
    """What the recording takes.

    Attributes:
        encoder: Seconds in all windows' log-mel, encoder, and keys and values.
        decoder: Seconds in all steps, those included that the last run of a window makes in vain.
        host: Seconds around the runs of steps.
        launches: Of kernels.
    """

    encoder: float
    decoder: float
    host: float
    launches: int

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.encoder + self.decoder + self.host

    @property
    def factor(self) -> float:
        """Seconds of speech in one second."""
        return SPEECH / self.seconds


def transcribe(gpu: Gpu, size: str, batch: int, instructions: Mapping[str, float]) -> Transcription:
    """Models the recording: window by window, each with the text before as its prompt, or `batch` windows at a time."""
    width, layers = SIZES[size]
    windows = ceil(SPEECH / WINDOW)
    rounds, together = ceil(windows / batch), min(batch, windows)
    tokens = round(TOKENS / windows)
    runs = ceil(tokens / STEPS)
    prompt = tokens + 4 if batch == 1 else 3
    heard = encoder(together, width, layers)
    said = decoder(together, width, layers, 0, prompt) + work.greedy(together, width, VOCABULARY)  # whether one speaks
    for step in range(runs * STEPS):
        said += decoder(together, width, layers, prompt + step)
    encoding, decoding = (
        rounds * sum(estimate(launch, gpu, instructions).seconds for launch in part) for part in (heard, said)
    )
    return Transcription(encoding, decoding, rounds * (runs + 1) * RUN, rounds * (len(heard) + len(said)))

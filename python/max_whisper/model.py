"""A loaded Whisper model: its weights, its graphs, and what makes decoders of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from max_whisper import compiled, decoding, packed, runtime, target
from max_whisper.checkpoint import Checkpoint, load_checkpoint
from max_whisper.config import ModelDimensions
from max_whisper.cpu_decoder import CPUDecoder
from max_whisper.errors import AudioError, OptionError
from max_whisper.gpu_decoder import GPUDecoder, new_room
from max_whisper.replay import Rooms
from max_whisper.tokenizer import Vocabulary
from max_whisper.transcribe import Transcription, transcribe


@dataclass(frozen=True)
class AudioFeatures:
    """Encoded windows of audio.

    Attributes:
        states: The encoder's result, (B, n_audio_ctx, n_audio_state).
        cross: Keys, see `packing.keys_shape`, and values (B, H, 1500, 64) for the decoder: on a CPU those of all blocks,
            (L, B, ...), in int8 models, on x86, see `packing.bytes_shapes`; on a GPU block by block.
    """

    states: Buffer
    cross: list[Buffer]

    def __len__(self) -> int:
        return int(self.states.shape[0])


class Whisper:
    """A Whisper model with its trained weights and compiled graphs.

    Attributes:
        dims: The model's sizes.
        vocabulary: Its tokens.
        device: Where it computes: "cpu" or "gpu".
        dtype: Element type of the weights, on a GPU also of states and caches. Sums are float32, and states on a CPU.
        graphs: The loaded graphs of `max_whisper.graphs`, by name.
        rooms: On a GPU, what decoders leave for those that come after them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        dtype: str | None = None,
        *,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        device, dtype = target.choose(device, dtype, checkpoint.dtype)
        self.dims: ModelDimensions = checkpoint.dims
        self.vocabulary: Vocabulary = checkpoint.vocabulary
        self.device, self.dtype = device, dtype
        self.on = runtime.use(device)
        # Bad weights are refused before it takes a minute to compile.
        weights = packed.load(checkpoint, dtype, progress, device=device)
        mef = compiled.build(self.dims, device, dtype, progress=progress)
        self.graphs = runtime.load(mef, weights, device)
        # On a CPU the models read the weights where they lie; whoever holds the models must hold them too.
        self._weights = weights if device == "cpu" else None
        self.rooms = Rooms(
            lambda capacity: new_room(self.graphs["decoder"], self.on, self.dims, self._cache_dtype, capacity)
        )

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        return self.dims.is_multilingual

    @property
    def num_languages(self) -> int:
        """Languages the vocabulary has tokens for."""
        return self.dims.num_languages

    def log_mel_spectrogram(self, audio: np.ndarray, padding: int = 0) -> np.ndarray:
        """Computes the log-mel spectrogram of samples followed by zeros.

        Args:
            audio: (n_samples,) float32 at 16 kHz.
            padding: Zeros appended.

        Returns:
            (n_mels, (n_samples + padding) // 160) float32.

        Raises:
            AudioError: The samples are not one channel of numbers.
        """
        samples = np.ascontiguousarray(audio, dtype=np.float32)
        if samples.ndim != 1:
            raise AudioError(f"samples have shape {samples.shape}: expected one channel, (n_samples,)")
        features = self.execute("log_mel", self.put(samples[None]), np.array([padding], np.int32))[0]
        return features.to_numpy()[0]

    def embed_audio(self, mel: np.ndarray) -> AudioFeatures:
        """Encodes windows of 30 s.

        Args:
            mel: (B, n_mels, 3000) float32.

        Raises:
            OptionError: The features have another shape.
        """
        expected = (self.dims.n_mels, 2 * self.dims.n_audio_ctx)
        if mel.ndim != 3 or mel.shape[1:] != expected:
            raise OptionError(f"mel has shape {mel.shape}: expected (B, {expected[0]}, {expected[1]}) for this model")
        states = self.execute("encoder", self.put(np.ascontiguousarray(mel, np.float32)))[0]
        return AudioFeatures(states, self.execute("cross_attention", states))

    def new_decoder(self, features: AudioFeatures) -> CPUDecoder | GPUDecoder:
        """Makes a decoder for encoded windows; its KV cache is empty."""
        if self.device == "cpu":
            return CPUDecoder(self.graphs, self.dims, self._cache_dtype, features.cross)
        return GPUDecoder(self.graphs, self.dims, self.rooms, features.cross)

    @property
    def _cache_dtype(self) -> DType:
        return DType[packed.Format.of(self.dtype, self.device).caches]

    def decode(self, mel: np.ndarray, options: Any = None, **changes: Any) -> Any:
        """Decodes windows of features; see `max_whisper.decoding.decode`."""
        return decoding.decode(self, mel, options, **changes)

    def detect_language(self, mel: np.ndarray) -> Any:
        """Tells which language is spoken; see `max_whisper.decoding.detect_language`."""
        return decoding.detect_language(self, mel)

    def transcribe(self, audio: Any, **options: Any) -> Transcription:
        """Transcribes a recording of any length; see `max_whisper.transcribe.transcribe`."""
        return transcribe(self, audio, **options)

    def put(self, array: np.ndarray | Buffer) -> Buffer:
        """Puts an array where the model computes: on a GPU a copy, on a CPU the array itself.

        Raises:
            DeviceError: The GPU's memory is full.
        """
        return runtime.put(array, self.on)

    def execute(self, graph: str, *inputs: np.ndarray | Buffer) -> list[Buffer]:
        """Runs one of the graphs of `max_whisper.graphs`."""
        return runtime.execute(self.graphs[graph], *inputs)


def load_model(
    name: str | Path | Checkpoint,
    device: str = "cpu",
    dtype: str | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> Whisper:
    """Loads a model by its Whisper name, its hub id or its folder; compiles its graphs on first use.

    Args:
        name: "tiny.en", "base" ..., "organisation/name", the path of a checkpoint, or a checkpoint.
        device: "cpu", "gpu", or "auto" for a GPU if there is one.
        dtype: Element type of the weights: "float32", "float16", "bfloat16" or "int8" on a CPU, "float16", "bfloat16" or
            "float32" on a GPU; None for the one that `target.choose` says.
        progress: Is told, in words, what takes long on first use.

    Raises:
        UnknownModelError: No checkpoint of that name.
        CheckpointError: The checkpoint is not whole.
        DeviceError: The device or dtype is not there.
    """
    target.choose(device, dtype)  # what cannot be had is refused before a checkpoint is looked for
    checkpoint = name if isinstance(name, Checkpoint) else load_checkpoint(name)
    return Whisper(checkpoint, device, dtype, progress=progress)

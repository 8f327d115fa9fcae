"""A loaded Whisper model: the only place that executes graphs."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from max_whisper import compiled, decoding, packed, runtime, target
from max_whisper.checkpoint import Checkpoint, load_checkpoint
from max_whisper.config import HEAD_DIM, ModelDimensions
from max_whisper.errors import AudioError, OptionError
from max_whisper.packing import keys_shape
from max_whisper.replay import Room, Rooms
from max_whisper.steps import Step
from max_whisper.tokenizer import Vocabulary
from max_whisper.transcribe import Transcription, transcribe


@dataclass(frozen=True)
class AudioFeatures:
    """Encoded windows of audio.

    Attributes:
        states: The encoder's result, (B, n_audio_ctx, n_audio_state).
        cross: Per decoder block its keys, see `packing.keys_shape`, and values (B, H, 1500, 64); of int8 models, where the
            CPU multiplies bytes, see `packing.bytes_shapes`.
    """

    states: Buffer
    cross: list[Buffer]

    def __len__(self) -> int:
        return int(self.states.shape[0])


@dataclass(frozen=True)
class Picks:
    """What one decoding step picked, row by row.

    Attributes:
        tokens: (B) int32.
        log_probs: (B) float32, natural logarithms, among the tokens that the rules allowed.
        no_speech_probs: (B) float32, or None if not asked for.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    no_speech_probs: np.ndarray | None


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
        self.rooms = Rooms(self._new_room)

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

    def new_decoder(self, features: AudioFeatures) -> "Decoder":
        """Makes a decoder for encoded windows; its KV cache is empty."""
        return Decoder(self, features)

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
        buffer = runtime.as_buffer(array)
        if self.device == "cpu":
            return buffer
        with runtime.room_for(f"an input of shape {tuple(buffer.shape)}"):
            return buffer.to(self.on)

    def new_cache(self, length: int, batch: int) -> list[Buffer]:
        """Makes keys and values for `batch` rows of `length` tokens, uninitialised: none is read that was not written."""
        heads = self.dims.n_text_head
        shapes = keys_shape(batch, heads, length, self.device), (batch, heads, length, HEAD_DIM)
        dtype = DType[packed.Format.of(self.dtype, self.device).caches]
        with runtime.room_for(f"a cache for {batch} windows"):
            return [Buffer(dtype, shape, self.on) for shape in shapes]

    def _new_room(self, capacity: int) -> Room:
        dims, caches = self.dims, []
        for _ in range(dims.n_text_layer):
            caches += self.new_cache(dims.n_text_ctx, capacity) + self.new_cache(dims.n_audio_ctx, capacity)
        return Room(self.graphs["decoder"], self.on, capacity, caches, dims.n_vocab)

    def execute(self, graph: str, *inputs: np.ndarray | Buffer) -> list[Buffer]:
        """Runs one of the graphs of `max_whisper.graphs`."""
        return runtime.execute(self.graphs[graph], *inputs)


class Decoder:
    """The text decoder over B encoded windows, with the keys and values of the tokens it has seen.

    Args:
        model: The model.
        features: The windows.
    """

    def __init__(self, model: Whisper, features: AudioFeatures) -> None:
        self._model, self._batch = model, len(features)
        self._past = np.zeros(self._batch, np.int32)
        # What is the same in most steps is put in place once.
        self._newest = model.put(np.zeros(self._batch, np.int32))
        self._unasked = model.put(np.full(self._batch, -1, np.int32))
        self._mask = model.put(np.zeros(model.dims.n_vocab, np.uint8))
        self._next: Step | None = None
        self._room = self._move_in(features) if model.on.api == "cuda" else None
        if self._room is None:
            self._caches: list[Buffer] = []
            for layer in range(model.dims.n_text_layer):
                self._caches += model.new_cache(model.dims.n_text_ctx, self._batch)
                self._caches += features.cross[2 * layer : 2 * layer + 2]

    def _move_in(self, features: AudioFeatures) -> Room:
        """Takes caches whose steps are captured, or can be, and copies the audio's keys and values there."""
        room = self._model.rooms.take(self._batch)
        weakref.finalize(self, self._model.rooms.give, room)
        room.mask.inplace_copy_from(self._mask)
        self._caches = room.caches(self._batch)
        for layer in range(self._model.dims.n_text_layer):
            for part in range(2):
                self._caches[4 * layer + 2 + part].inplace_copy_from(features.cross[2 * layer + part])
        return room

    def set_suppression(self, mask: np.ndarray) -> None:
        """Sets, for each token, the bits of the rules that suppress it.

        Args:
            mask: (n_vocab,) uint8.
        """
        self._mask = self._model.put(np.ascontiguousarray(mask, np.uint8))
        self._next = None
        if self._room:
            self._room.mask.inplace_copy_from(self._mask)

    def forward(
        self,
        tokens: np.ndarray,
        rules: np.ndarray,
        last: np.ndarray | None = None,
        no_speech_at: np.ndarray | None = None,
    ) -> Picks:
        """Appends tokens to every row and picks one more under the row's rules.

        Args:
            tokens: (B, T) int32.
            rules: (B, 4) int32, see `max_whisper.ops.greedy`.
            last: (B) int32, the position of each row's last valid token; T - 1 if not given. What lies behind it is
                overwritten by the next call.
            no_speech_at: (B) int32, the position whose next-token distribution tells whether somebody speaks.

        Raises:
            ValueError: The tokens do not fit into the context or are none of the vocabulary; the rules suppress all.
        """
        usual = tokens.shape[1] == 1 and last is None and no_speech_at is None
        if usual and (self._room or self._model.device == "cpu"):
            picks = self._repeat(tokens, rules)
        else:
            asked = self._unasked if no_speech_at is None else np.ascontiguousarray(no_speech_at, np.int32)
            picked, log_probs, silence, _ = self._step(tokens, rules, last, asked)
            asked_probs = None if no_speech_at is None else silence.to_numpy()
            picks = Picks(picked.to_numpy(), log_probs.to_numpy(), asked_probs)
        if (
            self._model.device == "gpu" and np.isnan(picks.log_probs).any()
        ):  # how a kernel on a GPU says what one on a CPU raises
            row = int(np.isnan(picks.log_probs).argmax())
            raise ValueError(f"greedy: the rules of row {row} suppress every token, or its logits are not finite")
        return picks

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Appends tokens to every row and returns the logits behind the last one.

        Args:
            tokens: (B, T) int32.

        Returns:
            (B, n_vocab) float32.
        """
        at = np.full(self._batch, tokens.shape[1] - 1, np.int32)
        anything = np.tile(np.array([0, 0, 0, self._model.dims.n_vocab], np.int32), (self._batch, 1))
        states = self._step(tokens, anything, at, self._unasked)[3]
        return self._model.execute("logits", states, self._model.put(at))[0].to_numpy()

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """Goes on with some rows only, if that is worth it, so that a step costs less or nothing for those that have ended.

        Keys and values move within their buffers, those of the audio too: the features that the decoder was made of are
        spent.

        Args:
            rows: For each row from now on, which one it was, at its own place or behind it.

        Returns:
            The same; or all rows, where a step costs about as much for all: on a GPU, while more than half of them run.
        """
        if self._room and 2 * len(rows) > self._batch:
            return range(self._batch)
        moves = [(to, source) for to, source in enumerate(rows) if to != source]
        for cache in self._caches:
            for to, source in moves:
                runtime.rows(cache, to, to + 1).inplace_copy_from(runtime.rows(cache, source, source + 1))
        if moves and self._model.device == "cpu":  # a worker thread copies: nothing else says when it is done
            self._model.on.default_queue.synchronize()
        self._batch = len(rows)
        self._past = self._past[list(rows)]
        self._caches = [self._first_rows(cache) for cache in self._caches]
        self._newest, self._unasked = self._first_rows(self._newest), self._first_rows(self._unasked)
        self._next = None
        return rows

    def _first_rows(self, buffer: Buffer) -> Buffer:
        return runtime.rows(buffer, 0, self._batch)

    def _step(
        self, tokens: np.ndarray, rules: np.ndarray, last: np.ndarray | None, no_speech_at: np.ndarray | Buffer
    ) -> list[Buffer]:
        length = tokens.shape[1]
        if last is not None:
            last = np.ascontiguousarray(last, np.int32)
        elif length > 1:
            last = np.full(self._batch, length - 1, np.int32)
        if self._model.device == "gpu":
            self._check(tokens, last, no_speech_at)
        put = self._model.put
        results = self._model.execute(
            "decoder",
            put(np.ascontiguousarray(tokens, np.int32)),
            put(self._past),
            self._newest if last is None else put(last),
            put(no_speech_at),
            self._mask,
            put(np.ascontiguousarray(rules, np.int32)),
            *self._caches,
        )
        self._past = self._past + (1 if last is None else last + 1)
        return results

    def _repeat(self, tokens: np.ndarray, rules: np.ndarray) -> Picks:
        """Makes the usual step: what it reads and writes has its place, and on a GPU it is captured."""
        if self._room:
            self._check(tokens, None, self._unasked)
            step = self._room.step(self._batch)
        elif self._next is None:
            constants = self._newest, self._unasked, self._mask
            step = self._next = Step(self._model.graphs["decoder"], self._batch, constants, self._caches)
        else:
            step = self._next
        picked, log_probs = step.run(tokens, self._past, rules)
        self._past = self._past + 1
        return Picks(picked, log_probs, None)

    def _check(self, tokens: np.ndarray, last: np.ndarray | None, no_speech_at: np.ndarray | Buffer) -> None:
        """Refuses what would lead outside of a table: the host code of a GPU's kernels cannot see these values."""
        dims, length = self._model.dims, tokens.shape[1]
        for name, values, lowest, highest in (
            ("tokens", tokens, 0, dims.n_vocab - 1),
            ("past", self._past, 0, dims.n_text_ctx - length),
            ("last", last, 0, length - 1),
            ("no_speech_at", no_speech_at, -1, length - 1),
        ):
            if not isinstance(values, np.ndarray):
                continue
            outside = values[(values < lowest) | (values > highest)]
            if outside.size:
                raise ValueError(f"decoder: {name} has {outside[0]}, expected {lowest} to {highest}")


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

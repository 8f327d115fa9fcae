"""The text decoder of a model on a GPU: an execution of its graph is a step, which makes ready the next (`replay.py`)."""

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
from max._core.engine import Model
from max.driver import Buffer, Device
from max.dtype import DType

from max_whisper import runtime
from max_whisper.config import HEAD_DIM, ModelDimensions
from max_whisper.decoding import Picks
from max_whisper.packing import keys_shape
from max_whisper.replay import STEPS, Room, Rooms


class GPUDecoder:
    """The text decoder over B encoded windows, with the keys and values of the tokens it has seen.

    Args:
        graphs: The model's graphs.
        dims: Its sizes.
        rooms: What other decoders have left.
        audio: Per block keys and values (B, H, 1500, 64) of the audio.
    """

    def __init__(
        self, graphs: Mapping[str, Model], dims: ModelDimensions, rooms: Rooms, audio: Sequence[Buffer]
    ) -> None:
        self._graphs, self._dims = graphs, dims
        self._batch = int(audio[0].shape[0])
        self._past = np.zeros(self._batch, np.int32)
        self._room = rooms.take(self._batch)
        weakref.finalize(self, rooms.give, self._room)
        self._room.hear(audio)
        self.set_suppression(np.zeros(dims.n_vocab, np.uint8))

    def set_suppression(self, mask: np.ndarray) -> None:
        """Sets, for each token, the bits of the rules that suppress it.

        Args:
            mask: (n_vocab,) uint8.
        """
        self._room.suppress(mask)

    def forward(
        self,
        tokens: np.ndarray,
        rules: np.ndarray,
        last: np.ndarray | None = None,
        no_speech_at: np.ndarray | None = None,
    ) -> Picks:
        """Appends tokens to every row and picks one more under the row's rules: as `CPUDecoder.forward`."""
        if tokens.shape[1] == 1 and last is None and no_speech_at is None:
            picked, log_probs = self.run(tokens, rules, np.full((self._batch, 3), -1, np.int32), 1)
            return Picks(picked[:, 0], log_probs[:, 0], None)
        if no_speech_at is not None:
            _require_between("no_speech_at", no_speech_at, -1, tokens.shape[1] - 1)
        picked, log_probs, states = self._first(tokens, rules, last)
        _require_picks(log_probs)
        silence = None if no_speech_at is None else self._read(states, no_speech_at, "silence")
        return Picks(picked, log_probs, silence)

    def run(self, tokens: np.ndarray, rules: np.ndarray, said: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Appends a token to every row and picks more, each of which is appended in its turn: as `CPUDecoder.run`.

        But it picks as many for all rows, the end again for those that have ended.
        """
        steps = min(limit, STEPS)
        self._check(tokens, steps)
        picked, log_probs = self._room.step(self._batch).run(tokens, self._past, rules, said, steps)
        self._past = self._past + steps
        _require_picks(log_probs)
        return picked, log_probs

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Appends tokens to every row and returns the logits behind the last one: as `CPUDecoder.logits`."""
        anything = np.tile(np.array([0, 0, 0, self._dims.n_vocab], np.int32), (self._batch, 1))
        states = self._first(tokens, anything)[2]
        return self._read(states, np.full(self._batch, tokens.shape[1] - 1), "logits")

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """Goes on with some rows only, if that is worth it: as `CPUDecoder.keep`.

        Args:
            rows: For each row from now on, which one it was, at its own place or behind it.

        Returns:
            The same; or all rows while more than half of them run: a step costs about as much for all.
        """
        if 2 * len(rows) > self._batch:
            return range(self._batch)
        for to, source in enumerate(rows):
            if to != source:
                self._room.move(to, source)
        self._batch = len(rows)
        self._past = self._past[list(rows)]
        return rows

    def _first(
        self, tokens: np.ndarray, rules: np.ndarray, last: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, Buffer]:
        """Makes a step of any number of tokens: tokens picked, log probabilities, states."""
        batch, length = tokens.shape
        at = np.full(batch, length - 1, np.int32) if last is None else np.ascontiguousarray(last, np.int32)
        self._check(tokens, length)
        _require_between("last", at, 0, length - 1)
        step = self._room.step(self._batch)
        results = step.first(np.ascontiguousarray(tokens, np.int32), self._past, rules, at)
        self._past = self._past + at + 1
        return results

    def _read(self, states: Buffer, at: np.ndarray, graph: str) -> np.ndarray:
        """What a graph says of the states at one position of each row."""
        position = runtime.put(np.ascontiguousarray(at, np.int32), states.device)
        return runtime.execute(self._graphs[graph], states, position)[0].to_numpy()

    def _check(self, tokens: np.ndarray, length: int) -> None:
        """Refuses what would lead outside of a table: the host code of a GPU's kernels cannot see these values.

        Args:
            tokens: What is appended.
            length: How many tokens will be.
        """
        _require_between("tokens", tokens, 0, self._dims.n_vocab - 1)
        _require_between("past", self._past, 0, self._dims.n_text_ctx - length)


def _require_between(name: str, values: np.ndarray, lowest: int, highest: int) -> None:
    outside = values[(values < lowest) | (values > highest)]
    if outside.size:
        raise ValueError(f"decoder: {name} has {outside[0]}, expected {lowest} to {highest}")


def _require_picks(log_probs: np.ndarray) -> None:
    """Raises what a kernel on a CPU raises, where one on a GPU says NaN."""
    if np.isnan(log_probs).any():
        row = int(np.isnan(log_probs.reshape(len(log_probs), -1)).any(axis=1).argmax())
        raise ValueError(f"greedy: the rules of row {row} suppress every token, or its logits are not finite")


def new_cache(dims: ModelDimensions, length: int, batch: int, dtype: DType, device: Device) -> list[Buffer]:
    """Makes keys and values of one block, for `batch` rows of `length` tokens; none is read that was not written."""
    heads = dims.n_text_head
    shapes = keys_shape(batch, heads, length, "gpu"), (batch, heads, length, HEAD_DIM)
    with runtime.room_for(f"a cache for {batch} windows"):
        return [Buffer(dtype, shape, device) for shape in shapes]


def new_room(model: Model, device: Device, dims: ModelDimensions, dtype: DType, capacity: int) -> Room:
    """Makes a room for so many rows."""
    caches: list[Buffer] = []
    for _ in range(dims.n_text_layer):
        for length in (dims.n_text_ctx, dims.n_audio_ctx):
            caches += new_cache(dims, length, capacity, dtype, device)
    return Room(model, device, capacity, caches, dims.n_vocab)

"""The text decoder of a model on a GPU: an execution of its graph is a step; on CUDA a captured one (`replay.py`)."""

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
from max_whisper.replay import Room, Rooms


class GPUDecoder:
    """The text decoder over B encoded windows, with the keys and values of the tokens it has seen.

    Args:
        graphs: The model's graphs.
        dims: Its sizes.
        device: The GPU.
        dtype: Element type of keys and values.
        rooms: What other decoders have left.
        audio: Per block keys and values (B, H, 1500, 64) of the audio.
    """

    def __init__(
        self,
        graphs: Mapping[str, Model],
        dims: ModelDimensions,
        device: Device,
        dtype: DType,
        rooms: Rooms,
        audio: Sequence[Buffer],
    ) -> None:
        self._graphs, self._dims, self._device = graphs, dims, device
        self._batch = int(audio[0].shape[0])
        self._past = np.zeros(self._batch, np.int32)
        # What is the same in most steps is put in place once.
        self._newest = self._put(np.zeros(self._batch, np.int32))
        self._unasked = self._put(np.full(self._batch, -1, np.int32))
        self._mask = self._put(np.zeros(dims.n_vocab, np.uint8))
        self._room = self._move_in(rooms, audio) if device.api == "cuda" else None
        if self._room is None:
            self._caches: list[Buffer] = []
            for layer in range(dims.n_text_layer):
                self._caches += new_cache(dims, dims.n_text_ctx, self._batch, dtype, device)
                self._caches += audio[2 * layer : 2 * layer + 2]

    def _move_in(self, rooms: Rooms, audio: Sequence[Buffer]) -> Room:
        """Takes caches whose steps are captured, or can be, and copies the audio's keys and values there."""
        room = rooms.take(self._batch)
        weakref.finalize(self, rooms.give, room)
        room.mask.inplace_copy_from(self._mask)
        self._caches = room.caches(self._batch)
        for layer in range(self._dims.n_text_layer):
            for part in range(2):
                self._caches[4 * layer + 2 + part].inplace_copy_from(audio[2 * layer + part])
        return room

    def set_suppression(self, mask: np.ndarray) -> None:
        """Sets, for each token, the bits of the rules that suppress it.

        Args:
            mask: (n_vocab,) uint8.
        """
        self._mask = self._put(np.ascontiguousarray(mask, np.uint8))
        if self._room:
            self._room.mask.inplace_copy_from(self._mask)

    def forward(
        self,
        tokens: np.ndarray,
        rules: np.ndarray,
        last: np.ndarray | None = None,
        no_speech_at: np.ndarray | None = None,
    ) -> Picks:
        """Appends tokens to every row and picks one more under the row's rules: as `CPUDecoder.forward`."""
        if self._room and tokens.shape[1] == 1 and last is None and no_speech_at is None:
            picks = self._repeat(self._room, tokens, rules)
        else:
            asked = self._unasked if no_speech_at is None else np.ascontiguousarray(no_speech_at, np.int32)
            picked, log_probs, silence, _ = self._step(tokens, rules, last, asked)
            asked_probs = None if no_speech_at is None else silence.to_numpy()
            picks = Picks(picked.to_numpy(), log_probs.to_numpy(), asked_probs)
        if np.isnan(picks.log_probs).any():  # how a kernel on a GPU says what one on a CPU raises
            row = int(np.isnan(picks.log_probs).argmax())
            raise ValueError(f"greedy: the rules of row {row} suppress every token, or its logits are not finite")
        return picks

    def run(self, tokens: np.ndarray, rules: np.ndarray, said: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Appends a token to every row and picks one more: as `CPUDecoder.run`, which picks more than one."""
        picks = self.forward(tokens, rules)
        return picks.tokens[:, None], picks.log_probs[:, None]

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Appends tokens to every row and returns the logits behind the last one: as `CPUDecoder.logits`."""
        at = np.full(self._batch, tokens.shape[1] - 1, np.int32)
        anything = np.tile(np.array([0, 0, 0, self._dims.n_vocab], np.int32), (self._batch, 1))
        states = self._step(tokens, anything, at, self._unasked)[3]
        return runtime.execute(self._graphs["logits"], states, self._put(at))[0].to_numpy()

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """Goes on with some rows only, if that is worth it: as `CPUDecoder.keep`.

        Args:
            rows: For each row from now on, which one it was, at its own place or behind it.

        Returns:
            The same; or all rows, where a step costs about as much for all: with steps that are captured, while more
            than half of them run.
        """
        if self._room and 2 * len(rows) > self._batch:
            return range(self._batch)
        moves = [(to, source) for to, source in enumerate(rows) if to != source]
        for cache in self._caches:
            for to, source in moves:
                runtime.rows(cache, to, to + 1).inplace_copy_from(runtime.rows(cache, source, source + 1))
        self._batch = len(rows)
        self._past = self._past[list(rows)]
        self._caches = [self._first_rows(cache) for cache in self._caches]
        self._newest, self._unasked = self._first_rows(self._newest), self._first_rows(self._unasked)
        return rows

    def _first_rows(self, buffer: Buffer) -> Buffer:
        return runtime.rows(buffer, 0, self._batch)

    def _put(self, array: np.ndarray | Buffer) -> Buffer:
        return runtime.put(array, self._device)

    def _step(
        self, tokens: np.ndarray, rules: np.ndarray, last: np.ndarray | None, no_speech_at: np.ndarray | Buffer
    ) -> list[Buffer]:
        length = tokens.shape[1]
        if last is not None:
            last = np.ascontiguousarray(last, np.int32)
        elif length > 1:
            last = np.full(self._batch, length - 1, np.int32)
        self._check(tokens, last, no_speech_at)
        results = runtime.execute(
            self._graphs["decoder"],
            self._put(np.ascontiguousarray(tokens, np.int32)),
            self._put(self._past),
            self._newest if last is None else self._put(last),
            self._put(no_speech_at),
            self._mask,
            self._put(np.ascontiguousarray(rules, np.int32)),
            *self._caches,
        )
        self._past = self._past + (1 if last is None else last + 1)
        return results

    def _repeat(self, room: Room, tokens: np.ndarray, rules: np.ndarray) -> Picks:
        """Makes the usual step, which is captured: what it reads and writes has its place."""
        self._check(tokens, None, self._unasked)
        picked, log_probs = room.step(self._batch).run(tokens, self._past, rules)
        self._past = self._past + 1
        return Picks(picked, log_probs, None)

    def _check(self, tokens: np.ndarray, last: np.ndarray | None, no_speech_at: np.ndarray | Buffer) -> None:
        """Refuses what would lead outside of a table: the host code of a GPU's kernels cannot see these values."""
        dims, length = self._dims, tokens.shape[1]
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

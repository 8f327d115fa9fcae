"""Decoding steps on a GPU as launches of one graph: captured once, and replayed for every token, several in a row.

A step is some forty kernels of a few microseconds each, and a CPU takes longer to launch them than they run (one window of
tiny.en on an H200: 54 that ran 190 us took 400). A replay launches them all in 8 us. It does exactly what was captured, to
the same addresses, so all that a step reads and writes has a place of its own here, which decoders take turns to use.
A step leaves there what the next one is to be told (`ops.greedy_step`), which can follow before the CPU has seen a token.

    rules, said, tokens, past (host)  --one copy-->  device  --replay, replay ...-->  S tokens, log probabilities (host)
"""

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
from max._core.engine import Model
from max.driver import Buffer, Device
from max.dtype import DType

from max_whisper import runtime

STEPS = 16
"""Most steps between two looks at what was picked: a look takes about as long as a step, and when all rows have ended,
half of the steps of a run have been for nothing."""

_keys = count(1)
"""Names of captured graphs, never used twice."""


class Step:
    """Steps of B rows, and what they read and write.

    Args:
        model: The graph "decoder".
        device: The GPU.
        batch: B.
        last: The graph's input of that name for steps of one token: zeros (B), on the GPU.
        mask: Its `suppress_mask`.
        caches: Its caches, of B rows. What lies in them during the capture is of no matter.
    """

    def __init__(
        self, model: Model, device: Device, batch: int, last: Buffer, mask: Buffer, caches: Sequence[Buffer]
    ) -> None:
        self._model, self._device, self._batch = model, device, batch
        self._mask, self._caches = mask, caches
        self._key = 0
        self._results: list[Buffer] = []
        # Plain memory: MAX takes so much page-locked memory at the first request that it lasts half a second.
        self._sent = np.zeros(9 * batch, np.int32)
        self._received = np.zeros((batch, STEPS), np.int32), np.zeros((batch, STEPS), np.float32)
        self._host = [runtime.as_buffer(array) for array in (self._sent, *self._received)]
        self._arguments = Buffer(DType.int32, (9 * batch,), device)
        # The rules of a row are loaded at once: they come first, at a multiple of 16 bytes.
        rules, said, newest, self._past = (
            self._arguments[first * batch : end * batch] for first, end in ((0, 4), (4, 7), (7, 8), (8, 9))
        )
        self._usual = [newest.view(DType.int32, (batch, 1)), self._past, last, mask]
        self._picks = [array.to(device) for array in self._host[1:]]
        self._updated = [
            newest,
            self._past,
            rules.view(DType.int32, (batch, 4)),
            said.view(DType.int32, (batch, 3)),
            *self._picks,
        ]

    def first(
        self, tokens: np.ndarray, past: np.ndarray, rules: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Buffer]:
        """Makes a step of any number of tokens.

        Args:
            tokens: (B, T) int32.
            past: (B) int32: tokens that are in the caches.
            rules: (B, 4) int32.
            last: (B) int32: the position whose next token is picked.

        Returns:
            The tokens picked, int32 (B), their log probabilities, float32 (B), and the states.
        """
        self._send(rules, np.full(3 * self._batch, -1, np.int32), np.zeros(self._batch, np.int32), past)
        given, at = (runtime.put(array, self._device) for array in (tokens, last))
        inputs = [given, self._past, at, self._mask, *self._updated, *self._caches]
        (states,) = runtime.execute(self._model, *inputs)
        picked, log_probs = self._receive(past + last, 1)
        return picked[:, 0], log_probs[:, 0], states

    def run(
        self, tokens: np.ndarray, past: np.ndarray, rules: np.ndarray, said: np.ndarray, steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Makes several steps, each of which takes in what the one before it picked.

        Args:
            tokens: (B, 1) int32. Rows whose token is the end of text have ended, and end again, if `said` says so too.
            past: (B) int32: tokens that are in the caches.
            rules: (B, 4) int32, those of the first pick.
            said: (B, 3) int32, see `rules.TokenRules.said`.
            steps: How many, at most STEPS.

        Returns:
            The tokens picked, int32 (B, steps), and their log probabilities, float32 (B, steps).
        """
        self._send(rules, said, tokens, past)
        for _ in range(steps):
            self.repeat()
        return self._receive(past, steps)

    def repeat(self) -> None:
        """Makes a step of what the GPU has been told; it runs later, in its turn."""
        inputs = [*self._usual, *self._updated, *self._caches]
        if self._device.api != "cuda":
            self._results = runtime.execute(self._model, *inputs)
            return
        if not self._key:
            key = next(_keys)
            self._results = runtime.capture(self._model, key, *inputs)
            self._key = key  # now there is something to replay
        runtime.replay(self._model, self._key, *inputs)

    def _send(self, *arrays: np.ndarray) -> None:
        """Tells the GPU rules, said, tokens and past."""
        self._sent[:] = np.concatenate(arrays, axis=None)
        self._arguments.inplace_copy_from(self._host[0])

    def _receive(self, first: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Waits for what was picked behind the positions `first` (B) and the next ones."""
        for host, picks in zip(self._host[1:], self._picks, strict=True):
            host.inplace_copy_from(picks)
        self._device.default_queue.synchronize()
        columns = (first[:, None] + np.arange(steps)) % STEPS
        picked, log_probs = (np.take_along_axis(array, columns, axis=1) for array in self._received)
        return picked, log_probs

    def release(self) -> None:
        """Gives the graph's memory back."""
        if self._key:
            self._results = []
            runtime.release(self._model, self._key)


class Room:
    """What a decoder of up to `capacity` rows needs of a GPU's memory, and its steps, captured for each number of rows.

    Args:
        model: The graph "decoder".
        device: The GPU.
        capacity: Most rows.
        caches: The graph's caches, of so many rows: of each block keys and values of the text, then those of the audio.
        n_vocab: Tokens of the vocabulary.
    """

    def __init__(self, model: Model, device: Device, capacity: int, caches: Sequence[Buffer], n_vocab: int) -> None:
        self.capacity = capacity
        self._model, self._device, self._caches = model, device, caches
        self._last, self._mask = (
            runtime.as_buffer(array).to(device) for array in (np.zeros(capacity, np.int32), np.zeros(n_vocab, np.uint8))
        )
        self._steps: dict[int, Step] = {}

    def hear(self, audio: Sequence[Buffer]) -> None:
        """Copies the audio's keys and values of each block to where steps read them, of as many rows as there are."""
        for layer in range(len(self._caches) // 4):
            for part in range(2):
                heard = audio[2 * layer + part]
                runtime.rows(self._caches[4 * layer + 2 + part], 0, int(heard.shape[0])).inplace_copy_from(heard)

    def suppress(self, mask: np.ndarray) -> None:
        """Sets the bits of the rules that suppress each token: (n_vocab,) uint8."""
        self._mask.inplace_copy_from(runtime.as_buffer(np.ascontiguousarray(mask, np.uint8)))

    def move(self, to: int, source: int) -> None:
        """Copies the caches of one row to another one's place."""
        for cache in self._caches:
            runtime.rows(cache, to, to + 1).inplace_copy_from(runtime.rows(cache, source, source + 1))

    def step(self, batch: int) -> Step:
        """The steps of the first so many rows; captured when they are first asked for."""
        if batch not in self._steps:
            last, *caches = (runtime.rows(buffer, 0, batch) for buffer in (self._last, *self._caches))
            self._steps[batch] = Step(self._model, self._device, batch, last, self._mask, caches)
        return self._steps[batch]

    def release(self) -> None:
        """Gives its graphs' memory back."""
        for step in self._steps.values():
            step.release()


class Rooms:
    """The rooms that no decoder is in: the next one moves into what the last one left, with the steps that it captured.

    Args:
        make: Makes a room for so many rows.
    """

    def __init__(self, make: Callable[[int], Room]) -> None:
        self._make = make
        self._free: list[Room] = []

    def take(self, batch: int) -> Room:
        """A room for so many rows; free ones that are too small are given up for it."""
        fitting = [room for room in self._free if room.capacity >= batch]
        if fitting:
            room = min(fitting, key=lambda room: room.capacity)
            self._free.remove(room)
            return room
        for room in self._free:
            room.release()
        self._free.clear()
        return self._make(batch)

    def give(self, room: Room) -> None:
        """A decoder has left."""
        self._free.append(room)

"""A decoding step on a GPU as one launch: captured once into a device graph, and replayed for every token.

A step is some forty kernels of a few microseconds each, and a CPU takes longer to launch them than they run (one window of
tiny.en on an H200: 54 that ran 190 us took 400). A replay launches them all in 8 us. It does exactly what was captured, to
the same addresses, so all that a step reads and writes has a place of its own here, which decoders take turns to use.

    rules, tokens, past (host)  --one copy-->  device  --replay-->  token, log probability  --copies-->  host
"""

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
from max._core.engine import Model
from max.driver import Buffer, Device
from max.dtype import DType

from max_whisper import runtime

_keys = count(1)
"""Names of captured graphs, never used twice."""


class Step:
    """The step that a decoder makes most often: one token a row, whose successor is picked, nothing asked about silence.

    Args:
        model: The graph "decoder".
        device: The GPU.
        batch: B, the rows.
        constants: The graph's inputs `last` (B), `no_speech_at` (B) and `suppress_mask`, on the GPU.
        caches: Its caches, of B rows. What lies in them during the capture is of no matter.
    """

    def __init__(
        self, model: Model, device: Device, batch: int, constants: Sequence[Buffer], caches: Sequence[Buffer]
    ) -> None:
        last, no_speech_at, mask = constants
        self._model, self._device, self._batch = model, device, batch
        self._key = next(_keys)
        # Plain memory: MAX takes so much page-locked memory at the first request that it lasts half a second.
        self._sent = np.zeros(6 * batch, np.int32)
        self._received = np.zeros(batch, np.int32), np.zeros(batch, np.float32)
        self._host = [runtime.as_buffer(array) for array in (self._sent, *self._received)]
        self._arguments = Buffer(DType.int32, (6 * batch,), device)
        # The rules of a row are loaded at once: they come first, at a multiple of 16 bytes.
        rules, tokens, past = (self._arguments[first * batch : end * batch] for first, end in ((0, 4), (4, 5), (5, 6)))
        self._inputs = [
            tokens.view(DType.int32, (batch, 1)),
            past,
            last,
            no_speech_at,
            mask,
            rules.view(DType.int32, (batch, 4)),
            *caches,
        ]
        self._results = runtime.capture(model, self._key, *self._inputs)[:2]

    def run(self, tokens: np.ndarray, past: np.ndarray, rules: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Makes a step.

        Args:
            tokens: (B, 1) int32.
            past: (B) int32: tokens that are in the caches.
            rules: (B, 4) int32.

        Returns:
            The tokens picked, int32 (B), and their log probabilities, float32 (B).
        """
        sent, *received = self._host
        self._sent[:] = np.concatenate([rules, tokens, past], axis=None)
        self._arguments.inplace_copy_from(sent)
        self.replay()
        for array, result in zip(received, self._results, strict=True):
            array.inplace_copy_from(result)
        self._device.default_queue.synchronize()
        picked, log_probs = (array.copy() for array in self._received)
        return picked, log_probs

    def replay(self) -> None:
        """Makes the step with the arguments that are on the GPU already; it runs later, in its turn."""
        runtime.replay(self._model, self._key, *self._inputs)

    def release(self) -> None:
        """Gives the graph's memory back."""
        self._results = []
        runtime.release(self._model, self._key)


class Room:
    """What a decoder of up to `capacity` rows needs of a GPU's memory, and its steps, captured for each number of rows.

    Args:
        model: The graph "decoder".
        device: The GPU.
        capacity: Most rows.
        caches: The graph's caches, of so many rows.
        n_vocab: Tokens of the vocabulary.

    Attributes:
        mask: What `set_suppression` sets, on the GPU.
    """

    def __init__(self, model: Model, device: Device, capacity: int, caches: Sequence[Buffer], n_vocab: int) -> None:
        self.capacity = capacity
        self._model, self._device, self._caches = model, device, caches
        self._newest, self._unasked, self.mask = (
            runtime.as_buffer(array).to(device)
            for array in (np.zeros(capacity, np.int32), np.full(capacity, -1, np.int32), np.zeros(n_vocab, np.uint8))
        )
        self._steps: dict[int, Step] = {}

    def caches(self, batch: int) -> list[Buffer]:
        """The caches' first rows."""
        return [runtime.rows(cache, 0, batch) for cache in self._caches]

    def step(self, batch: int) -> Step:
        """The step for so many rows; captured when it is first asked for."""
        if batch not in self._steps:
            constants = [runtime.rows(self._newest, 0, batch), runtime.rows(self._unasked, 0, batch), self.mask]
            self._steps[batch] = Step(self._model, self._device, batch, constants, self.caches(batch))
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

"""A decoding step on a CPU, made again and again: what it reads has a place of its own, wrapped for MAX once.

Wrapping arrays, checking them and unwrapping took a tenth of tiny.en's steps: the interpreter runs between two steps, when
its own code and data have left the caches.
"""

from collections.abc import Sequence

import numpy as np
from max._core.engine import Model
from max.driver import Buffer

from max_whisper import runtime


class Step:
    """The step that a decoder makes most often: one token a row, whose successor is picked, nothing asked about silence.

    Args:
        model: The graph "decoder".
        batch: B, the rows.
        constants: The graph's inputs `last` (B), `no_speech_at` (B) and `suppress_mask`.
        caches: Its caches, of B rows.
    """

    def __init__(self, model: Model, batch: int, constants: Sequence[Buffer], caches: Sequence[Buffer]) -> None:
        self._model = model
        self._arguments = tuple(np.zeros(shape, np.int32) for shape in ((batch, 1), (batch,), (batch, 4)))
        tokens, past, rules = (runtime.as_buffer(array) for array in self._arguments)
        self._inputs = [tokens, past, *constants, rules, *caches]

    def run(self, tokens: np.ndarray, past: np.ndarray, rules: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Makes a step, as `replay.Step.run` does on a GPU.

        Raises:
            ValueError: A shape is another, or a kernel refuses what it is given.
        """
        for place, argument in zip(self._arguments, (tokens, past, rules), strict=True):
            if place.shape != argument.shape:
                raise ValueError(f"a step takes an array of shape {place.shape}, not {argument.shape}")
            np.copyto(place, argument)
        picked, log_probs, *_ = runtime.repeat(self._model, self._inputs)
        return picked.to_numpy(), log_probs.to_numpy()

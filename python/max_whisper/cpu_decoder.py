"""The text decoder of a model on a CPU: one execution of its graph takes several steps.

From one execution to the next, MAX and the interpreter take 0.2 ms, a fourth of what a step of tiny.en takes. So the
graph goes on with the tokens that it picks, until a row ends or STEPS are made.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from max._core.engine import Model
from max.driver import CPU, Buffer
from max.dtype import DType

from max_whisper import runtime
from max_whisper.config import HEAD_DIM, ModelDimensions
from max_whisper.decoding import Picks
from max_whisper.packing import keys_shape

STEPS = 16
"""Most steps of one execution: what lies between two is then a fiftieth of tiny.en's time, and Ctrl-C is heard soon."""


class CPUDecoder:
    """The text decoder over B encoded windows, with the keys and values of the tokens it has seen.

    Args:
        graphs: The model's graphs.
        dims: Its sizes.
        dtype: Element type of the keys and values of the text.
        audio: Keys and values of the audio, (L, B, ...), see `ops.audio_heads`.
    """

    def __init__(
        self, graphs: Mapping[str, Model], dims: ModelDimensions, dtype: DType, audio: Sequence[Buffer]
    ) -> None:
        self._graphs, self._dims = graphs, dims
        layers, self._batch = (int(size) for size in audio[0].shape[:2])
        heads, length = dims.n_text_head, dims.n_text_ctx
        shapes = keys_shape(self._batch, heads, length), (self._batch, heads, length, HEAD_DIM)
        # Uninitialised: nothing is read that was not written.
        self._caches = [*(Buffer(dtype, (layers, *shape), CPU()) for shape in shapes), *audio]
        self._past = np.zeros(self._batch, np.int32)
        self._mask = np.zeros(dims.n_vocab, np.uint8)

    def set_suppression(self, mask: np.ndarray) -> None:
        """Sets, for each token, the bits of the rules that suppress it.

        Args:
            mask: (n_vocab,) uint8.
        """
        self._mask = np.ascontiguousarray(mask, np.uint8)

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
        picked, log_probs, states = self._execute(tokens, rules, last=last)
        silence = None
        if no_speech_at is not None:
            at = np.ascontiguousarray(no_speech_at, np.int32)
            silence = runtime.execute(self._graphs["silence"], states, at)[0].to_numpy()
        return Picks(picked[:, 0], log_probs[:, 0], silence)

    def run(self, tokens: np.ndarray, rules: np.ndarray, said: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Appends a token to every row and picks more, each of which is appended in its turn.

        Args:
            tokens: (B, 1) int32. A row whose token is the end of text has ended, and ends again with every step.
            rules: (B, 4) int32: those of the first pick.
            said: (B, 3) int32, see `rules.TokenRules.said`: what the rules of later picks follow from.
            limit: Most tokens to pick.

        Returns:
            At least one token for each row, (B, n) int32, and their log probabilities, float32. The last ones are the first
            with which a row has ended, if one has.

        Raises:
            ValueError: As `forward`.
        """
        picked, log_probs, _ = self._execute(tokens, rules, said, steps=min(limit, STEPS))
        made = int(np.count_nonzero(picked[0] >= 0))
        self._past += made - 1
        return picked[:, :made], log_probs[:, :made]

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Appends tokens to every row and returns the logits behind the last one.

        Args:
            tokens: (B, T) int32.

        Returns:
            (B, n_vocab) float32.
        """
        anything = np.tile(np.array([0, 0, 0, self._dims.n_vocab], np.int32), (self._batch, 1))
        states = self._execute(tokens, anything)[2]
        at = np.full(self._batch, tokens.shape[1] - 1, np.int32)
        return runtime.execute(self._graphs["logits"], states, at)[0].to_numpy()

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """Goes on with some rows only, so that a step costs nothing for those that have ended.

        Keys and values move within their buffers, those of the audio too: the features that the decoder was made of are
        spent.

        Args:
            rows: For each row from now on, which one it was, at its own place or behind it.

        Returns:
            The same.
        """
        moves = [(to, source) for to, source in enumerate(rows) if to != source]
        for cache in self._caches:
            for layer in range(cache.shape[0]):
                for to, source in moves:
                    _row(cache, layer, to).inplace_copy_from(_row(cache, layer, source))
        if moves:  # a worker thread copies: nothing else says when it is done
            CPU().default_queue.synchronize()
        self._batch = len(rows)
        self._past = self._past[list(rows)]
        return rows

    def _execute(
        self,
        tokens: np.ndarray,
        rules: np.ndarray,
        said: np.ndarray | None = None,
        *,
        last: np.ndarray | None = None,
        steps: int = 1,
    ) -> tuple[np.ndarray, np.ndarray, Buffer]:
        """Makes a run: tokens and log probabilities (B, steps), states."""
        batch = self._batch
        if last is None:
            last = np.full(batch, tokens.shape[1] - 1, np.int32)
        picked, log_probs = np.empty((batch, steps), np.int32), np.empty((batch, steps), np.float32)
        (states,) = runtime.execute(
            self._graphs["decoder"],
            np.ascontiguousarray(tokens, np.int32),
            self._past,
            np.ascontiguousarray(last, np.int32),
            self._mask,
            np.ascontiguousarray(rules, np.int32),
            np.full((batch, 3), -1, np.int32) if said is None else np.ascontiguousarray(said, np.int32),
            picked,
            log_probs,
            *self._caches,
        )
        self._past = self._past + last + 1
        return picked, log_probs, states


def _row(cache: Buffer, layer: int, row: int) -> Buffer:
    """A row of one block's keys or values, where it is."""
    return cache[(layer, row, *[slice(None)] * (cache.rank - 2))]

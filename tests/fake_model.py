"""A Whisper without a network: logits made to order, and from them what the kernels of the real one must make.

`pick` is the reference of the greedy kernel. `FakeModel` has the interface that decoding and transcription use, and
insists on its terms (dtypes, shapes, a fresh decoder per run).
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from max_whisper.checkpoint import load_checkpoint
from max_whisper.config import ModelDimensions
from max_whisper.decoding import Picks
from max_whisper.rules import SUPPRESSED_AT_BEGIN, TIMESTAMP_RULE
from max_whisper.tokenizer import Tokenizer, Vocabulary, get_tokenizer
from max_whisper.transcribe import Transcription, transcribe

WIDTHS = {"tiny.en": (384, 6, 4, 51864), "base": (512, 8, 6, 51865)}  # state, heads, layers, vocabulary

Logits = Callable[[int, list[int]], np.ndarray]
"""Window (its first mel frame) and tokens so far to the next token's logits, float32 (n_vocab,)."""


def dimensions(name: str) -> ModelDimensions:
    """The sizes of tiny.en or base."""
    state, heads, layers, n_vocab = WIDTHS[name]
    return ModelDimensions(80, 1500, state, heads, layers, n_vocab, 448, state, heads, layers)


@cache
def vocabulary(name: str) -> Vocabulary:
    """The vocabulary of tiny.en or base, from the package that brings it."""
    return load_checkpoint(name).vocabulary


def tokenizer_of(name: str, language: str | None = None, task: str | None = None) -> Tokenizer:
    """The tokenizer of tiny.en or base."""
    return get_tokenizer(vocabulary(name), language=language, task=task)


def pick(logits: np.ndarray, rule: Sequence[int], mask: np.ndarray, timestamp_begin: int) -> tuple[int, float]:
    """The most probable allowed token and its log probability among the allowed, in float64."""
    bits, text_begin, timestamps_from, timestamps_to = rule
    ids = np.arange(len(logits))
    in_text = (ids < timestamp_begin) & (ids >= text_begin)
    in_timestamps = (ids >= timestamp_begin) & (ids >= timestamps_from) & (ids < timestamps_to)
    allowed = (in_text | in_timestamps) & (mask & bits == 0)
    values = np.where(allowed, logits.astype(np.float64), -np.inf)
    if bits & TIMESTAMP_RULE and log_sum_exp(values[timestamp_begin:]) > values[:timestamp_begin].max():
        values[:timestamp_begin] = -np.inf
    token = int(values.argmax())
    return token, float(values[token] - log_sum_exp(values))


def log_sum_exp(values: np.ndarray) -> float:
    """log(sum(exp(values))); -inf where all are."""
    largest = values.max()
    return largest if largest == -np.inf else float(largest + np.log(np.exp(values - largest).sum()))


def counting(seconds: float) -> np.ndarray:
    """Samples of which those in frame f say f + 1, in steps small enough for any clamp of features; 300 s at most."""
    return ((np.arange(round(seconds * 16000)) // 160 + 1) / 2**14).astype(np.float32)


def follow(rule: Sequence[int], said: Sequence[int], dims: Any) -> tuple[int, int, int, int]:
    """The rule after that of an earlier token, given the token before the newest, the newest and the newest timestamp."""
    (before, newest, latest), bits, begin = said, rule[0] & ~SUPPRESSED_AT_BEGIN, dims.timestamp_begin
    if not bits & TIMESTAMP_RULE or latest < 0:
        return bits, 0, begin, dims.n_vocab
    if newest < begin:
        return bits, 0, latest + 1, dims.n_vocab
    if 0 <= before < begin:
        return bits, dims.end_of_text, latest, dims.n_vocab
    return bits, 0, begin, begin


class StepByStep:
    """Runs of up to three steps, for decoders that know `forward`; they end when a row does, as on a CPU, or go on."""

    goes_on = False
    dims: ModelDimensions
    forward: Callable[..., Picks]

    def run(self, tokens: np.ndarray, rules: np.ndarray, said: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        assert tokens.shape == (len(rules), 1)
        assert said.dtype == np.int32
        assert said.shape == (len(rules), 3)
        assert limit > 0
        dims, ended, made = self.dims, tokens[:, 0] == self.dims.end_of_text, []
        np.testing.assert_array_equal(said[:, 1], tokens[:, 0])
        while len(made) < min(limit, 3) and not (made and (made[-1][0] == dims.end_of_text)[~ended].any()):
            picks = self.forward(tokens, rules)
            made.append((np.where(ended, dims.end_of_text, picks.tokens), picks.log_probs))
            if self.goes_on:
                ended |= made[-1][0] == dims.end_of_text
            tokens = made[-1][0][:, None].astype(np.int32)
            latest = np.where(tokens >= dims.timestamp_begin, tokens, said[:, 2:])
            said = np.concatenate([said[:, 1:2], tokens, latest], axis=1)
            rules = np.array([follow(*row, dims) for row in zip(rules.tolist(), said.tolist(), strict=True)], np.int32)
        return np.stack([one[0] for one in made], axis=1), np.stack([one[1] for one in made], axis=1)


class FakeDecoder(StepByStep):
    def __init__(self, model: "FakeModel", windows: list[int]) -> None:
        self.model, self.windows, self.dims = model, windows, model.dims
        self.rows: list[list[int]] = [[] for _ in windows]
        self.mask = np.zeros(model.dims.n_vocab, np.uint8)

    def set_suppression(self, mask: np.ndarray) -> None:
        assert mask.dtype == np.uint8
        assert mask.shape == (self.model.dims.n_vocab,)
        assert not (mask & TIMESTAMP_RULE).any()
        self.mask = mask

    def forward(self, tokens: np.ndarray, rules: np.ndarray, *, no_speech_at: np.ndarray | None = None) -> Picks:
        assert rules.dtype == np.int32
        assert rules.shape == (len(self.rows), 4)
        before = [len(row) for row in self.rows]
        self._append(tokens)
        begin = self.model.timestamp_begin
        picked = [
            pick(self.model.logits(window, row), rule, self.mask, begin)
            for window, row, rule in zip(self.windows, self.rows, rules.tolist(), strict=True)
        ]
        no_speech = None
        if no_speech_at is not None:
            assert no_speech_at.shape == (len(self.rows),)
            seen = [row[: n + at + 1] for row, n, at in zip(self.rows, before, no_speech_at.tolist(), strict=True)]
            logits = [self.model.logits(window, row) for window, row in zip(self.windows, seen, strict=True)]
            probs = [np.exp(row[self.model.no_speech] - log_sum_exp(row)) for row in logits]
            no_speech = np.asarray(probs, np.float32)
        ids, log_probs = zip(*picked, strict=True)
        return Picks(np.asarray(ids, np.int32), np.asarray(log_probs, np.float32), no_speech)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        self._append(tokens)
        return np.stack([self.model.logits(w, row) for w, row in zip(self.windows, self.rows, strict=True)])

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        assert len(rows) < len(self.rows)
        assert all(source >= to for to, source in enumerate(rows))
        self.rows = [list(self.rows[row]) for row in rows]
        self.windows = [self.windows[row] for row in rows]
        return rows

    def _append(self, tokens: np.ndarray) -> None:
        assert tokens.dtype == np.int32
        assert tokens.ndim == 2
        if not any(self.rows):
            self.model.started.append(tokens.tolist())
        for row, new in zip(self.rows, tokens.tolist(), strict=True):
            row += new
            assert len(row) <= self.model.dims.n_text_ctx, "the cache holds n_text_ctx positions"


class FakeModel:
    """A model whose logits are given.

    Args:
        name: "tiny.en" or "base", whose sizes and vocabulary it has.
        logits: What the network says.

    Attributes:
        started: What every decoder so far was given first, row by row.
    """

    device = "cpu"
    dtype = "float32"

    def __init__(self, name: str, logits: Logits) -> None:
        self.dims, self.vocabulary, self.logits = dimensions(name), vocabulary(name), logits
        self.timestamp_begin = self.dims.n_vocab - 1501
        self.no_speech = self.timestamp_begin - 2
        self.started: list[list[list[int]]] = []

    def log_mel_spectrogram(self, audio: np.ndarray, padding: int = 0) -> np.ndarray:
        """Passes on, in its first band, what `counting` hid in the samples."""
        assert audio.dtype == np.float32
        mel = np.zeros((self.dims.n_mels, (len(audio) + padding) // 160), np.float32)
        heard = audio[::160][: mel.shape[1]]
        mel[0, : len(heard)] = heard
        return mel

    def embed_audio(self, mel: np.ndarray) -> list[int]:
        """Finds out which frame each window begins with."""
        assert mel.dtype == np.float32
        assert mel.shape[1:] == (self.dims.n_mels, 3000)
        return [round(float(window[0, 0]) * 2**14) - 1 for window in mel]

    def new_decoder(self, features: list[int]) -> FakeDecoder:
        return FakeDecoder(self, features)

    def transcribe(self, audio: Any, **options: Any) -> Transcription:
        return transcribe(self, audio, **options)


@dataclass
class Script:
    """Logits that strongly ask for given tokens, window by window, and then for the end of text.

    Attributes:
        n_vocab: Size of the vocabulary.
        eot: The end of text; start of transcript is the next token.
        tokens: What to say in the window that starts at a frame; nothing where it is not listed.
        no_speech: Probability that nobody speaks, in the windows listed.
        unsure: Windows in which ten tokens are about as probable as each text token asked for.
        language: The language token to detect.
    """

    n_vocab: int
    eot: int
    tokens: Mapping[int, Sequence[int]]
    no_speech: Mapping[int, float] = field(default_factory=dict)
    unsure: Container[int] = ()
    language: int | None = None

    def __call__(self, window: int, row: list[int]) -> np.ndarray:
        sot, timestamp_begin = self.eot + 1, self.n_vocab - 1501
        logits = np.zeros(self.n_vocab, np.float32)
        if row == [sot] and self.language is not None:
            logits[self.language] = 10
            return logits
        said = [token for token in row[row.index(sot) :] if token < self.eot or token >= timestamp_begin]
        script = self.tokens.get(window, ())
        wanted = script[len(said)] if len(said) < len(script) else self.eot
        logits[wanted] = 30
        if wanted < self.eot and window in self.unsure:
            logits[[(wanted + 1 + i) % self.eot for i in range(9)]] = 29.99
        if row[-1] == sot and (probability := self.no_speech.get(window, 0.0)):
            logits[timestamp_begin - 2] = 30 + np.log(probability / (1 - probability))
        return logits

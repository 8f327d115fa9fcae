"""From a window's log-mel features to its tokens: language detection and greedy decoding, as in openai-whisper.

A window is a row; rows are decoded together and do not see each other. The model picks the tokens, `max_whisper.rules`
says among which, and this file feeds back what was picked until every row has reached its end of text.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from max_whisper.config import ModelDimensions
from max_whisper.errors import OptionError
from max_whisper.options import DecodingOptions, decoding_options
from max_whisper.rules import TokenRules
from max_whisper.tokenizer import Tokenizer, Vocabulary, get_tokenizer


@dataclass(frozen=True)
class Picks:
    """What one decoding step of B rows picked.

    Attributes:
        tokens: (B) int32.
        log_probs: (B) float32, natural logarithms, among the tokens that the rules allowed.
        no_speech_probs: (B) float32, probability of the no-speech token among all tokens, or None if not asked for.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    no_speech_probs: np.ndarray | None


class Decoder(Protocol):
    """The text decoder over B encoded windows, keeping the keys and values of the tokens it was given."""

    def set_suppression(self, mask: np.ndarray) -> None:
        """Takes the suppression bits of every token, uint8 (n_vocab,)."""
        ...

    def forward(self, tokens: np.ndarray, rules: np.ndarray, *, no_speech_at: np.ndarray | None = None) -> Picks:
        """Appends tokens, int32 (B, T), and picks one more per row under its rule, int32 (B, 4)."""
        ...

    def run(self, tokens: np.ndarray, rules: np.ndarray, said: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Appends a token, int32 (B, 1), and picks up to `limit` more, each of which is appended in its turn.

        The first pick is under the rules given, int32 (B, 4); those of later ones follow from what was said, int32
        (B, 3), see `rules.TokenRules.said`. Rows whose token is the end of text have ended, and end again. The run may
        end as soon as another row does.

        Returns:
            At least one token for each row, int32 (B, n), and their log probabilities, float32.
        """
        ...

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Appends tokens, int32 (B, T), and returns the last one's logits, float32 (B, n_vocab)."""
        ...

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """Goes on with some rows: row i becomes what row `rows[i]` was. The features may be overwritten.

        Returns:
            The same; or all rows as they are, where fewer are no gain.
        """
        ...


class Model(Protocol):
    """What decoding needs of a model."""

    @property
    def dims(self) -> ModelDimensions:
        """Its sizes."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Its tokens."""
        ...

    def embed_audio(self, mel: np.ndarray) -> Any:
        """Encodes windows, float32 (B, n_mels, 3000); `len()` of the result is B."""
        ...

    def new_decoder(self, features: Any) -> Decoder:
        """Makes a decoder for encoded windows that has seen no token yet."""
        ...


@dataclass(frozen=True)
class DecodingResult:
    """What one window says, in openai-whisper's names.

    Attributes:
        language: Code of the language given or detected.
        language_probs: Probability of every language by code, where it was detected.
        tokens: Tokens picked, timestamps included, the end of text not.
        text: The tokens' text without surrounding space.
        avg_logprob: Mean natural log probability of the tokens and the end of text.
        no_speech_prob: Probability that nobody speaks.
        temperature: 0.
        compression_ratio: Length of the text over its length compressed by zlib; high for text that repeats itself.
    """

    language: str
    language_probs: dict[str, float] | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    avg_logprob: float = np.nan
    no_speech_prob: float = np.nan
    temperature: float = 0.0
    compression_ratio: float = np.nan


def detect_language(
    model: Model, mel: Any, tokenizer: Tokenizer | None = None
) -> tuple[int, dict[str, float]] | tuple[np.ndarray, list[dict[str, float]]]:
    """Detects the language spoken in windows.

    Args:
        model: A multilingual model.
        mel: Log-mel features, float32 (n_mels, 3000) or (B, n_mels, 3000), or what `model.embed_audio` made of them.
        tokenizer: The model's tokenizer; made where it is not given.

    Returns:
        The most probable language token and the probability of every language by code; for a batch, an int32 array (B,)
        and a list of B dictionaries.

    Raises:
        OptionError: If the model is English-only.
    """
    if not model.dims.is_multilingual:
        raise OptionError("an English-only model detects no language: use a multilingual one")
    features, single = _embed(model, mel)
    tokens, probabilities = _detect(model, features, tokenizer or get_tokenizer(model.vocabulary))
    return (int(tokens[0]), probabilities[0]) if single else (tokens, probabilities)


def decode(
    model: Model, mel: Any, options: DecodingOptions | None = None, **changes: Any
) -> DecodingResult | list[DecodingResult]:
    """Decodes windows of 30 s greedily.

    Args:
        model: The model.
        mel: Log-mel features, float32 (n_mels, 3000) or (B, n_mels, 3000), or what `model.embed_audio` made of them.
        options: How to decode; the same for every window.
        changes: Options that differ from `options`, by name.

    Returns:
        One result; for a batch, a list of B.

    Raises:
        OptionError: If an option is unknown, or asks for what the model or this package cannot do.
    """
    task = DecodingTask(model, decoding_options(**{**(vars(options) if options else {}), **changes}))
    features, single = _embed(model, mel)
    results = task.run(features)
    return results[0] if single else results


class DecodingTask:
    """Decoding with one set of options; checks them when made, runs on any number of encoded windows.

    Args:
        model: The model.
        options: How to decode.

    Raises:
        OptionError: If the model cannot do what the options ask for.
    """

    def __init__(self, model: Model, options: DecodingOptions) -> None:
        self.model = model
        self.options = options
        self.tokenizer = get_tokenizer(model.vocabulary, language=options.language, task=options.task)
        detects = model.dims.is_multilingual and options.language is None
        self.language = None if detects else self.tokenizer.language or "en"
        self.rules = TokenRules(model.dims, self.tokenizer, options)
        self.sample_len = options.sample_len or model.dims.n_text_ctx // 2
        self.prompt = self._encode(options.prompt)
        self._initial_tokens(self.prompt)

    def run(self, features: Any, prompt: Sequence[int] | None = None, *, spend: bool = False) -> list[DecodingResult]:
        """Decodes B encoded windows.

        Args:
            features: What `model.embed_audio` made of the windows.
            prompt: Tokens that precede every window instead of the options' prompt.
            spend: Whether the features are not needed afterwards, so that windows that have ended can make room.

        Raises:
            OptionError: If prompt and prefix exceed the model's context.
        """
        initial = self._initial_tokens(self.prompt if prompt is None else prompt)
        sot_index = initial.index(self.tokenizer.sot)
        tokens = np.tile(np.asarray(initial, np.int32), (len(features), 1))
        languages, probabilities = [self.language or ""] * len(features), [None] * len(features)
        if self.language is None:
            tokens[:, sot_index + 1], probabilities = _detect(self.model, features, self.tokenizer)
            languages = [max(row, key=row.__getitem__) for row in probabilities]
        sampled, sum_logprobs, no_speech_probs = self._pick(
            self.model.new_decoder(features), tokens, sot_index, spend=spend
        )

        results = []
        for row, picked in enumerate(sampled):
            text = self.tokenizer.decode(picked).strip()
            results.append(
                DecodingResult(
                    language=languages[row],
                    language_probs=probabilities[row],
                    tokens=picked,
                    text=text,
                    avg_logprob=float(sum_logprobs[row]) / (len(picked) + 1),
                    no_speech_prob=float(no_speech_probs[row]),
                    compression_ratio=compression_ratio(text),
                )
            )
        return results

    def _initial_tokens(self, prompt: Sequence[int]) -> list[int]:
        """Prompt, start sequence and prefix, cut as openai-whisper cuts them."""
        tokenizer, n_ctx = self.tokenizer, self.model.dims.n_text_ctx
        timed, untimed = tokenizer.sot_sequence, tokenizer.sot_sequence_including_notimestamps
        tokens = list(untimed if self.options.without_timestamps else timed)
        tokens += self._encode(self.options.prefix)[-(n_ctx // 2 - self.sample_len) :]
        if prompt:
            tokens = [tokenizer.sot_prev, *prompt[-(n_ctx // 2 - 1) :], *tokens]
        if len(tokens) > n_ctx:
            raise OptionError(f"prompt and prefix are {len(tokens)} tokens: the model's context holds {n_ctx}")
        return tokens

    def _encode(self, text: str | Sequence[int] | None) -> list[int]:
        if not text:
            return []
        if isinstance(text, str):
            return self.tokenizer.encode(" " + text.strip())
        if max(text) >= self.model.dims.n_vocab:
            raise OptionError(f"a prompt or prefix has token {max(text)}: this model has {self.model.dims.n_vocab}")
        return list(text)

    def _pick(
        self, decoder: Decoder, tokens: np.ndarray, sot_index: int, *, spend: bool
    ) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
        """Picks tokens until every row has ended.

        Args:
            decoder: A fresh decoder of B windows.
            tokens: What the rows start with, int32 (B, T).
            sot_index: Where in it the start of transcript stands, the position that tells whether anybody speaks.
            spend: Whether rows that have ended leave the decoder; otherwise they are fed their end again.

        Returns:
            Every row's tokens without the end of text, the sum of their log probabilities and the end's, float32 (B,),
            and the no-speech probabilities, float32 (B,).
        """
        eot, (batch, length) = self.tokenizer.eot, tokens.shape
        decoder.set_suppression(self.rules.mask)
        sampled: list[list[int]] = [[] for _ in range(batch)]
        sum_logprobs = np.zeros(batch, np.float32)
        ended = (tokens[:, -1] == eot).tolist()
        rows = list(range(batch))  # which one each of the decoder's rows is
        rules = np.asarray([self.rules.next([])] * batch, np.int32)
        picks = decoder.forward(tokens, rules, no_speech_at=np.full(batch, sot_index, np.int32))
        assert picks.no_speech_probs is not None
        picked, log_probs = picks.tokens[:, None], picks.log_probs[:, None]
        left = self.sample_len
        while True:
            for i, row in enumerate(rows):
                for token, log_prob in zip(picked[i].tolist(), log_probs[i].tolist(), strict=True):
                    if ended[row]:
                        break
                    sum_logprobs[row] += log_prob
                    ended[row] = token == eot
                    if not ended[row]:
                        sampled[row].append(token)
            length += picked.shape[1]
            left -= picked.shape[1]
            if all(ended) or not left or length > self.model.dims.n_text_ctx:
                break
            if spend and any(ended[row] for row in rows):
                rows = [rows[i] for i in decoder.keep(_closed_up([not ended[row] for row in rows]))]
            newest = np.asarray([[eot if ended[row] else sampled[row][-1]] for row in rows], np.int32)
            rules = np.asarray([self.rules.next(sampled[row]) for row in rows], np.int32)
            said = np.asarray([self.rules.said(sampled[row], ended=ended[row]) for row in rows], np.int32)
            picked, log_probs = decoder.run(newest, rules, said, min(left, self.model.dims.n_text_ctx - length + 1))
        return sampled, sum_logprobs, picks.no_speech_probs


def _closed_up(running: Sequence[bool]) -> list[int]:
    """The places of what still runs, the last of it moved to where something has ended, the rest where it is."""
    count = sum(running)
    movers = (i for i in range(count, len(running)) if running[i])
    return [i if running[i] else next(movers) for i in range(count)]


def compression_ratio(text: str) -> float:
    """Length of a text in bytes over its length compressed by zlib."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _embed(model: Model, mel: Any) -> tuple[Any, bool]:
    """Encodes windows that are not encoded yet; also tells whether it was a single one."""
    if not isinstance(mel, np.ndarray):
        return mel, False
    return model.embed_audio(mel[None] if mel.ndim == 2 else mel), mel.ndim == 2


def _detect(model: Model, features: Any, tokenizer: Tokenizer) -> tuple[np.ndarray, list[dict[str, float]]]:
    """The most probable language tokens, int32 (B,), and the probabilities of all languages by code."""
    languages = np.asarray(tokenizer.all_language_tokens, np.int32)
    start = np.full((len(features), 1), tokenizer.sot, np.int32)
    logits = np.ascontiguousarray(model.new_decoder(features).logits(start)[:, languages], dtype=np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    by_code = [dict(zip(tokenizer.all_language_codes, row, strict=True)) for row in probabilities.tolist()]
    return languages[logits.argmax(axis=-1)], by_code

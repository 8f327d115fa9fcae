"""What a token may be, given those before it: openai-whisper's logit filters as four integers per row.

The kernel that picks a token sees the logits; what it may pick is said here. `TokenRules` says what the filters would
leave of the vocabulary, which falls into three runs of ids: text, specials from the end of text on, and timestamps::

    0 ............ eot ......... timestamp_begin ............ n_vocab
      text         |  specials   |  <|0.00|> ... <|30.00|>
          [text_begin ...........)     [from ... to)              minus whatever the mask suppresses

A decoder that takes several steps at once follows the same rules by itself: `kernels/greedy/said.mojo`.
"""

from collections.abc import Sequence

import numpy as np

from max_whisper.audio import CHUNK_LENGTH
from max_whisper.config import ModelDimensions
from max_whisper.errors import OptionError
from max_whisper.options import DecodingOptions, parse_suppress_tokens
from max_whisper.tokenizer import Tokenizer

# Bits of the mask, which a row's `suppress_bits` may choose.
SUPPRESSED = 1
SUPPRESSED_AT_BEGIN = 2
# A bit of `suppress_bits` alone: pick a timestamp if all timestamps together are more probable than any one text token.
TIMESTAMP_RULE = 128

Rule = tuple[int, int, int, int]
"""suppress_bits, text_begin, timestamps_from, timestamps_to."""


class TokenRules:
    """The rules of one set of options, for every row that is decoded with it.

    Attributes:
        mask: uint8 (n_vocab,), for every token the bits that suppress it.
    """

    mask: np.ndarray

    def __init__(self, dims: ModelDimensions, tokenizer: Tokenizer, options: DecodingOptions) -> None:
        self._text_end = tokenizer.eot
        self._timestamp_begin = tokenizer.timestamp_begin
        self._n_vocab = dims.n_vocab
        self._timestamps = not options.without_timestamps
        self._first_timestamps_to = dims.n_vocab
        if options.max_initial_timestamp:
            steps = round(options.max_initial_timestamp / (CHUNK_LENGTH / dims.n_audio_ctx))
            self._first_timestamps_to = min(tokenizer.timestamp_begin + steps + 1, dims.n_vocab)

        self.mask = np.zeros(dims.n_vocab, np.uint8)
        self.mask[_suppressed(dims, tokenizer, options)] |= SUPPRESSED
        if options.suppress_blank:
            self.mask[[*tokenizer.vocabulary.merge(" "), tokenizer.eot]] |= SUPPRESSED_AT_BEGIN
        if self._timestamps:
            self.mask[tokenizer.no_timestamps] |= SUPPRESSED
        for sampled, where in (([], "a window's first token"), ([self._timestamp_begin], "text")):
            if not self._leave_any(self.next(sampled)):
                raise OptionError(f"suppress_tokens leaves nothing that {where} could be: suppress less")

    def next(self, sampled: Sequence[int]) -> Rule:
        """Tells what the next token of a row may be.

        Args:
            sampled: The tokens picked for this row so far, without prompt, start sequence and prefix.
        """
        bits = SUPPRESSED if sampled else SUPPRESSED | SUPPRESSED_AT_BEGIN
        if not self._timestamps:
            return bits, 0, self._timestamp_begin, self._n_vocab
        bits |= TIMESTAMP_RULE
        if not sampled:  # a window starts with a timestamp
            return bits, self._timestamp_begin, self._timestamp_begin, self._first_timestamps_to

        begin = self._timestamp_begin
        before, newest, latest = self.said(sampled)
        if latest < 0:
            return bits, 0, begin, self._n_vocab
        if newest < begin:  # in a segment's text: it ends later than it began
            return bits, 0, latest + 1, self._n_vocab
        if before < 0 or before >= begin:  # a segment just began: text
            return bits, 0, begin, begin
        return bits, self._text_end, latest, self._n_vocab  # a segment just ended: the next begins, or all ends

    def _leave_any(self, rule: Rule) -> bool:
        """Whether there is a token that a rule allows."""
        bits, text_begin, timestamps_from, timestamps_to = rule
        allowed = self.mask & bits == 0
        return bool(allowed[text_begin : self._timestamp_begin].any() or allowed[timestamps_from:timestamps_to].any())

    def said(self, sampled: Sequence[int], *, ended: bool = False) -> tuple[int, int, int]:
        """Tells what rules have to know of what was picked, which is all that a decoder needs to go on by itself.

        Args:
            sampled: As for `next`.
            ended: Whether the row has ended, which stands for one more token, the end of text.

        Returns:
            The token before the newest, the newest, the newest timestamp; -1 where there is none.
        """
        before, newest = [-1, -1, *sampled, *([self._text_end] if ended else [])][-2:]
        return before, newest, next((token for token in reversed(sampled) if token >= self._timestamp_begin), -1)


def _suppressed(dims: ModelDimensions, tokenizer: Tokenizer, options: DecodingOptions) -> list[int]:
    """The token ids that are never picked: those asked for, and specials that only ever stand in a prompt."""
    tokens = parse_suppress_tokens(options.suppress_tokens)
    if not tokens:
        return []
    if max(tokens) >= dims.n_vocab:
        raise OptionError(f"suppress_tokens names token {max(tokens)}: this model's vocabulary has {dims.n_vocab}")
    if -1 in tokens:
        tokens = [token for token in tokens if token >= 0] + list(tokenizer.non_speech_tokens)
    never = (
        tokenizer.transcribe,
        tokenizer.translate,
        tokenizer.sot,
        tokenizer.sot_prev,
        tokenizer.sot_lm,
        tokenizer.no_speech,
    )
    return sorted({*tokens, *never})

"""What a token may be, given those before it: the timestamp rules of openai-whisper's logit filters, as `greedy` takes them.

`max_whisper/rules.py` says the same in Python, for the first token of a run; its header has the reasons. A window
is a sequence of segments, each a timestamp, text and a timestamp that is later:

    <|0.00|> text text <|2.50|> <|2.50|> text ...      said so far            the next token
                                                       text                   text, or a timestamp behind the latest
                                                       text, timestamp        the latest timestamp or a later one, or the end
                                                       timestamp, timestamp   text
                                                       timestamp              text
"""

from .cpu import TIMESTAMP_RULE

comptime AT_BEGIN = 2
"""The bit of `suppress_bits` that is for a row's first token alone."""

comptime NOTHING = Int32(-1)
"""In place of a token that has not been said."""


@fieldwise_init
struct Grammar(TrivialRegisterPassable):
    """The tokens that rules are about."""

    var end: Int32
    """The end of text, where text ends and specials begin."""
    var timestamp_begin: Int32
    """The first timestamp."""
    var tokens: Int32
    """Tokens of the vocabulary: behind the last timestamp."""


@fieldwise_init
struct Said(TrivialRegisterPassable):
    """What rules have to know of the tokens that were picked for a row; NOTHING where there is none."""

    var last: Int32
    """The newest token."""
    var before: Int32
    """The one before it."""
    var latest: Int32
    """The newest timestamp."""

    def then(self, token: Int32, grammar: Grammar) -> Self:
        """Returns what has been said with one more token."""
        return Self(token, self.last, token if token >= grammar.timestamp_begin else self.latest)

    def rule(self, first: SIMD[DType.int32, 4], grammar: Grammar) -> SIMD[DType.int32, 4]:
        """Returns the rule of the next token; something has been said.

        Args:
            first: The rule of an earlier token of this row: whose bits the row has, and whether it has timestamps.
            grammar: The tokens that rules are about.
        """
        var bits = first[0] & ~Int32(AT_BEGIN)
        var begin = grammar.timestamp_begin
        if bits & Int32(TIMESTAMP_RULE) == 0 or self.latest == NOTHING:
            return SIMD[DType.int32, 4](bits, 0, begin, grammar.tokens)
        if self.last < begin:  # in a segment's text
            return SIMD[DType.int32, 4](bits, 0, self.latest + 1, grammar.tokens)
        if self.before == NOTHING or self.before >= begin:  # a segment has just begun
            return SIMD[DType.int32, 4](bits, 0, begin, begin)
        return SIMD[DType.int32, 4](bits, grammar.end, self.latest, grammar.tokens)

"""What a pick leaves for the step that follows it: a decoder on a GPU goes on by itself.

    tokens, past, rules, said  --step-->  tokens', past', rules', said'         all of them in place
                                 |
                                 +----->  picked[row, n mod S], log_probs[row, n mod S],   n = past + at

A CPU that had to see a token before it could ask for the next one kept the GPU waiting for 95 us, on an H200's host, behind a step
that took 99. So the thread that has merged a row's softmaxes (`pick.mojo`) also does what `max_whisper/rules.py` would: it says what the
next token may be (`../said.mojo`), and the same launches follow again, on the same addresses. The CPU fetches up to S tokens at a time.

Row b's pick lands in the column of the position it was picked behind, modulo S. A row that has ended says its end again.

Cost: beside the pick's, 20 numbers a row, and no launch. Rules are read before the launch in front of the softmaxes has ended
(`../../gpu/overlap.mojo`): the step before must have ended by then, as replays of a graph do before the next begins.
"""

from max.gpu import block_idx, thread_idx

from ...data import Data
from ...gpu.overlap import start_next, wait_for_previous
from ..said import Grammar, Said
from .pick import best_of
from .softmax import merged


@fieldwise_init
struct Rows(TrivialRegisterPassable):
    """What a step is told of each row, and tells the next one."""

    var tokens: Data[DType.int32]
    """(B), the newest token."""
    var past: Data[DType.int32]
    """(B), tokens in the KV cache."""
    var rules: Data[DType.int32]
    """(B, 4), what the next token may be; rows start at multiples of 16 bytes."""
    var said: Data[DType.int32]
    """(B, 3), what later rules follow from: the token before the newest that was picked, the newest, the newest timestamp."""

    def behind(self, row: Int) -> Self:
        """The rows from one on."""
        return Self(
            self.tokens.unsafe_offset(row),
            self.past.unsafe_offset(row),
            self.rules.unsafe_offset(4 * row),
            self.said.unsafe_offset(3 * row),
        )


def step_kernel(
    tokens: Data[DType.int32],
    past: Data[DType.int32],
    rules: Data[DType.int32],
    said: Data[DType.int32],
    picked: Data[DType.int32],
    log_probs: Data[DType.float32],
    parts: Data[DType.float32],
    at: Data[DType.int32],
    steps: Int32,
    blocks: Int32,
    end: Int32,
    timestamp_begin: Int32,
    vocabulary: Int32,
):
    """Merges the softmaxes of one row, picks its token, and says what follows.

    Args:
        tokens: See `Rows`.
        past: See `Rows`; `at` + 1 more are in the cache now.
        rules: See `Rows`.
        said: See `Rows`.
        picked: (B, S), the tokens.
        log_probs: (B, S), the logs of their probabilities, NaN where there is none.
        parts: As `softmax_kernel` left them.
        at: (B), the position of each row that counted.
        steps: S.
        blocks: Blocks of that launch.
        end: The end of text.
        timestamp_begin: The first timestamp.
        vocabulary: V.
    """
    start_next()
    wait_for_previous()
    var row = Int(block_idx.x)
    var both = merged(parts, row, blocks)
    if thread_idx.x != 0:
        return
    var mine = Rows(tokens, past, rules, said).behind(row)
    var grammar = Grammar(end, timestamp_begin, vocabulary)
    var rule = mine.rules.unsafe_load[width=4, alignment=16](0)
    var heard = Said(mine.said[unsafe_offset=1], mine.said[unsafe_offset=0], mine.said[unsafe_offset=2])
    var token = end
    var log_prob = Float32(0)
    if heard.last != end:
        token, log_prob = best_of(both[0], both[1], rule[0])
    var position = mine.past[] + at[unsafe_offset=row]
    var place = row * Int(steps) + Int(max(position, 0) % steps)
    picked[unsafe_offset=place] = token
    log_probs[unsafe_offset=place] = log_prob
    var hears = heard.then(token, grammar)
    mine.tokens[] = token
    mine.past[] = position + 1
    mine.said[unsafe_offset=0] = hears.before
    mine.said[unsafe_offset=1] = hears.last
    mine.said[unsafe_offset=2] = hears.latest
    mine.rules.unsafe_store[alignment=16](0, hears.rule(rule, grammar))

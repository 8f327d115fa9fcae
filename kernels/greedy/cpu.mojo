"""The vocabulary on a CPU: the greedy pick under Whisper's rules, the probability of one token, all logits.

    pick[b] = the allowed v with the largest logit[b, v]            log probability: logit[b, pick] - log sum exp of the allowed

Shapes: hidden (B, T, D), at (B), E (V, D) row by row, rules (B, 4); results (B), all logits (B, V). Both picks and probabilities
come from a search of the vocabulary, which reads few rows in full: `search.mojo` has its steps and costs. All logits cost
2*B*V*D operations and read E once.
"""

from std.math import log
from std.sys import size_of
from std.utils.numerics import isfinite, nan

from ..cpu.threads import ForkJoin, Team, grain, in_team
from ..data import Data
from ..math import exp
from .search import Search, Vocabulary
from .softmax import NO_TOKEN, Filter, Softmax
from .states import States

comptime TIMESTAMP_RULE = 128
"""The bit of `suppress_bits` by which timestamps as a whole may outweigh text."""


def filter_of(rule: SIMD[DType.int32, 4], timestamp_begin: Int) -> Filter:
    """What a row's rules leave: text and timestamps.

    Args:
        rule: Its four numbers: suppress_bits, text_begin, timestamps_from, timestamps_to.
        timestamp_begin: The first timestamp.
    """
    return Filter(
        UInt8(Int(rule[0]) & ~TIMESTAMP_RULE),
        SIMD[DType.int32, 2](rule[1], max(rule[2], Int32(timestamp_begin))),
        SIMD[DType.int32, 2](Int32(timestamp_begin), rule[3]),
        Int(rule[0]) & TIMESTAMP_RULE != 0,
    )


def best_of(search: Search, row: Int) -> Softmax:
    """What a search has found for a state: index is the token, the log of its probability is -log(total).

    Args:
        search: All of its threads have searched.
        row: The state, whose filter leaves text and timestamps.

    Returns:
        The softmax of what is allowed; see `require_best`. Its total is NaN where nothing that was read in full is the largest:
        the screen is of another vocabulary, or logits are infinite.
    """
    var text = search.softmax(row, 0)
    var timestamps = search.softmax(row, 1)
    if search.filters[unsafe_offset=row].weigh and timestamps.largest + log(timestamps.total) > text.largest:
        text = Softmax.empty()
    var best = text.merge(timestamps)
    if best.index == NO_TOKEN and best.total != 0:
        best.total = nan[DType.float32]()
    return best


def require_best(total: Float32, row: Int) raises:
    """Raises unless what a search has found is a token.

    Args:
        total: Of the softmax of what is allowed.
        row: The state.

    Raises:
        The state has no token that is allowed, or its logits are not finite.
    """
    if total == 0:
        raise Error("greedy: the rules of row ", row, " suppress every token")
    _require_finite(total, row, "greedy")


def _require_finite(total: Float32, row: Int, op: StaticString) raises:
    """Raises unless the sum of exponentials is a number: it is none as soon as one logit is none."""
    if not isfinite(total):
        raise Error(op, ": the logits of row ", row, " are not finite, or the screen is not of this vocabulary")


def greedy[
    dtype: DType, weight_type: DType, //
](
    picked_tokens: Data[DType.int32],
    log_probs: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Vocabulary[weight_type],
    suppress_mask: Data[DType.uint8],
    rules: Data[DType.int32],
    batch: Int,
    length: Int,
    depth: Int,
    timestamp_begin: Int,
) raises:
    """Picks the most probable of each row's allowed tokens.

    Args:
        picked_tokens: `batch`, the tokens.
        log_probs: `batch`, the log of their probabilities among the allowed tokens.
        hidden: `batch x length x depth`.
        at: `batch`, the position of each row that counts.
        vocabulary: Rows of `depth`, and their screen.
        suppress_mask: The bits that suppress each token.
        rules: `batch x 4`: suppress_bits, text_begin, timestamps_from, timestamps_to.
        batch: B.
        length: T.
        depth: D.
        timestamp_begin: The first timestamp.

    Raises:
        A row has no token that is allowed, or its logits are not finite.
    """
    var search = Search(batch, depth, suppress_mask, vocabulary)
    for b in range(batch):
        search.filters[unsafe_offset=b] = filter_of(rules.unsafe_load[width=4](4 * b), timestamp_begin)
    _search(search, hidden, at, batch, length)
    try:
        for b in range(batch):
            var best = best_of(search, b)
            require_best(best.total, b)
            picked_tokens[unsafe_offset=b] = best.index
            log_probs[unsafe_offset=b] = -log(best.total)
    finally:
        search.free()


def _search[
    dtype: DType, weight_type: DType, //
](search: Search[weight_type], hidden: Data[dtype], at: Data[DType.int32], batch: Int, length: Int):
    """Fills in the states and searches, on all threads."""

    @always_inline
    def member(team: Team) {imm}:
        search.states.fill(hidden, at, batch, length, team)
        search.run(team)

    if search.states.count > 0:
        in_team(member, 1 + Search[weight_type].LOOPS)


def token_probability[
    dtype: DType, weight_type: DType, //
](
    probabilities: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Vocabulary[weight_type],
    batch: Int,
    length: Int,
    depth: Int,
    token: Int,
) raises:
    """Computes the probability of one token among all, without rules.

    Args:
        probabilities: `batch`; NaN where `at` is negative.
        hidden: `batch x length x depth`.
        at: `batch`, the position of each row that counts, or -1.
        vocabulary: Rows of `depth`, and their screen.
        batch: B.
        length: T.
        depth: D.
        token: The token.

    Raises:
        The logits of a row are not finite.
    """
    var count = 0
    for b in range(batch):
        probabilities[unsafe_offset=b] = nan[DType.float32]()
        count += Int(at[unsafe_offset=b] >= 0)
    if count == 0:
        return
    var everything = Filter(0, SIMD[DType.int32, 2](0), SIMD[DType.int32, 2](Int32(vocabulary.tokens), 0), False)
    var no_mask = Data[DType.uint8].unsafe_dangling()
    var search = Search(count, depth, no_mask, vocabulary)
    for row in range(count):
        search.filters[unsafe_offset=row] = everything
    _search(search, hidden, at, batch, length)
    try:
        var row = 0
        for b in range(batch):
            if at[unsafe_offset=b] >= 0:
                var every = search.softmax(row, 0)
                _require_finite(every.total, b, "token_probability")
                var logit = search.states.logit(row, vocabulary.rows, token)
                probabilities[unsafe_offset=b] = exp(logit - every.largest) / every.total
                row += 1
    finally:
        search.free()


def logits[
    dtype: DType, weight_type: DType, //
](
    output: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[weight_type],
    batch: Int,
    length: Int,
    depth: Int,
    tokens: Int,
):
    """Computes the logits of all tokens.

    Args:
        output: `batch x tokens`.
        hidden: `batch x length x depth`.
        at: `batch`, the position of each row that counts.
        vocabulary: Rows of `depth`.
        batch: B.
        length: T.
        depth: D.
        tokens: V.
    """
    var states = States(batch, depth)
    states.fill(hidden, at, batch, length, ForkJoin())

    @always_inline
    def some_tokens(begin: Int, end: Int) {imm}:
        for token in range(begin, end):
            for row in range(states.count):
                output[unsafe_offset=row * tokens + token] = states.logit(row, vocabulary, token)

    ForkJoin().share(some_tokens, tokens if states.count > 0 else 0, grain(depth * size_of[weight_type]()))
    states.free()

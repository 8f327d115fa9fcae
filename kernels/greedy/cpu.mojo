"""The vocabulary: the greedy pick under Whisper's rules, the probability of one token, all logits.

    logits[b, v] = sum over k of h[b, k] * E[v, k]                                     h[b] = hidden[b, at[b]]

Shapes: hidden (B, T, D), at (B), E (V, D) row by row, its screen as `screen.mojo` describes it. E is the larger half of a
small model: a decoding step would wait most of its time for E, of which one row wins. The screen tells all logits within
bounds, from a third or a sixth of the bytes:

                      best lower bound          logit
        v = 0        |------x------|  .          o    rough logit x, its bounds, and what it turns out to be
        v = 1           .             |-----x-----o   may be the largest: E[1] is read
        v = 2        |--.--o-x------| .               cannot be: E[2] is not read

    1. rough logits and bounds of all tokens; of each row the best lower bound
    2. the full logits of all tokens whose upper bound is at least the best lower one
    3. softmaxes: of full logits where there are some, of rough ones for the rest

The pick is that of full logits, always: what is not read cannot win. In speech 7 tokens of tiny.en's are read in the median,
13 of base's; 45 in nine steps of ten; thousands where the model knows nothing, all in the worst case. A log probability
needs the sum of all exponentials. Those that are not read are small, and errors of the rough ones nearly cancel: over speech
they change a log probability by 7e-5 in the mean, by 6e-4 at most; 2e-4 and 1.2e-3 in languages that tiny.en does not know.

               V: panels of 16 tokens
        +--------------+--------------+---- ... --+   a chunk of 16 panels is looked at by one thread, for all rows
        | CHUNK panels | CHUNK panels |           |
        +--------------+--------------+---- ... --+
    row 0: | 256 logits |  ->  text (largest, total, index), timestamps (largest, total, index)   -> merged over the
    row 1: | 256 logits |  ->  text (largest, total, index), timestamps (largest, total, index)      chunks at the end

A row has two ranges of tokens, each with a softmax of its own: text and timestamps for the pick. Where timestamps together
may outweigh the text, all of them are read. The chunks do not depend on the number of threads, so neither do the results.

Cost for B rows: 2*B*V*D operations, B*V exponentials, the bytes of the screen and 2*D (4*D in float32) for each token read:
12.7 MB and little more for tiny, where E has 39.8 MB in float16. Tokens behind V, which only pad the last panel, take no part.
"""

from std.math import ceildiv, log
from std.memory.alloc import unsafe_alloc
from std.sys import size_of
from std.utils.numerics import isfinite, nan

from ..cpu.threads import ForkJoin, Team, grain, in_team
from ..cpu.tile import PANEL, WIDTH
from ..data import Data
from ..math import exp
from .screen import Screen
from .softmax import NO_TOKEN, Filter, Softmax, largest, softmax
from .states import States

comptime CHUNK = 16
"""Panels of one chunk: 60 to 200 KB of the screen, and few enough chunks that merging them costs nothing."""

comptime COLUMNS = CHUNK * PANEL
"""Tokens of one chunk."""

comptime REACH = Float32(5)
"""How much more than its rough logit a token is at least granted when it is asked whether it may be the largest. What is read
makes log probabilities better; and float32 rounds logits by far less."""

comptime TIMESTAMP_RULE = 128
"""The bit of `suppress_bits` by which timestamps as a whole may outweigh text."""


@fieldwise_init
struct Bounds(TrivialRegisterPassable):
    """Bounds of the logits of a chunk's tokens, for one row: what one thread works with."""

    var lower: Data[DType.float32]
    """Lower bounds."""
    var upper: Data[DType.float32]
    """Upper bounds, and REACH above the rough logits at least."""

    @staticmethod
    def allocate() -> Self:
        """Makes room; `free` is to be called."""
        var both = unsafe_alloc[Float32](2 * COLUMNS, alignment=64)
        return Self(both, both.unsafe_offset(COLUMNS))

    def free(self):
        """Releases the room."""
        self.lower.unsafe_free()

    def fill(self, screen: Screen, rough: Data[DType.float32], row: Int, first: Int, size: Int):
        """Fills in the bounds of whole panels.

        Args:
            screen: Knows how far logits may be from rough ones.
            rough: The rough logits.
            row: The row.
            first: The first token.
            size: Tokens.
        """
        for i in range(0, size, WIDTH):
            var x = rough.unsafe_load[width=WIDTH](i)
            var bound = screen.bounds[WIDTH](row, first + i)
            self.lower.unsafe_store(i, x - bound)
            self.upper.unsafe_store(i, x + max(bound * 1.001, REACH))


@fieldwise_init
struct Found(TrivialRegisterPassable):
    """What one range of one chunk holds for a row."""

    var softmax: Softmax
    """Of the rough logits, in the end of full ones where there are some."""
    var lower: Float32
    """The best lower bound."""
    var upper: Softmax
    """Of the upper bounds; where nobody asks what all are together, only the largest."""

    @staticmethod
    def nothing() -> Self:
        """Returns what a range without tokens holds."""
        return Self(Softmax.empty(), Float32.MIN_FINITE, Softmax.empty())


def _range(filter: Filter, which: Int, chunk: Int, tokens: Int) -> Tuple[Int, Int]:
    """First token and number of tokens of a chunk that are in one of a filter's ranges."""
    var first = max(chunk * COLUMNS, Int(filter.begin[which]))
    return first, min((chunk + 1) * COLUMNS, tokens, Int(filter.end[which])) - first


def _floors(filter: Filter, found: Pointer[Found, MutUntrackedOrigin], chunks: Int) -> SIMD[DType.float32, 2]:
    """What an upper bound must reach, in either range, for a token to be read.

    Args:
        filter: The row's.
        found: What its first range holds, chunk by chunk, then the second.
        chunks: Number of chunks.
    """
    var best = SIMD[DType.float32, 2](Float32.MIN_FINITE)
    var together = Softmax.empty()
    for chunk in range(chunks):
        best[0] = max(best[0], found[unsafe_offset=chunk].lower)
        best[1] = max(best[1], found[unsafe_offset=chunks + chunk].lower)
        together = together.merge(found[unsafe_offset=chunks + chunk].upper)
    if filter.weigh and together.total > 0 and together.largest + log(together.total) >= best[0]:
        return SIMD[DType.float32, 2](best[0], Float32.MIN_FINITE)
    return SIMD[DType.float32, 2](best.reduce_max())


def _softmaxes[
    dtype: DType, //
](
    states: States,
    vocabulary: Data[dtype],
    panels: Data[DType.int8],
    rotation: Data[DType.float16],
    groups: Int,
    tokens: Int,
    filters: List[Filter],
    mask: Data[DType.uint8],
) -> List[Softmax]:
    """Searches the vocabulary.

    Args:
        states: The hidden states.
        vocabulary: Rows of `depth`.
        panels: The vocabulary's screen.
        rotation: The screen's R and m, packed.
        groups: Groups of a token in it.
        tokens: V.
        filters: One for each state.
        mask: `tokens`; read only for states whose filter suppresses.

    Returns:
        The softmaxes of both ranges of each state, indexed `row * 2 + range`.
    """
    var last_panel = ceildiv(tokens, PANEL)
    var chunks = ceildiv(last_panel, CHUNK)
    var stride = last_panel * PANEL
    var screen = Screen(panels, groups, states.count)
    var rough = unsafe_alloc[Float32](states.count * stride, alignment=64)
    var found = unsafe_alloc[Found](states.count * 2 * chunks)

    @always_inline
    def look(begin: Int, end: Int) {imm}:
        var bounds = Bounds.allocate()
        for chunk in range(begin, end):
            var first = chunk * COLUMNS
            var last = min((chunk + 1) * CHUNK, last_panel)
            screen.rough(chunk * CHUNK, last, rough.unsafe_offset(first), stride)
            for row in range(states.count):
                var filter = filters[row]
                var x = rough.unsafe_offset(row * stride + first)
                bounds.fill(screen, x, row, first, last * PANEL - first)
                for which in range(2):
                    var low, size = _range(filter, which, chunk, tokens)
                    var part = Found.nothing()
                    if size > 0:
                        var upper = bounds.upper.unsafe_offset(low - first)
                        part = Found(
                            softmax(x.unsafe_offset(low - first), mask, filter, low, size),
                            largest(bounds.lower.unsafe_offset(low - first), mask, filter, low, size),
                            softmax(upper, mask, filter, low, size) if which == 1
                            and filter.weigh else Softmax(largest(upper, mask, filter, low, size), 1, NO_TOKEN),
                        )
                    found[unsafe_offset=(row * 2 + which) * chunks + chunk] = part
        bounds.free()

    @always_inline
    def member(team: Team) {imm}:
        screen.turn(states, rotation, team)
        team.share(look, chunks)
        var floors = List[SIMD[DType.float32, 2]](capacity=states.count)
        for row in range(states.count):
            floors.append(_floors(filters[row], found.unsafe_offset(row * 2 * chunks), chunks))

        @always_inline
        def read(begin: Int, end: Int) {imm}:
            var bounds = Bounds.allocate()
            for chunk in range(begin, end):
                var first = chunk * COLUMNS
                for row in range(states.count):
                    for which in range(2):
                        var place = (row * 2 + which) * chunks + chunk
                        var floor = floors[row][which]
                        var filter = filters[row]
                        var low, size = _range(filter, which, chunk, tokens)
                        if size <= 0 or not found[unsafe_offset=place].upper.largest >= floor:
                            continue
                        var x = rough.unsafe_offset(row * stride + first)
                        bounds.fill(screen, x, row, first, min(COLUMNS, stride - first))
                        for token in range(low, low + size):
                            if bounds.upper[unsafe_offset=token - first] >= floor and filter.allows[1](mask, token):
                                x[unsafe_offset=token - first] = states.logit(row, vocabulary, token)
                        var full = softmax(x.unsafe_offset(low - first), mask, filter, low, size)
                        found[unsafe_offset=place].softmax = full
            bounds.free()

        team.share(read, chunks)

    if states.count > 0:
        in_team(member, 4)

    var results = List[Softmax](capacity=states.count * 2)
    for i in range(states.count * 2):
        var result = Softmax.empty()
        for chunk in range(chunks):
            result = result.merge(found[unsafe_offset=i * chunks + chunk].softmax)
        results.append(result)
    screen.free()
    rough.unsafe_free()
    found.unsafe_free()
    return results^


def _require_finite(total: Float32, row: Int, op: StaticString) raises:
    """Raises unless the sum of exponentials is a number: it is none as soon as one logit is none."""
    if not isfinite(total):
        raise Error(op, ": the logits of row ", row, " are not finite")


def greedy[
    dtype: DType, weight_type: DType, //
](
    picked: Data[DType.int32],
    log_probs: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[weight_type],
    rotation: Data[DType.float16],
    screen: Data[DType.int8],
    groups: Int,
    suppress_mask: Data[DType.uint8],
    rules: Data[DType.int32],
    batch: Int,
    length: Int,
    depth: Int,
    tokens: Int,
    timestamp_begin: Int,
) raises:
    """Picks the most probable of each row's allowed tokens.

    Args:
        picked: `batch`, the tokens.
        log_probs: `batch`, the log of their probabilities among the allowed tokens.
        hidden: `batch x length x depth`.
        at: `batch`, the position of each row that counts.
        vocabulary: Rows of `depth`.
        rotation: The screen's R and m, packed.
        screen: The vocabulary's screen.
        groups: Groups of a token in it.
        suppress_mask: `tokens`, the bits that suppress each token.
        rules: `batch x 4`: suppress_bits, text_begin, timestamps_from, timestamps_to.
        batch: B.
        length: T.
        depth: D.
        tokens: V.
        timestamp_begin: The first timestamp.

    Raises:
        A row has no token that is allowed, or its logits are not finite.
    """
    var filters = List[Filter](capacity=batch)
    for b in range(batch):
        var rule = rules.unsafe_load[width=4](4 * b)
        filters.append(
            Filter(
                UInt8(Int(rule[0]) & ~TIMESTAMP_RULE),
                SIMD[DType.int32, 2](rule[1], max(rule[2], Int32(timestamp_begin))),
                SIMD[DType.int32, 2](Int32(timestamp_begin), rule[3]),
                Int(rule[0]) & TIMESTAMP_RULE != 0,
            )
        )
    var states = States(hidden, at, batch, length, depth)
    var results = _softmaxes(states, vocabulary, screen, rotation, groups, tokens, filters, suppress_mask)
    states.free()
    for b in range(batch):
        var text = results[2 * b]
        var timestamps = results[2 * b + 1]
        if filters[b].weigh and timestamps.largest + log(timestamps.total) > text.largest:
            text = Softmax.empty()
        var allowed = text.merge(timestamps)
        if allowed.total == 0:
            raise Error("greedy: the rules of row ", b, " suppress every token")
        _require_finite(allowed.total, b, "greedy")
        picked[unsafe_offset=b] = allowed.index
        log_probs[unsafe_offset=b] = -log(allowed.total)


def token_probability[
    dtype: DType, weight_type: DType, //
](
    probabilities: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[weight_type],
    rotation: Data[DType.float16],
    screen: Data[DType.int8],
    groups: Int,
    batch: Int,
    length: Int,
    depth: Int,
    tokens: Int,
    token: Int,
) raises:
    """Computes the probability of one token among all, without rules.

    Args:
        probabilities: `batch`; NaN where `at` is negative.
        hidden: `batch x length x depth`.
        at: `batch`, the position of each row that counts, or -1.
        vocabulary: Rows of `depth`.
        rotation: The screen's R and m, packed.
        screen: The vocabulary's screen.
        groups: Groups of a token in it.
        batch: B.
        length: T.
        depth: D.
        tokens: V.
        token: The token.

    Raises:
        The logits of a row are not finite.
    """
    for b in range(batch):
        probabilities[unsafe_offset=b] = nan[DType.float32]()
    var states = States(hidden, at, batch, length, depth)
    if states.count > 0:
        var everything = Filter(0, SIMD[DType.int32, 2](0), SIMD[DType.int32, 2](Int32(tokens), 0), False)
        var filters = List[Filter](length=states.count, fill=everything)
        var no_mask = Data[DType.uint8].unsafe_dangling()
        var results = _softmaxes(states, vocabulary, screen, rotation, groups, tokens, filters, no_mask)
        var row = 0
        for b in range(batch):
            if at[unsafe_offset=b] >= 0:
                var every = results[2 * row]
                _require_finite(every.total, b, "token_probability")
                var logit = states.logit(row, vocabulary, token)
                probabilities[unsafe_offset=b] = exp(logit - every.largest) / every.total
                row += 1
    states.free()


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
    var states = States(hidden, at, batch, length, depth)

    @always_inline
    def some_tokens(begin: Int, end: Int) {imm}:
        for token in range(begin, end):
            for row in range(states.count):
                output[unsafe_offset=row * tokens + token] = states.logit(row, vocabulary, token)

    ForkJoin().share(some_tokens, tokens if states.count > 0 else 0, grain(depth * size_of[weight_type]()))
    states.free()

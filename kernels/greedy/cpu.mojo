"""The vocabulary: logits, the greedy pick under Whisper's rules, the probability of one token.

    logits[b, v] = sum over k of h[b, k] * E[v, k]                                     h[b] = hidden[b, at[b]]

Shapes: hidden (B, T, D), at (B), E (V, D) packed in panels of 16 tokens. The logits are not kept: 256 at a
time stay in the first-level cache until they are reduced to a softmax of their own,

    largest = max x        total = sum exp(x - largest)        index = the first x that is the largest

and two softmaxes of neighbours become one by rescaling: with m = max(m1, m2), total = total1 * exp(m1 - m) +
total2 * exp(m2 - m) (the online softmax of Milakov and Gimelshein, arXiv:1805.02867).

               V: panels of 16 tokens
        +--------------+--------------+---- ... --+   a chunk of 16 panels is read once, by one thread, for all rows:
        | CHUNK panels | CHUNK panels |           |   a few panels at a time meet every row of h
        +--------------+--------------+---- ... --+
            | tile product
    row 0: | 256 logits |  ->  text (largest, total, index), timestamps (largest, total, index)   -> merged over the
    row 1: | 256 logits |  ->  text (largest, total, index), timestamps (largest, total, index)      chunks at the end

A row has two ranges of tokens, each with a softmax of its own: text and timestamps for the pick, all tokens and the one
in question for a probability. The chunks do not depend on the number of threads, so neither do the results.

Cost: 2*B*V*D operations, B*V exponentials; V*D elements moved, 80 MB for tiny in float32: a decoding step waits for
memory here. Tokens behind V, which only pad the last panel, take no part.
"""

from std.math import ceildiv, iota, log
from std.memory.alloc import unsafe_alloc
from std.sys import size_of
from std.utils.numerics import isfinite, nan

from ..cpu.epilogue import Epilogue
from ..cpu.matmul import multiply, multiply_block
from ..cpu.threads import grain, share
from ..cpu.tile import PANEL, WIDTH
from ..data import Data
from ..math import exp

comptime CHUNK = 16
"""Panels of one chunk: 0.4 to 1.3 MB of weights, and few enough chunks that merging them costs nothing."""

comptime TIMESTAMP_RULE = 128
"""The bit of `suppress_bits` by which timestamps as a whole may outweigh text."""

comptime NO_TOKEN = Int32.MAX
"""Index of the largest of no values."""


@fieldwise_init
struct Filter(TrivialRegisterPassable):
    """Which tokens of a row take part: the bits that suppress, and two ranges."""

    var suppress: UInt8
    var begin: SIMD[DType.int32, 2]
    var end: SIMD[DType.int32, 2]


@fieldwise_init
struct Softmax(TrivialRegisterPassable):
    """The softmax of some logits: the log of the sum of their exponentials is largest + log(total)."""

    var largest: Float32
    var total: Float32
    var index: Int32

    @staticmethod
    def empty() -> Self:
        """Returns the softmax of no logits."""
        return Self(Float32.MIN_FINITE, 0, NO_TOKEN)

    def merge(self, later: Self) -> Self:
        """Returns the softmax of these logits and of some that come behind them."""
        var largest = max(self.largest, later.largest)
        var total = self.total * exp(self.largest - largest) + later.total * exp(later.largest - largest)
        return Self(largest, total, later.index if later.largest > self.largest else self.index)


def _softmax(logits: Data[DType.float32], mask: Data[DType.uint8], suppress: UInt8, first: Int, size: Int) -> Softmax:
    """Softmax of the logits of the tokens `first ..< first + size`, without those that the mask suppresses."""
    var whole = size // WIDTH * WIDTH

    @always_inline
    def allowed[width: Int](at: Int) {imm} -> SIMD[DType.bool, width]:
        if suppress == 0:
            return SIMD[DType.bool, width](fill=True)
        return (mask.unsafe_load[width=width](first + at) & suppress).eq(0)

    var lanes = SIMD[DType.float32, WIDTH](Float32.MIN_FINITE)
    var tokens = SIMD[DType.int32, WIDTH](NO_TOKEN)
    for at in range(0, whole, WIDTH):
        var x = logits.unsafe_load[width=WIDTH](at)
        var larger = x.gt(lanes) & allowed[WIDTH](at)
        lanes = larger.select(x, lanes)
        tokens = larger.select(iota[DType.int32, WIDTH](Int32(first + at)), tokens)
    var largest = lanes.reduce_max()
    var index = lanes.eq(largest).select(tokens, NO_TOKEN).reduce_min()
    for at in range(whole, size):
        if logits[unsafe_offset=at] > largest and allowed[1](at):
            largest = logits[unsafe_offset=at]
            index = Int32(first + at)

    var totals = SIMD[DType.float32, WIDTH](0)
    for at in range(0, whole, WIDTH):
        totals += allowed[WIDTH](at).select(exp(logits.unsafe_load[width=WIDTH](at) - largest), 0)
    var total = totals.reduce_add()
    for at in range(whole, size):
        if allowed[1](at):
            total += exp(logits[unsafe_offset=at] - largest)
    return Softmax(largest, total, index)


@fieldwise_init
struct StoreEpilogue(Epilogue):
    """Stores the sums of the columns from `first` on."""

    var output: Data[DType.float32]
    var stride: Int
    var first: Int

    @always_inline
    def store[width: Int](self, row: Int, column: Int, sums: SIMD[DType.float32, width]):
        """Stores one piece of a row."""
        self.output.unsafe_store(row * self.stride + column - self.first, sums)


struct Rows[dtype: DType](TrivialRegisterPassable):
    """Copies of the hidden states whose logits are wanted, one behind the other."""

    var data: Data[Self.dtype]
    var count: Int
    var depth: Int

    def __init__(out self, hidden: Data[Self.dtype], at: Data[DType.int32], batch: Int, length: Int, depth: Int):
        """Copies `hidden[b, at[b]]` for every b where `at[b]` is not negative; the caller frees."""
        self.data = unsafe_alloc[Scalar[Self.dtype]](batch * depth)
        self.count = 0
        self.depth = depth
        for b in range(batch):
            var t = Int(at[unsafe_offset=b])
            if t >= 0:
                for k in range(depth):
                    self.data[unsafe_offset=self.count * depth + k] = hidden[unsafe_offset=(b * length + t) * depth + k]
                self.count += 1


def _softmaxes[
    dtype: DType, weight_type: DType, //
](
    rows: Rows[dtype],
    vocabulary: Data[weight_type],
    tokens: Int,
    filters: List[Filter],
    suppress_mask: Data[DType.uint8],
) -> List[Softmax]:
    """Reads the vocabulary once.

    Args:
        rows: The hidden states.
        vocabulary: Packed panels, `depth` deep.
        tokens: V.
        filters: One for each row.
        suppress_mask: `tokens`; read only for rows whose filter suppresses.

    Returns:
        The softmaxes of both ranges of each row, indexed `row * 2 + range`.
    """
    comptime columns = CHUNK * PANEL
    var panels = ceildiv(tokens, PANEL)
    var chunks = ceildiv(panels, CHUNK)
    var parts = unsafe_alloc[Softmax](rows.count * 2 * chunks)

    @always_inline
    def some_chunks(begin: Int, end: Int) {imm}:
        var logits = unsafe_alloc[Float32](rows.count * columns)
        for chunk in range(begin, end):
            var first = chunk * columns
            var last = min((chunk + 1) * CHUNK, panels)
            multiply_block(
                rows.data,
                rows.depth,
                vocabulary,
                rows.depth,
                0,
                rows.count,
                chunk * CHUNK,
                last,
                tokens,
                StoreEpilogue(logits, columns, first),
            )
            for row in range(rows.count):
                var filter = filters[row]
                for which in range(2):
                    var low = max(first, Int(filter.begin[which]))
                    var size = min(first + columns, tokens, Int(filter.end[which])) - low
                    var x = logits.unsafe_offset(row * columns + low - first)
                    parts[unsafe_offset=(row * 2 + which) * chunks + chunk] = (
                        _softmax(x, suppress_mask, filter.suppress, low, size) if size > 0 else Softmax.empty()
                    )
        logits.unsafe_free()

    share(some_chunks, chunks if rows.count > 0 else 0, grain(columns * rows.depth * size_of[weight_type]()))
    var results = List[Softmax](capacity=rows.count * 2)
    for i in range(rows.count * 2):
        var result = Softmax.empty()
        for chunk in range(chunks):
            result = result.merge(parts[unsafe_offset=i * chunks + chunk])
        results.append(result)
    parts.unsafe_free()
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
        vocabulary: Packed panels, `depth` deep.
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
            )
        )
    var rows = Rows(hidden, at, batch, length, depth)
    var results = _softmaxes(rows, vocabulary, tokens, filters, suppress_mask)
    rows.data.unsafe_free()
    for b in range(batch):
        var text = results[2 * b]
        var timestamps = results[2 * b + 1]
        var weigh = Int(rules[unsafe_offset=4 * b]) & TIMESTAMP_RULE != 0
        if weigh and timestamps.largest + log(timestamps.total) > text.largest:
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
        vocabulary: Packed panels, `depth` deep.
        batch: B.
        length: T.
        depth: D.
        tokens: V.
        token: The token.

    Raises:
        The logits of a row are not finite.
    """
    var rows = Rows(hidden, at, batch, length, depth)
    var filters = List[Filter](capacity=rows.count)
    for _ in range(rows.count):
        filters.append(
            Filter(0, SIMD[DType.int32, 2](0, Int32(token)), SIMD[DType.int32, 2](Int32(tokens), Int32(token) + 1))
        )
    var results = _softmaxes(rows, vocabulary, tokens, filters, Data[DType.uint8].unsafe_dangling())
    rows.data.unsafe_free()
    var row = 0
    for b in range(batch):
        probabilities[unsafe_offset=b] = nan[DType.float32]()
        if at[unsafe_offset=b] >= 0:
            var every = results[2 * row]
            _require_finite(every.total, b, "token_probability")
            probabilities[unsafe_offset=b] = exp(results[2 * row + 1].largest - every.largest) / every.total
            row += 1


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
        vocabulary: Packed panels, `depth` deep.
        batch: B.
        length: T.
        depth: D.
        tokens: V.
    """
    var rows = Rows(hidden, at, batch, length, depth)
    multiply(rows.data, depth, vocabulary, batch, tokens, depth, StoreEpilogue(output, tokens, 0))
    rows.data.unsafe_free()

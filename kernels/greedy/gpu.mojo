"""The vocabulary on a GPU: the greedy pick, the probability of one token, all logits; equations and rules as in `cpu.mojo`.

    E (V, D)                 block: 256 tokens                               combine: one warp per row
    +---------+    group of 8 lanes: one token at a time      (largest, total, index)
    |  256    |    lane l: chunks l, l + 8, ... of 16 bytes   of each row, each range  ->  merged in a fixed order
    +---------+    times the same chunk of every row of h     and each block
    |  256    |
    +---------+    h: the rows that count, in shared memory; 256 logits of each row, too
    |   ..    |

A block reads 256 rows of E once and forms their logits for up to 16 rows of h. They stay in shared memory until a warp has
reduced those of a row to two softmaxes, one of each range of tokens (text and timestamps; all tokens and the one in
question). The second kernel merges the blocks' softmaxes and picks. Nothing depends on the order in which blocks run.

The host cannot see `at` and the rules, so it cannot refuse them. An `at` beyond T is taken for the nearest; a negative one
means that nothing is asked for, and if no row asks, nothing is read. Where the rules leave no token, or logits are not
finite, the log of the probability is NaN.

Cost: 2*B*V*D operations; V*D elements of E moved, and per block B*D of h, B*256 bytes of the mask: with one row 1.01 of the
least, with 16 rows 1.08. Shared memory at most 48 KB: so depths above 512 take 8 rows at a time.
Registers: at most 80 for one row, 3 blocks of 8 warps per multiprocessor; 128 for more rows, 2 blocks.

Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, WARP_SIZE, barrier, block_idx, lane_id, thread_idx, warp_id
from max.gpu.host import DeviceBuffer, DeviceContext
from max.gpu.primitives import warp
from std.collections import Array
from std.math import ceildiv, exp, log
from std.memory import bitcast
from std.utils import StaticTuple
from std.utils.numerics import isfinite, nan

from ..data import Data
from ..gpu.memory import Shared, chunk, load_chunk, shared_memory
from ..gpu.reduce import warp_max, warp_sum
from .cpu import NO_TOKEN, TIMESTAMP_RULE

comptime THREADS = 256
"""Threads of a block of the first kernel."""

comptime TOKENS = 256
"""Tokens of a block."""

comptime GROUP = 8
"""Lanes that share a token."""

comptime OWN = 2
"""Tokens that a group takes at a time, so that what it reads of h serves twice."""

comptime MAX_DEPTH = 1280
"""Largest D: that of Whisper's largest models."""

comptime SHALLOW = 512
"""Depth up to which shared memory holds MAX_ROWS rows."""

comptime MAX_ROWS = 16
"""Most rows that one reading of the vocabulary serves."""

comptime MERGING_THREADS = 64
"""Threads of a block that merges: a whole wavefront; where a warp has 32 lanes, two do the same."""


@fieldwise_init
struct Softmax(TrivialRegisterPassable):
    """The softmax of some logits: the log of the sum of their exponentials is largest + log(total)."""

    var largest: Float32
    var total: Float32
    var index: Int32

    @staticmethod
    @always_inline
    def empty() -> Self:
        """Returns the softmax of no logits."""
        return Self(Float32.MIN_FINITE, 0, NO_TOKEN)

    @always_inline
    def merge(self, other: Self) -> Self:
        """Returns the softmax of these logits and others; of equal ones the lower index counts."""
        var largest = max(self.largest, other.largest)
        var total = self.total * exp(self.largest - largest) + other.total * exp(other.largest - largest)
        var index = min(
            self.index if self.largest == largest else NO_TOKEN, other.index if other.largest == largest else NO_TOKEN
        )
        return Self(largest, total, index)


@fieldwise_init
struct Tokens(TrivialRegisterPassable):
    """Which tokens of a row take part: the bits that suppress, and two ranges."""

    var suppress: UInt8
    var begin: SIMD[DType.int32, 2]
    var end: SIMD[DType.int32, 2]


@fieldwise_init
struct Question(TrivialRegisterPassable):
    """What is asked of the vocabulary: a pick under rules, or the probability of one token."""

    var rules: Data[DType.int32]
    """(B, 4), see `kernels/ops/vocabulary.mojo`; not read if `token` is not negative."""
    var mask: Data[DType.uint8]
    """(V), the bits that suppress each token; not read if `token` is not negative."""
    var first_timestamp: Int32
    var token: Int32
    """The token whose probability is asked for; negative for a pick."""

    @always_inline
    def of(self, row: Int32, vocabulary: Int32) -> Tokens:
        """The tokens that take part in a row."""
        if self.token >= 0:
            return Tokens(0, {0, self.token}, {vocabulary, self.token + 1})
        var rule = self.rules.unsafe_load[width=4, alignment=16](Int(row) * 4)
        return Tokens(
            (rule[0] & Int32(127)).cast[DType.uint8](),
            {max(rule[1], 0), max(rule[2], self.first_timestamp)},
            {min(self.first_timestamp, vocabulary), min(rule[3], vocabulary)},
        )


@always_inline
def _asks(at: Data[DType.int32], rows: Int32) -> Bool:
    """Whether any row asks; every warp looks, a lane per row."""
    return warp_max(Float32(_position(at, rows))) >= 0


@always_inline
def _position(at: Data[DType.int32], rows: Int32) -> Int32:
    """What row `lane` asks for, -1 if there is none."""
    var lane = Int32(lane_id())
    return at[unsafe_offset=lane] if lane < rows else -1


@always_inline
def _logits[
    dtype: DType, //, most: Int, depth_limit: Int
](
    result: Shared[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[dtype],
    rows: Int32,
    length: Int32,
    depth: Int32,
    tokens: Int32,
    first: Int32,
):
    """Computes the logits of a block's tokens; a barrier is behind it.

    Parameters:
        dtype: Of states and vocabulary.
        most: Rows that the registers are for.
        depth_limit: Depth that the shared memory is for.

    Args:
        result: (most, TOKENS).
        hidden: (rows, length, depth).
        at: (rows).
        vocabulary: (tokens, depth).
        rows: B, at most `most`.
        length: T.
        depth: D.
        tokens: V.
        first: The block's first token.
    """
    comptime width = chunk[dtype]()
    comptime in_flight = 3 if most == 1 else 2  # chunks of each token that a lane loads before it uses the first
    comptime Floats = SIMD[DType.float32, width]
    var h = shared_memory[dtype, most * depth_limit]()
    var thread = Int32(thread_idx.x)
    var position = min(max(_position(at, rows), 0), length - 1)
    comptime for b in range(most):
        if Int32(b) < rows:
            var t = warp.shuffle_idx(position, UInt32(b))
            var source = (b * Int(length) + Int(t)) * Int(depth)
            var k = thread * Int32(width)
            while k < depth:
                h.unsafe_store[alignment=16](b * depth_limit + Int(k), load_chunk(hidden, source + Int(k)))
                k += Int32(THREADS * width)
    barrier()

    var lane = thread % GROUP
    for step in range(TOKENS // (THREADS // GROUP * OWN)):
        var local = Int32(step) * (THREADS // GROUP * OWN) + thread // GROUP
        var sums = Array[SIMD[DType.float32, OWN], most](fill=0)
        var begin = lane * Int32(width)
        while begin < depth:
            var w = Array[SIMD[dtype, width], in_flight * OWN](fill=0)
            comptime for i in range(in_flight):
                comptime for j in range(OWN):
                    var k = begin + Int32(i * GROUP * width)
                    var token = first + local + Int32(j * (THREADS // GROUP))
                    if k < depth and token < tokens:
                        w[i * OWN + j] = load_chunk(vocabulary, Int(token) * Int(depth) + Int(k))
            comptime for i in range(in_flight):
                var k = begin + Int32(i * GROUP * width)
                if k < depth:
                    comptime for b in range(most):
                        if Int32(b) < rows:
                            var x = h.unsafe_load[width=width, alignment=16](b * depth_limit + Int(k))
                            var y = x.cast[DType.float32]()
                            comptime for j in range(OWN):
                                var e = w[i * OWN + j].cast[DType.float32]()
                                comptime for n in range(width):
                                    sums[b][j] = y[n].fma(e[n], sums[b][j])
            begin += Int32(in_flight * GROUP * width)
        comptime for b in range(most):
            comptime for j in range(OWN):
                var sum = sums[b][j]
                comptime for bit in range(3):
                    sum += warp.shuffle_xor(sum, UInt32(1 << bit))
                if lane == 0:
                    result.unsafe_store(b * TOKENS + Int(local) + j * (THREADS // GROUP), sum)
    barrier()


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def softmax_kernel[
    dtype: DType, most: Int, depth_limit: Int
](
    parts: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[dtype],
    rules: Data[DType.int32],
    mask: Data[DType.uint8],
    first_timestamp: Int32,
    token: Int32,
    rows: Int32,
    length: Int32,
    depth: Int32,
    tokens: Int32,
):
    """Reduces the logits of 256 tokens to two softmaxes for each row.

    Args:
        parts: (rows, 2, blocks, 4): largest, total, index as the bits of an int32, nothing.
        hidden: (rows, length, depth).
        at: (rows).
        vocabulary: (tokens, depth).
        rules: See `Question`.
        mask: See `Question`.
        first_timestamp: See `Question`.
        token: See `Question`.
        rows: B.
        length: T.
        depth: D.
        tokens: V.
    """
    if not _asks(at, rows):
        return
    var question = Question(rules, mask, first_timestamp, token)
    var blocks = ceildiv(Int(tokens), TOKENS)
    var logits = shared_memory[DType.float32, most * TOKENS]()
    var first = Int32(block_idx.x) * TOKENS
    _logits[most, depth_limit](logits, hidden, at, vocabulary, rows, length, depth, tokens, first)
    var row = Int32(warp_id())
    while row < rows:
        var who = question.of(row, tokens)
        var x = logits.unsafe_offset(Int(row) * TOKENS)
        comptime for which in range(2):
            var softmax = _softmax(x, mask, who, which, first)
            if lane_id() == 0:
                var place = ((Int(row) * 2 + which) * blocks + Int(block_idx.x)) * 4
                var index = bitcast[DType.float32](softmax.index)
                parts.unsafe_store[alignment=16](
                    place, SIMD[DType.float32, 4](softmax.largest, softmax.total, index, 0)
                )
        row += Int32(THREADS // WARP_SIZE)


@always_inline
def _softmax(logits: Shared[DType.float32], mask: Data[DType.uint8], who: Tokens, which: Int, first: Int32) -> Softmax:
    """Softmax of a block's logits that are in one range and not suppressed, by a warp."""
    comptime each = TOKENS // WARP_SIZE
    var x = Array[Float32, each](fill=0)
    var allowed = Array[Bool, each](fill=False)
    var largest = Float32.MIN_FINITE
    comptime for i in range(each):
        var local = Int32(i * WARP_SIZE) + Int32(lane_id())
        var token = first + local
        x[i] = logits.unsafe_load(Int(local))
        var takes_part = who.begin[which] <= token and token < who.end[which]
        if takes_part and who.suppress != 0:
            takes_part = mask[unsafe_offset=token] & who.suppress == 0
        allowed[i] = takes_part
        if takes_part:
            largest = max(largest, x[i])
    largest = warp_max(largest)
    var total = Float32(0)
    var index = NO_TOKEN
    comptime for i in range(each):
        if allowed[i]:
            total += exp(x[i] - largest)
            if x[i] == largest:
                index = min(index, first + Int32(i * WARP_SIZE) + Int32(lane_id()))
    return Softmax(largest, warp_sum(total), _warp_min(index))


@always_inline
def _warp_min(x: Int32) -> Int32:
    var y = x
    comptime for step in range(6 if WARP_SIZE == 64 else 5):
        y = min(y, warp.shuffle_xor(y, UInt32(1 << step)))
    return y


@always_inline
def _merged(parts: Data[DType.float32], blocks: Int32) -> Softmax:
    """Merges the blocks' softmaxes of one row and range, by a warp, in every lane."""
    var all = Softmax.empty()
    var block = Int32(lane_id())
    while block < blocks:
        var part = parts.unsafe_load[width=4, alignment=16](Int(block) * 4)
        all = all.merge(Softmax(part[0], part[1], bitcast[DType.int32](part[2])))
        block += Int32(WARP_SIZE)
    comptime for step in range(6 if WARP_SIZE == 64 else 5):
        comptime distance = UInt32(1 << step)
        all = all.merge(
            Softmax(
                warp.shuffle_xor(all.largest, distance),
                warp.shuffle_xor(all.total, distance),
                warp.shuffle_xor(all.index, distance),
            )
        )
    return all


def pick_kernel(
    picked: Data[DType.int32],
    log_probs: Data[DType.float32],
    parts: Data[DType.float32],
    rules: Data[DType.int32],
    blocks: Int32,
):
    """Merges the softmaxes of one row and picks its token.

    Args:
        picked: (B), the tokens.
        log_probs: (B), the logs of their probabilities, NaN where there is none.
        parts: As `softmax_kernel` left them.
        rules: (B, 4).
        blocks: Blocks of that launch.
    """
    var row = Int(block_idx.x)
    var text = _merged(parts.unsafe_offset(row * 2 * Int(blocks) * 4), blocks)
    var timestamps = _merged(parts.unsafe_offset((row * 2 + 1) * Int(blocks) * 4), blocks)
    if thread_idx.x == 0:
        var weigh = rules[unsafe_offset=4 * row] & TIMESTAMP_RULE != 0
        if weigh and timestamps.largest + log(timestamps.total) > text.largest:
            text = Softmax.empty()
        var allowed = text.merge(timestamps)
        picked[unsafe_offset=row] = allowed.index
        var sure = isfinite(allowed.total) and allowed.total > 0
        log_probs[unsafe_offset=row] = -log(allowed.total) if sure else nan[DType.float32]()


def probability_kernel(
    probabilities: Data[DType.float32], parts: Data[DType.float32], at: Data[DType.int32], rows: Int32, blocks: Int32
):
    """Merges the softmaxes of one row into the probability of the token.

    Args:
        probabilities: (B), NaN where `at` is negative.
        parts: As `softmax_kernel` left them.
        at: (B).
        rows: B.
        blocks: Blocks of that launch.
    """
    var row = Int(block_idx.x)
    var probability = nan[DType.float32]()
    if at[unsafe_offset=row] >= 0:
        var every = _merged(parts.unsafe_offset(row * 2 * Int(blocks) * 4), blocks)
        var one = _merged(parts.unsafe_offset((row * 2 + 1) * Int(blocks) * 4), blocks)
        probability = exp(one.largest - every.largest) / every.total
    if thread_idx.x == 0:
        probabilities[unsafe_offset=row] = probability


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def logits_kernel[
    dtype: DType, most: Int, depth_limit: Int
](
    output: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[dtype],
    rows: Int32,
    length: Int32,
    depth: Int32,
    tokens: Int32,
):
    """Stores the logits of 256 tokens: (rows, tokens)."""
    var logits = shared_memory[DType.float32, most * TOKENS]()
    var first = Int32(block_idx.x) * TOKENS
    _logits[most, depth_limit](logits, hidden, at, vocabulary, rows, length, depth, tokens, first)
    var token = first + Int32(thread_idx.x)
    if token < tokens:
        for row in range(rows):
            var x = logits.unsafe_load(Int(row) * TOKENS + Int(thread_idx.x))
            output[unsafe_offset=Int(row) * Int(tokens) + Int(token)] = x


@fieldwise_init
struct VocabularyOnGPU[dtype: DType](TrivialRegisterPassable):
    """States and vocabulary of a launch; rows go in groups that the kernels have shared memory for."""

    var hidden: Data[Self.dtype]
    """(batch, length, depth)."""
    var at: Data[DType.int32]
    """(batch), the position of each row that counts."""
    var vocabulary: Data[Self.dtype]
    """(tokens, depth)."""
    var batch: Int
    var length: Int
    var depth: Int
    """Whole chunks, at most MAX_DEPTH."""
    var tokens: Int

    def enqueue_pick(
        self,
        picked: Data[DType.int32],
        log_probs: Data[DType.float32],
        mask: Data[DType.uint8],
        rules: Data[DType.int32],
        timestamp_begin: Int,
        ctx: DeviceContext,
    ) raises:
        """Launches the greedy pick: tokens (batch) and the logs of their probabilities (batch)."""
        var blocks = ceildiv(self.tokens, TOKENS)
        var parts = ctx.enqueue_create_buffer[DType.float32](MAX_ROWS * 2 * blocks * 4)
        for row in range(0, self.batch, self._group()):
            var rows = min(self.batch - row, self._group())
            var asked = Question(rules.unsafe_offset(4 * row), mask, Int32(timestamp_begin), -1)
            self._enqueue_softmaxes(parts, asked, row, rows, ctx)
            ctx.enqueue_function[pick_kernel](
                picked.unsafe_offset(row),
                log_probs.unsafe_offset(row),
                parts,
                asked.rules,
                Int32(blocks),
                grid_dim=rows,
                block_dim=MERGING_THREADS,
            )

    def enqueue_probability(self, probabilities: Data[DType.float32], token: Int, ctx: DeviceContext) raises:
        """Launches the computation of one token's probability: (batch)."""
        var blocks = ceildiv(self.tokens, TOKENS)
        var parts = ctx.enqueue_create_buffer[DType.float32](MAX_ROWS * 2 * blocks * 4)
        for row in range(0, self.batch, self._group()):
            var rows = min(self.batch - row, self._group())
            # Rules and mask are not read: any address will do.
            var asked = Question(self.at, self.at.unsafe_bitcast[UInt8](), 0, Int32(token))
            self._enqueue_softmaxes(parts, asked, row, rows, ctx)
            ctx.enqueue_function[probability_kernel](
                probabilities.unsafe_offset(row),
                parts,
                self.at.unsafe_offset(row),
                Int32(rows),
                Int32(blocks),
                grid_dim=rows,
                block_dim=MERGING_THREADS,
            )

    def enqueue_logits(self, output: Data[DType.float32], ctx: DeviceContext) raises:
        """Launches the computation of all logits: (batch, tokens)."""
        for row in range(0, self.batch, self._group()):
            var rows = min(self.batch - row, self._group())

            @always_inline
            def launch[most: Int, depth_limit: Int]() raises {imm}:
                ctx.enqueue_function[logits_kernel[Self.dtype, most, depth_limit]](
                    output.unsafe_offset(row * self.tokens),
                    self.hidden.unsafe_offset(row * self.length * self.depth),
                    self.at.unsafe_offset(row),
                    self.vocabulary,
                    Int32(rows),
                    Int32(self.length),
                    Int32(self.depth),
                    Int32(self.tokens),
                    grid_dim=ceildiv(self.tokens, TOKENS),
                    block_dim=THREADS,
                )

            if rows == 1:
                launch[1, MAX_DEPTH]()
            elif self._group() == MAX_ROWS:
                launch[MAX_ROWS, SHALLOW]()
            else:
                launch[MAX_ROWS // 2, MAX_DEPTH]()

    def _group(self) -> Int:
        """Rows that one launch takes."""
        return MAX_ROWS if self.depth <= SHALLOW else MAX_ROWS // 2

    def _enqueue_softmaxes(
        self, parts: DeviceBuffer[DType.float32], asked: Question, row: Int, rows: Int, ctx: DeviceContext
    ) raises:
        @always_inline
        def launch[most: Int, depth_limit: Int]() raises {imm}:
            ctx.enqueue_function[softmax_kernel[Self.dtype, most, depth_limit]](
                parts,
                self.hidden.unsafe_offset(row * self.length * self.depth),
                self.at.unsafe_offset(row),
                self.vocabulary,
                asked.rules,
                asked.mask,
                asked.first_timestamp,
                asked.token,
                Int32(rows),
                Int32(self.length),
                Int32(self.depth),
                Int32(self.tokens),
                grid_dim=ceildiv(self.tokens, TOKENS),
                block_dim=THREADS,
            )

        if rows == 1:
            launch[1, MAX_DEPTH]()
        elif self._group() == MAX_ROWS:
            launch[MAX_ROWS, SHALLOW]()
        else:
            launch[MAX_ROWS // 2, MAX_DEPTH]()

"""The vocabulary on a GPU: the greedy pick, the probability of one token, all logits; equations and rules as in `../cpu.mojo`.

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

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, WARP_SIZE, block_idx, lane_id, thread_idx, warp_id
from std.math import ceildiv, exp, log
from std.memory import bitcast
from std.utils import StaticTuple
from std.utils.numerics import isfinite, nan

from ...data import Data
from ...gpu.memory import shared_memory
from ...gpu.reduce import warp_max
from ..cpu import TIMESTAMP_RULE
from .logits import THREADS, TOKENS, asked_position, compute_logits
from .softmax import Question, Softmax, merged, softmax_of_block


@always_inline
def _asks(at: Data[DType.int32], rows: Int32) -> Bool:
    """Whether any row asks; every warp looks, a lane per row."""
    return warp_max(asked_position(at, rows)) >= 0


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
    compute_logits[most, depth_limit](logits, hidden, at, vocabulary, rows, length, depth, tokens, first)
    var row = Int32(warp_id())
    while row < rows:
        var who = question.of(row, tokens)
        var x = logits.unsafe_offset(Int(row) * TOKENS)
        comptime for which in range(2):
            var softmax = softmax_of_block(x, mask, who, which, first)
            if lane_id() == 0:
                var place = ((Int(row) * 2 + which) * blocks + Int(block_idx.x)) * 4
                var index = bitcast[DType.float32](softmax.index)
                parts.unsafe_store[alignment=16](
                    place, SIMD[DType.float32, 4](softmax.largest, softmax.total, index, 0)
                )
        row += Int32(THREADS // WARP_SIZE)


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
    var text = merged(parts.unsafe_offset(row * 2 * Int(blocks) * 4), blocks)
    var timestamps = merged(parts.unsafe_offset((row * 2 + 1) * Int(blocks) * 4), blocks)
    if thread_idx.x == 0:
        var weigh = rules[unsafe_offset=4 * row] & TIMESTAMP_RULE != 0
        if weigh and timestamps.largest + log(timestamps.total) > text.largest:
            text = Softmax.empty()
        var allowed = text.merge(timestamps)
        picked[unsafe_offset=row] = allowed.index
        var sure = isfinite(allowed.total) and allowed.total > 0
        log_probs[unsafe_offset=row] = -log(allowed.total) if sure else nan[DType.float32]()


def probability_kernel(
    probabilities: Data[DType.float32], parts: Data[DType.float32], at: Data[DType.int32], blocks: Int32
):
    """Merges the softmaxes of one row into the probability of the token.

    Args:
        probabilities: (B), NaN where `at` is negative.
        parts: As `softmax_kernel` left them.
        at: (B).
        blocks: Blocks of that launch.
    """
    var row = Int(block_idx.x)
    var probability = nan[DType.float32]()
    if at[unsafe_offset=row] >= 0:
        var every = merged(parts.unsafe_offset(row * 2 * Int(blocks) * 4), blocks)
        var one = merged(parts.unsafe_offset((row * 2 + 1) * Int(blocks) * 4), blocks)
        probability = exp(one.largest - every.largest) / every.total
    if thread_idx.x == 0:
        probabilities[unsafe_offset=row] = probability

"""The vocabulary on a GPU: the greedy pick, the probability of one token, all logits; equations and rules as in `../cpu.mojo`.

    E (V, D)                 block: 256 tokens                               merging: one block per row
    +---------+    warp: 16 tokens, all of D, by an mma          (largest, total, index)
    |  256    |    of 16 tokens x 8 rows, or by multiply-adds    of each row, each range  ->  merged in a fixed order
    +---------+    (`logits.mojo`)                               and each block
    |  256    |
    +---------+    h: the rows that count, in shared memory, which then takes their 256 logits each
    |   ..    |

A block reads 256 rows of E once and forms their logits for up to 16 rows of h. They stay in shared memory until warps have
reduced each row's to two softmaxes, one of each range of tokens (text and timestamps; all tokens and the one in
question), a warp a row and range. The second kernel merges the blocks' softmaxes and picks. Nothing depends on the order in which
blocks run.

The host cannot see `at` and the rules, so it cannot refuse them. An `at` beyond T is taken for the nearest; a negative one
means that nothing is asked for, and if no row asks, nothing is read. Where the rules leave no token, or logits are not
finite, the log of the probability is NaN. `at`, rules and mask are a step's inputs: they are read before the launch in front has
ended (`../../gpu/overlap.mojo`), so no launch between two picks may write them.

Cost: 2*B*V*D operations (B rounded up to 8 or 16 on tensor cores); V*D elements of E and V bytes of the mask moved, and per block B*D
of h: with one row 1.01 of the least, with 16 rows 1.08. On an H200, tiny.en's 39.8 MB in float16 take
8.3 us with one row, 10.4 with 5, 10.9 with 8 and 13.1 with 16 (time after time, so the level-2 cache holds some of it), 14.5
with one row or 5 after the rest of a step; the merging 1.4.
Memory is busy because all blocks are on the GPU at once, with 8 chunks a lane in flight, 6 for more than 8 rows: 512 threads of at most 64 registers, 2 blocks
a multiprocessor; 128 registers, 1 block, for more than one row without tensor cores. Shared memory at most 41 KB; float32 with D > 512
therefore takes 8 rows at a time.

Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, WARP_SIZE, barrier, block_idx, lane_id, thread_idx, warp_id
from std.math import ceildiv, exp, log
from std.memory import bitcast
from std.utils import StaticTuple
from std.utils.numerics import isfinite, nan

from ...data import Data
from ...gpu.memory import shared_memory
from ...gpu.overlap import start_next, wait_for_previous
from ...gpu.reduce import warp_max
from ..cpu import TIMESTAMP_RULE
from .logits import BOUND, THREADS, TOKENS, States, asked_position
from .softmax import Question, Softmax, merged, softmax_of_block


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(BOUND[dtype, most])))
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
    start_next()
    var position = asked_position(at, rows)
    if warp_max(position) < 0:
        wait_for_previous()
        return
    # Rules and mask come while the logits are made: a warp's first row and range, a thread's token.
    var question = Question(rules, mask, first_timestamp, token)
    var first = Int32(block_idx.x) * TOKENS
    var pair = Int32(warp_id())
    var who = question.of(min(pair // 2, rows - 1), tokens)
    var bits = question.mask_of(first + Int32(thread_idx.x), tokens)

    var states = States[dtype](hidden, vocabulary, rows, length, depth, tokens)
    var logits = states.compute_logits[most, depth_limit](position, first)
    var masks = shared_memory[DType.uint8, TOKENS]()
    if thread_idx.x < TOKENS:
        masks.unsafe_store(Int(thread_idx.x), bits)
    barrier()
    var blocks = ceildiv(Int(tokens), TOKENS)
    while pair < 2 * rows:
        var row = Int(pair) // 2
        var which = Int(pair) % 2
        if pair >= Int32(THREADS // WARP_SIZE):
            who = question.of(Int32(row), tokens)
        var softmax = softmax_of_block(logits, masks, who, row, which, first)
        if lane_id() == 0:
            var index = bitcast[DType.float32](softmax.index)
            parts.unsafe_store[alignment=16](
                (Int(pair) * blocks + Int(block_idx.x)) * 4,
                SIMD[DType.float32, 4](softmax.largest, softmax.total, index, 0),
            )
        pair += Int32(THREADS // WARP_SIZE)


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
    start_next()
    wait_for_previous()
    var row = Int(block_idx.x)
    var both = merged(parts, row, blocks)
    if thread_idx.x == 0:
        picked[unsafe_offset=row], log_probs[unsafe_offset=row] = best_of(
            both[0], both[1], rules[unsafe_offset=4 * row]
        )


@always_inline
def best_of(text: Softmax, timestamps: Softmax, bits: Int32) -> Tuple[Int32, Float32]:
    """Picks a row's token.

    Args:
        text: The softmax of the text that is allowed.
        timestamps: That of the timestamps.
        bits: The row's `suppress_bits`.

    Returns:
        The token and the log of its probability, NaN where there is none.
    """
    var weigh = bits & TIMESTAMP_RULE != 0
    var only_timestamps = weigh and timestamps.largest + log(timestamps.total) > text.largest
    var allowed = timestamps if only_timestamps else text.merge(timestamps)
    var sure = isfinite(allowed.total) and allowed.total > 0
    return allowed.index, -log(allowed.total) if sure else nan[DType.float32]()


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
    start_next()
    wait_for_previous()
    var row = Int(block_idx.x)
    var probability = nan[DType.float32]()
    if at[unsafe_offset=row] >= 0:
        var both = merged(parts, row, blocks)  # every token's, and the one's
        probability = exp(both[1].largest - both[0].largest) / both[0].total
    if thread_idx.x == 0:
        probabilities[unsafe_offset=row] = probability

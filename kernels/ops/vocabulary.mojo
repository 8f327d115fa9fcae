"""The ops that read the vocabulary: the greedy pick, the probability of one token, all logits.

A CPU looks at the vocabulary's screen first, a GPU reads it whole: the pick and the probability are an op for either.
"""

import extensibility
from extensibility import InputTensor, OutputTensor, _MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv

from ..cpu.tile import PANEL
from ..data import Data, data, require, require_between, require_contiguous, require_size
from ..greedy.cpu import greedy, logits, token_probability
from ..greedy.gpu.launch import MAX_DEPTH, VocabularyOnGPU
from ..greedy.gpu.step import Rows
from ..greedy.said import Grammar
from ..greedy.screen import GROUP, ROW_BYTES, screen_rows
from ..greedy.search import Vocabulary
from .weights import require_aligned, require_chunks, require_matrix, require_packed


@extensibility.register("whisper_screened_greedy")
struct ScreenedGreedy:
    """Picks each row's most probable token among those that its rules allow, and the log of its probability among them.

    hidden (B, T, D), at (B) the position of each row that counts, vocabulary (V, D), suppress_mask (V), rules (B, 4),
    rotation and screen of the vocabulary -> tokens (B), log probabilities (B). On a CPU. A row of rules is:

        suppress_bits     no token v where suppress_mask[v] & suppress_bits != 0; 128 stands for the rule below instead
        text_begin        of the tokens in front of timestamp_begin only those from here on
        timestamps_from   of the timestamps only those from here on ...
        timestamps_to     ... and in front of here

    The rule of bit 128: if the timestamps together are more probable than any text token, no text token is allowed.
    """

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, //, target: StaticString, timestamp_begin: Int
    ](
        picked: OutputTensor[dtype=DType.int32, rank=1, ...],
        log_probs: OutputTensor[dtype=DType.float32, rank=1, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=weight_type, rank=2, ...],
        suppress_mask: InputTensor[dtype=DType.uint8, rank=1, ...],
        rules: InputTensor[dtype=DType.int32, rank=2, ...],
        rotation: InputTensor[dtype=DType.float16, rank=3, ...],
        screen: InputTensor[dtype=DType.int8, rank=3, ...],
    ) raises:
        comptime assert target == "cpu", "a screen is for CPUs"
        var tokens = suppress_mask.dim_size(0)
        _check_rows[target](hidden, at, vocabulary, tokens, 0, "greedy")
        _check_rules[timestamp_begin](picked, log_probs, hidden, suppress_mask, rules)
        var screened = screened_vocabulary(vocabulary, rotation, screen, tokens, hidden.dim_size(2), "greedy")
        for b in range(hidden.dim_size(0)):
            require_between(Int(rules[b, 0]), 0, 255, "greedy", "rules", b, 0)
        greedy(
            data(picked),
            data(log_probs),
            data(hidden),
            data(at),
            screened,
            data(suppress_mask),
            data(rules),
            hidden.dim_size(0),
            hidden.dim_size(1),
            hidden.dim_size(2),
            timestamp_begin,
        )


@extensibility.register("whisper_greedy")
struct Greedy:
    """Picks as `whisper_screened_greedy`, of the whole vocabulary, on a GPU.

    Its host cannot see `at` and the rules. A row whose rules leave no token, or whose logits are not finite, has a log
    probability of NaN, where a CPU raises.
    """

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString, timestamp_begin: Int
    ](
        picked: OutputTensor[dtype=DType.int32, rank=1, ...],
        log_probs: OutputTensor[dtype=DType.float32, rank=1, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=dtype, rank=2, ...],
        suppress_mask: InputTensor[dtype=DType.uint8, rank=1, ...],
        rules: InputTensor[dtype=DType.int32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target != "cpu", "a CPU picks with whisper_screened_greedy"
        var tokens = suppress_mask.dim_size(0)
        _check_rows[target](hidden, at, vocabulary, tokens, 0, "greedy")
        _check_rules[timestamp_begin](picked, log_probs, hidden, suppress_mask, rules)
        if hidden.dim_size(0) > 0:
            require_aligned(data(rules), "greedy", "rules")
        _on_gpu(hidden, at, vocabulary, tokens).enqueue_pick(
            data(picked), data(log_probs), data(suppress_mask), data(rules), timestamp_begin, ctx
        )


@extensibility.register("whisper_greedy_step")
struct GreedyStep:
    """Picks as `whisper_greedy`, and makes of what a step was told what the next one is to be told, on a GPU.

    hidden (B, T, D), at (B) the position of each row that counts, vocabulary (V, D), suppress_mask (V); in place tokens (B) the
    newest of each row, past (B) the tokens in its KV cache, without and with the `at` + 1 of this step, rules (B, 4), said (B, 3) as
    `whisper_decoder` has them, picked (B, S) and log probabilities (B, S): of each row one column, (past + at) modulo S. A row whose
    newest token is the end of text has ended, and says it again with a log probability of 0.
    """

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString, end: Int, timestamp_begin: Int
    ](
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=dtype, rank=2, ...],
        suppress_mask: InputTensor[dtype=DType.uint8, rank=1, ...],
        tokens: _MutableInputTensor[dtype=DType.int32, rank=1, ...],
        past: _MutableInputTensor[dtype=DType.int32, rank=1, ...],
        rules: _MutableInputTensor[dtype=DType.int32, rank=2, ...],
        said: _MutableInputTensor[dtype=DType.int32, rank=2, ...],
        picked: _MutableInputTensor[dtype=DType.int32, rank=2, ...],
        log_probs: _MutableInputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target != "cpu", "a CPU goes on by itself in whisper_decoder"
        comptime op: StaticString = "greedy_step"
        var count = suppress_mask.dim_size(0)
        var batch = hidden.dim_size(0)
        var steps = picked.dim_size(1)
        _check_rows[target](hidden, at, vocabulary, count, 0, op)
        comptime assert timestamp_begin >= 0, "timestamp_begin must not be negative"
        require_size(tokens.dim_size(0), batch, op, "B of the tokens")
        require_size(past.dim_size(0), batch, op, "B of past")
        require_size(rules.dim_size(0), batch, op, "B of the rules")
        require_size(rules.dim_size(1), 4, op, "the number of rules")
        require_size(said.dim_size(0), batch, op, "B of said")
        require_size(said.dim_size(1), 3, op, "the width of said")
        require_size(picked.dim_size(0), batch, op, "B of what is picked")
        require_size(log_probs.dim_size(0), batch, op, "B of the log probabilities")
        require_size(log_probs.dim_size(1), steps, op, "S of the log probabilities")
        require(steps > 0 or batch == 0, op, "S must be positive")
        require_contiguous(suppress_mask, op, "suppress_mask")
        if batch > 0:
            require_aligned(data(rules), op, "rules")
        _on_gpu(hidden, at, vocabulary, count).enqueue_step(
            Rows(data(tokens), data(past), data(rules), data(said)),
            data(picked),
            data(log_probs),
            steps,
            data(suppress_mask),
            Grammar(Int32(end), Int32(timestamp_begin), Int32(count)),
            ctx,
        )


@extensibility.register("whisper_screened_token_probability")
struct ScreenedTokenProbability:
    """Computes the probability of one token among all V, without rules, on a CPU: hidden (B, T, D), at (B) the position
    of each row that counts or -1 for none, vocabulary (V, D), its rotation and screen -> (B), NaN where there is none.
    """

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, //, target: StaticString, n_vocab: Int, token: Int
    ](
        output: OutputTensor[dtype=DType.float32, rank=1, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=weight_type, rank=2, ...],
        rotation: InputTensor[dtype=DType.float16, rank=3, ...],
        screen: InputTensor[dtype=DType.int8, rank=3, ...],
    ) raises:
        comptime assert target == "cpu", "a screen is for CPUs"
        comptime assert 0 <= token < n_vocab, "the token must be in the vocabulary"
        _check_rows[target](hidden, at, vocabulary, n_vocab, -1, "token_probability")
        require_size(output.dim_size(0), hidden.dim_size(0), "token_probability", "B of the output")
        var screened = screened_vocabulary(
            vocabulary, rotation, screen, n_vocab, hidden.dim_size(2), "token_probability"
        )
        token_probability(
            data(output),
            data(hidden),
            data(at),
            screened,
            hidden.dim_size(0),
            hidden.dim_size(1),
            hidden.dim_size(2),
            token,
        )


@extensibility.register("whisper_token_probability")
struct TokenProbability:
    """Computes as `whisper_screened_token_probability`, from the whole vocabulary, on a GPU."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString, n_vocab: Int, token: Int
    ](
        output: OutputTensor[dtype=DType.float32, rank=1, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target != "cpu", "a CPU computes it with whisper_screened_token_probability"
        comptime assert 0 <= token < n_vocab, "the token must be in the vocabulary"
        _check_rows[target](hidden, at, vocabulary, n_vocab, -1, "token_probability")
        require_size(output.dim_size(0), hidden.dim_size(0), "token_probability", "B of the output")
        _on_gpu(hidden, at, vocabulary, n_vocab).enqueue_probability(data(output), token, ctx)


@extensibility.register("whisper_logits")
struct Logits:
    """Computes the logits of all V tokens: hidden (B, T, D), at (B), vocabulary (V, D) -> (B, V)."""

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, //, target: StaticString
    ](
        output: OutputTensor[dtype=DType.float32, rank=2, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=weight_type, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        _check_rows[target](hidden, at, vocabulary, output.dim_size(1), 0, "logits")
        require_size(output.dim_size(0), hidden.dim_size(0), "logits", "B of the output")
        comptime if target == "cpu":
            logits(
                data(output),
                data(hidden),
                data(at),
                data(vocabulary),
                hidden.dim_size(0),
                hidden.dim_size(1),
                hidden.dim_size(2),
                output.dim_size(1),
            )
        else:
            _on_gpu(hidden, at, vocabulary, output.dim_size(1)).enqueue_logits(data(output), ctx)


def _on_gpu[
    dtype: DType, //
](
    hidden: InputTensor[dtype=dtype, rank=3, ...],
    at: InputTensor[dtype=DType.int32, rank=1, ...],
    vocabulary: InputTensor,
    tokens: Int,
) -> VocabularyOnGPU[dtype]:
    return VocabularyOnGPU(
        data(hidden),
        data(at),
        rebind[Data[dtype]](data(vocabulary)),
        hidden.dim_size(0),
        hidden.dim_size(1),
        hidden.dim_size(2),
        tokens,
    )


def _check_rows[
    dtype: DType, //, target: StaticString
](
    hidden: InputTensor[dtype=dtype, rank=3, ...],
    at: InputTensor[dtype=DType.int32, rank=1, ...],
    vocabulary: InputTensor,
    tokens: Int,
    lowest: Int,
    op: StaticString,
) raises:
    check_vocabulary[target](vocabulary, hidden.dim_size(2), tokens, op)
    require_size(at.dim_size(0), hidden.dim_size(0), op, "B of at")
    require_contiguous(hidden, op, "hidden")
    comptime if target == "cpu":
        for b in range(at.dim_size(0)):
            require_between(Int(at[b]), lowest, hidden.dim_size(1) - 1, op, "at", b)
    else:
        comptime assert vocabulary.dtype == dtype, "on a GPU the vocabulary has the dtype of the hidden states"
        require(hidden.dim_size(1) > 0 or hidden.dim_size(0) == 0, op, "T must be positive")
        require(
            hidden.dim_size(2) <= MAX_DEPTH, op, String("D is ", hidden.dim_size(2), ", on a GPU at most ", MAX_DEPTH)
        )
        if hidden.size() > 0:  # what is empty may have any address
            require_aligned(data(hidden), op, "hidden")


def _check_rules[
    timestamp_begin: Int
](
    picked: OutputTensor[dtype=DType.int32, rank=1, ...],
    log_probs: OutputTensor[dtype=DType.float32, rank=1, ...],
    hidden: InputTensor,
    suppress_mask: InputTensor[dtype=DType.uint8, rank=1, ...],
    rules: InputTensor[dtype=DType.int32, rank=2, ...],
) raises:
    comptime assert timestamp_begin >= 0, "timestamp_begin must not be negative"
    var batch = hidden.dim_size(0)
    require_size(rules.dim_size(0), batch, "greedy", "B of the rules")
    require_size(rules.dim_size(1), 4, "greedy", "the number of rules")
    require_size(picked.dim_size(0), batch, "greedy", "B of the tokens")
    require_size(log_probs.dim_size(0), batch, "greedy", "B of the log probabilities")
    require_contiguous(suppress_mask, "greedy", "suppress_mask")
    require_contiguous(rules, "greedy", "rules")


def screened_vocabulary[
    dtype: DType, //
](
    vocabulary: InputTensor[dtype=dtype, rank=2, ...],
    rotation: InputTensor[dtype=DType.float16, rank=3, ...],
    screen: InputTensor[dtype=DType.int8, rank=3, ...],
    tokens: Int,
    depth: Int,
    op: StaticString,
) raises -> Vocabulary[dtype]:
    """The vocabulary (V, D) and its screen, once rotation and screen are known to be those of some such vocabulary."""
    var groups = (rotation.dim_size(0) * PANEL - 1) // GROUP
    require(
        groups * GROUP >= depth,
        op,
        String(
            "the rotation has ", groups, " groups of ", GROUP, ", D is ", depth, ": expected at least as many columns"
        ),
    )
    require_packed(rotation, groups * GROUP + 1, depth, op)
    require_size(screen.dim_size(0), ceildiv(tokens, PANEL), op, "the number of panels of the screen")
    require_size(screen.dim_size(1), screen_rows(groups), op, "the number of rows of a panel of the screen")
    require_size(screen.dim_size(2), ROW_BYTES, op, "the width of a panel of the screen")
    require_contiguous(screen, op, "the screen")
    return Vocabulary(data(vocabulary), data(rotation), data(screen), groups, tokens)


def check_vocabulary[target: StaticString](vocabulary: InputTensor, depth: Int, tokens: Int, op: StaticString) raises:
    """Raises unless the vocabulary holds `tokens` rows of `depth` elements, on a GPU such as it can read."""
    require(depth > 0 and tokens > 0, op, "D and V must be positive")
    comptime if target == "cpu":
        require_size(vocabulary.dim_size(0), tokens, op, "V of the vocabulary")
        require_size(vocabulary.dim_size(1), depth, op, "D of the vocabulary")
        require_contiguous(vocabulary, op, "vocabulary")
    else:
        require_chunks[vocabulary.dtype](depth, op, "D")
        require_matrix(vocabulary, tokens, depth, op)

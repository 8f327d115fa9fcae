"""The ops that read the vocabulary: the greedy pick, the probability of one token, all logits."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from ..data import Data, data, require, require_between, require_contiguous, require_size
from ..greedy.cpu import greedy, logits, token_probability
from ..greedy.gpu.launch import MAX_DEPTH, VocabularyOnGPU
from .weights import require_aligned, require_chunks, require_matrix, require_packed


@extensibility.register("whisper_greedy")
struct Greedy:
    """Picks each row's most probable token among those that its rules allow, and the log of its probability among them.

    hidden (B, T, D), at (B) the position of each row that counts, packed vocabulary, suppress_mask (V),
    rules (B, 4) -> tokens (B), log probabilities (B). A row of rules is:

        suppress_bits     no token v where suppress_mask[v] & suppress_bits != 0; 128 stands for the rule below instead
        text_begin        of the tokens in front of timestamp_begin only those from here on
        timestamps_from   of the timestamps only those from here on ...
        timestamps_to     ... and in front of here

    The rule of bit 128: if the timestamps together are more probable than any text token, no text token is allowed.

    On a GPU the host cannot see `at` and the rules. There a row whose rules leave no token, or whose logits are not finite,
    has a log probability of NaN, where a CPU raises.
    """

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, weight_rank: Int, //, target: StaticString, timestamp_begin: Int
    ](
        picked: OutputTensor[dtype=DType.int32, rank=1, ...],
        log_probs: OutputTensor[dtype=DType.float32, rank=1, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=weight_type, rank=weight_rank, ...],
        suppress_mask: InputTensor[dtype=DType.uint8, rank=1, ...],
        rules: InputTensor[dtype=DType.int32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert timestamp_begin >= 0, "timestamp_begin must not be negative"
        var batch = hidden.dim_size(0)
        var tokens = suppress_mask.dim_size(0)
        _check_rows[target](hidden, at, vocabulary, tokens, 0, "greedy")
        require_size(rules.dim_size(0), batch, "greedy", "B of the rules")
        require_size(rules.dim_size(1), 4, "greedy", "the number of rules")
        require_size(picked.dim_size(0), batch, "greedy", "B of the tokens")
        require_size(log_probs.dim_size(0), batch, "greedy", "B of the log probabilities")
        require_contiguous(suppress_mask, "greedy", "suppress_mask")
        require_contiguous(rules, "greedy", "rules")
        comptime if target == "cpu":
            for b in range(batch):
                require_between(Int(rules[b, 0]), 0, 255, "greedy", "rules", b, 0)
            greedy(
                data(picked),
                data(log_probs),
                data(hidden),
                data(at),
                data(vocabulary),
                data(suppress_mask),
                data(rules),
                batch,
                hidden.dim_size(1),
                hidden.dim_size(2),
                tokens,
                timestamp_begin,
            )
        else:
            if batch > 0:
                require_aligned(data(rules), "greedy", "rules")
            _on_gpu(hidden, at, vocabulary, tokens).enqueue_pick(
                data(picked), data(log_probs), data(suppress_mask), data(rules), timestamp_begin, ctx
            )


@extensibility.register("whisper_token_probability")
struct TokenProbability:
    """Computes the probability of one token among all V, without rules: hidden (B, T, D), at (B) the position of each
    row that counts or -1 for none, packed vocabulary -> (B), NaN where there is none."""

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, weight_rank: Int, //, target: StaticString, n_vocab: Int, token: Int
    ](
        output: OutputTensor[dtype=DType.float32, rank=1, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=weight_type, rank=weight_rank, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert 0 <= token < n_vocab, "the token must be in the vocabulary"
        _check_rows[target](hidden, at, vocabulary, n_vocab, -1, "token_probability")
        require_size(output.dim_size(0), hidden.dim_size(0), "token_probability", "B of the output")
        comptime if target == "cpu":
            token_probability(
                data(output),
                data(hidden),
                data(at),
                data(vocabulary),
                hidden.dim_size(0),
                hidden.dim_size(1),
                hidden.dim_size(2),
                n_vocab,
                token,
            )
        else:
            _on_gpu(hidden, at, vocabulary, n_vocab).enqueue_probability(data(output), token, ctx)


@extensibility.register("whisper_logits")
struct Logits:
    """Computes the logits of all V tokens: hidden (B, T, D), at (B), packed vocabulary -> (B, V)."""

    @staticmethod
    def execute[
        dtype: DType, weight_type: DType, weight_rank: Int, //, target: StaticString
    ](
        output: OutputTensor[dtype=DType.float32, rank=2, ...],
        hidden: InputTensor[dtype=dtype, rank=3, ...],
        at: InputTensor[dtype=DType.int32, rank=1, ...],
        vocabulary: InputTensor[dtype=weight_type, rank=weight_rank, ...],
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


def check_vocabulary[target: StaticString](vocabulary: InputTensor, depth: Int, tokens: Int, op: StaticString) raises:
    """Raises unless the vocabulary holds `tokens` rows of `depth` elements, packed on a CPU, plain on a GPU."""
    require(depth > 0 and tokens > 0, op, "D and V must be positive")
    comptime if target == "cpu":
        require_packed(vocabulary, tokens, depth, op)
    else:
        require_chunks[vocabulary.dtype](depth, op, "D")
        require_matrix(vocabulary, tokens, depth, op)

"""What follows the last state: logits, probabilities and the pick, `kernels/ops/vocabulary.mojo`."""

from collections.abc import Sequence

from max.dtype import DType
from max.graph import BufferValue, TensorValue

from max_whisper.ops.call import call, call_in_place, typed


def greedy(
    hidden: TensorValue,
    at: TensorValue,
    vocabulary: TensorValue,
    suppress_mask: TensorValue,
    rules: TensorValue,
    rotation: TensorValue | None = None,
    screen: TensorValue | None = None,
    *,
    timestamp_begin: int,
) -> tuple[TensorValue, TensorValue]:
    """Picks each row's most probable token among those that its rules allow; the logits stay in the kernel.

    Args:
        hidden: (B, T, D), the decoder's last states.
        at: (B), int32, which of the T states of a row is used.
        vocabulary: (V, D).
        suppress_mask: (V), uint8, for each token the bits that suppress it.
        rules: (B, 4), int32: suppress_bits (128: the timestamps win if all of them together are more probable than any
            text token), text_begin, timestamps_from, timestamps_to; see `kernels/ops/`.
        rotation: Of the vocabulary, made by `screen.pack_rotation`; for a CPU, which reads the vocabulary where it must.
        screen: Of the vocabulary, made by `screen.pack_screen`; for a CPU.
        timestamp_begin: The first timestamp token.

    Returns:
        tokens (B), int32, and the logs of their probabilities among the allowed tokens (B), float32, on a CPU to 2e-3. Of
        equally probable tokens the first is picked.
    """
    name, screened = _screened("greedy", hidden, rotation, screen)
    tokens, log_probs = call(
        name,
        [hidden, at, vocabulary, suppress_mask, rules, *screened],
        [typed(DType.int32, hidden, [hidden.shape[0]]), typed(DType.float32, hidden, [hidden.shape[0]])],
        timestamp_begin=timestamp_begin,
    )
    return tokens, log_probs


def greedy_step(
    hidden: TensorValue,
    at: TensorValue,
    vocabulary: TensorValue,
    suppress_mask: TensorValue,
    rows: Sequence[BufferValue],
    picks: tuple[BufferValue, BufferValue],
    *,
    end: int,
    timestamp_begin: int,
) -> None:
    """Picks as `greedy`, on a GPU, and makes of what a step was told what the next one is to be told: all in place.

    Args:
        hidden: (B, T, D), the decoder's last states.
        at: (B), int32, which of the T states of a row is used.
        vocabulary: (V, D).
        suppress_mask: (V), uint8, for each token the bits that suppress it.
        rows: tokens (B), the newest of each row, not read; past (B), how many tokens each row's cache held before this
            step, afterwards `at` + 1 more; rules (B, 4), see `greedy`; said (B, 3), see `decoder`. All int32.
        picks: tokens (B, S), int32, and log probabilities (B, S), float32: of each row column (past + at) modulo S is
            written. A row whose newest token is the end of text says it again, with a log probability of 0.
        end: The end of text.
        timestamp_begin: The first timestamp.
    """
    call_in_place(
        "whisper_greedy_step",
        [hidden, at, vocabulary, suppress_mask, *rows, *picks],
        end=end,
        timestamp_begin=timestamp_begin,
    )


def token_probability(
    hidden: TensorValue,
    at: TensorValue,
    vocabulary: TensorValue,
    rotation: TensorValue | None = None,
    screen: TensorValue | None = None,
    *,
    n_vocab: int,
    token: int,
) -> TensorValue:
    """Computes the probability of one token among all, without rules; of <|nospeech|>: that nobody speaks.

    Args:
        hidden: (B, T, D), the decoder's last states.
        at: (B), int32, which of the T states of a row is used; -1 for none.
        vocabulary: (V, D).
        rotation: As for `greedy`.
        screen: As for `greedy`.
        n_vocab: V.
        token: The token.

    Returns:
        (B), float32, on a CPU to 0.2 %; NaN for rows without a state. If no row has one, nothing is read.
    """
    name, screened = _screened("token_probability", hidden, rotation, screen)
    out = typed(DType.float32, hidden, [hidden.shape[0]])
    return call(name, [hidden, at, vocabulary, *screened], [out], n_vocab=n_vocab, token=token)[0]


def logits(hidden: TensorValue, at: TensorValue, vocabulary: TensorValue, *, n_vocab: int) -> TensorValue:
    """Computes the logits of all tokens: to detect a language, and for tests.

    Args:
        hidden: (B, T, D), the decoder's last states.
        at: (B), int32, which of the T states of a row is used.
        vocabulary: (V, D).
        n_vocab: V.

    Returns:
        (B, V), float32.
    """
    out = typed(DType.float32, hidden, [hidden.shape[0], n_vocab])
    return call("whisper_logits", [hidden, at, vocabulary], [out])[0]


def _screened(
    op: str, hidden: TensorValue, rotation: TensorValue | None, screen: TensorValue | None
) -> tuple[str, list[TensorValue]]:
    """The op's name on the device of the hidden states, and the screen that it takes there."""
    if hidden.device.is_gpu():
        return f"whisper_{op}", []
    if rotation is None or screen is None:
        raise ValueError(f"{op}: on a CPU it takes the vocabulary's rotation and screen, see max_whisper.screen")
    return f"whisper_screened_{op}", [rotation, screen]

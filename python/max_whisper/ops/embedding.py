"""Tokens and positions, `kernels/ops/embedding.mojo`."""

from max.graph import TensorValue

from max_whisper.ops.call import call, like


def embed(
    tokens: TensorValue, past: TensorValue, vocabulary: TensorValue, positions: TensorValue, *, n_vocab: int
) -> TensorValue:
    """Token embedding plus position: E[tokens[b, t]] + P[past[b] + t].

    Args:
        tokens: (B, T), int32.
        past: (B), int32, how many tokens row b's cache holds already.
        vocabulary: E (V, D).
        positions: P (n_ctx, D).
        n_vocab: V.

    Returns:
        (B, T, D), the dtype of the positions.
    """
    out = like(positions, [*tokens.shape, positions.shape[1]])
    return call("whisper_embed", [tokens, past, vocabulary, positions], [out], n_vocab=n_vocab)[0]

"""A whole Whisper in float64 NumPy, from a checkpoint's own tensors: what a model's graphs are held against."""

from collections.abc import Mapping

import numpy as np

from max_whisper.checkpoint import Checkpoint
from max_whisper.config import HEAD_DIM
from max_whisper.mel import mel_filters
from max_whisper.packing import pack_filters
from tests.kernels import references
from tests.kernels.references import gelu, layer_norm, log_softmax

Tensors = Mapping[str, np.ndarray]


def at(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin with `prefix` and a dot, without it."""
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def norm(x: np.ndarray, w: Tensors) -> np.ndarray:
    return layer_norm(x, w["weight"], w["bias"])


def linear(x: np.ndarray, w: Tensors) -> np.ndarray:
    return x @ w["weight"].T + w.get("bias", 0)


def convolution(x: np.ndarray, w: Tensors, stride: int) -> np.ndarray:
    """Three taps over (B, T, C), zeros beyond both ends, GELU."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    taps = [padded[:, j : padded.shape[1] - 2 + j : stride] @ w["weight"][:, :, j].T for j in range(3)]
    return gelu(sum(taps) + w["bias"])


def attention(x: np.ndarray, source: np.ndarray, w: Tensors, *, causal: bool = False) -> np.ndarray:
    """Each position of x looks at those of `source`, if causal at none behind its own."""
    q, k, v = (
        linear(rows, at(w, name)).reshape(*rows.shape[:2], -1, HEAD_DIM).swapaxes(1, 2)
        for rows, name in ((x, "query"), (source, "key"), (source, "value"))
    )
    scores = q @ k.swapaxes(2, 3) / np.sqrt(HEAD_DIM)
    if causal:
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    return linear((np.exp(log_softmax(scores)) @ v).swapaxes(1, 2).reshape(x.shape), at(w, "out"))


def mlp(x: np.ndarray, w: Tensors) -> np.ndarray:
    return linear(gelu(linear(norm(x, at(w, "mlp_ln")), at(w, "mlp.0"))), at(w, "mlp.2"))


class WholeModel:
    """A model without caches: every step computes all positions again.

    Args:
        checkpoint: Its weights.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.dims = checkpoint.dims
        self.tensors = {name: np.asarray(tensor, np.float64) for name, tensor in checkpoint.tensors.items()}

    def log_mel_spectrogram(self, samples: np.ndarray, padding: int = 0) -> np.ndarray:
        """(B, n_samples) -> (B, n_mels, (n_samples + padding) // 160)."""
        filters = pack_filters(mel_filters(self.dims.n_mels))
        return references.log_mel(samples.astype(np.float64), np.array([padding]), *filters)

    def encode(self, mel: np.ndarray) -> np.ndarray:
        """(B, n_mels, 2 * n_audio_ctx) -> states (B, n_audio_ctx, d)."""
        w = at(self.tensors, "encoder")
        x = convolution(mel.swapaxes(1, 2), at(w, "conv1"), 1)
        x = convolution(x, at(w, "conv2"), 2) + w["positional_embedding"]
        for layer in range(self.dims.n_audio_layer):
            block = at(w, f"blocks.{layer}")
            normed = norm(x, at(block, "attn_ln"))
            x = x + attention(normed, normed, at(block, "attn"))
            x = x + mlp(x, block)
        return norm(x, at(w, "ln_post"))

    def logits(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """States of the audio, tokens (B, T) -> what follows each of them, (B, T, n_vocab)."""
        w = at(self.tensors, "decoder")
        x = w["token_embedding.weight"][tokens] + w["positional_embedding"][: tokens.shape[1]]
        for layer in range(self.dims.n_text_layer):
            block = at(w, f"blocks.{layer}")
            normed = norm(x, at(block, "attn_ln"))
            x = x + attention(normed, normed, at(block, "attn"), causal=True)
            x = x + attention(norm(x, at(block, "cross_attn_ln")), states, at(block, "cross_attn"))
            x = x + mlp(x, block)
        return norm(x, at(w, "ln")) @ w["token_embedding.weight"].T

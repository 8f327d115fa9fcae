"""Every op of the package, with its shapes. An op checks its arguments on the host and hands addresses and sizes to a body
named after the algorithm; which body runs where is decided in its file here.

    whisper_log_mel             samples (B, n_samples), padding (1), filters          -> (B, n_mels, frames)
    whisper_conv1d              x (B, T, C), weight, bias (N)                         -> gelu(conv(x)) (B, T_out, N)
    whisper_conv1d_positions    ... and positions (T_out, N)                          -> gelu(conv(x)) + p
    whisper_linear              x (..., K), weight, bias (N)                          -> f(x W^T + b) (..., N)
    whisper_linear_residual     ... and residual (..., N)                             -> f(x W^T + b) + r
    whisper_norm_linear         x (..., K), folded weight, bias, sums (N), GPU only   -> f(norm(x) W^T + b) (..., N)
    whisper_layer_norm          x (..., D), gamma (D), beta (D)                       -> (..., D)
    whisper_add_layer_norm      ... and residual (..., D)                             -> x + r, its layer norm
    whisper_pack_heads          rows (B, S, N)                                        -> keys, values; also narrow ones
    whisper_attention           queries (B, T, N), keys, values                       -> (B, T, H*64)
    whisper_self_attention      rows (B, S, 3*H*64), GPU only                         -> (B, S, H*64)
    whisper_packed_self_attention   ... and keys, values of 16 bits, CPU only          -> (B, S, H*64)
    whisper_cached_attention    rows (B, T, 3*H*64), past (B), cache in place         -> (B, T, H*64)
    whisper_encoder_block       x (B, S, d), packed weights, CPU only                 -> (B, S, d)
    whisper_decoder             tokens (B, T), rules, caches, weights, CPU only       -> tokens (B, S), log probs, states
    whisper_audio_heads         states (B, S, d), packed weights (L, ...), CPU only   -> keys, values (L, B, H, ...)
    whisper_embed               tokens (B, T), past (B), vocabulary, positions        -> (B, T, D)
    whisper_screened_greedy     hidden (B, T, D), at (B), vocabulary, rules, screen, CPU only   -> tokens (B), log probs (B)
    whisper_greedy              the same without a screen, GPU only
    whisper_greedy_step         the same; tokens, past, rules (B, ...) in place become the next step's, GPU only
    whisper_screened_token_probability    hidden (B, T, D), at (B), vocabulary, screen, CPU only    -> (B)
    whisper_token_probability   the same without a screen, GPU only
    whisper_logits              hidden (B, T, D), at (B), vocabulary                  -> (B, V)

Batch is always the first dimension. Weights are laid out once (`max_whisper.packing`): on CPUs in panels of 16 columns, see
`cpu/tile.mojo`; on GPUs a weight is a plain (N, K) matrix. Keys and values are laid out by `whisper_pack_heads` and
`whisper_audio_heads`.
The vocabulary is plain everywhere; its screen is described in `greedy/screen.mojo`.
"""

from .attention import AttentionOp, CachedAttention, PackedSelfAttention, PackHeads, SelfAttention
from .conv1d import Conv1d, Conv1dPositions
from .decoder import AudioHeads, DecoderOp
from .embedding import Embed
from .encoder import EncoderBlockOp
from .layer_norm import AddLayerNorm, LayerNorm
from .linear import Linear, LinearResidual, NormLinear
from .log_mel import LogMel, log_mel_shape
from .vocabulary import Greedy, GreedyStep, Logits, ScreenedGreedy, ScreenedTokenProbability, TokenProbability

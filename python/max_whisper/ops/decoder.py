"""The decoder as one op, and what it hears, `kernels/ops/decoder.mojo`."""

from collections.abc import Sequence

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, Dim, DimLike, TensorType, TensorValue

from max_whisper import packing
from max_whisper.config import EPSILON
from max_whisper.config import HEAD_DIM as HEAD
from max_whisper.ops.attention import keys_shape
from max_whisper.ops.call import call, call_in_place, like


def audio_heads(
    states: TensorValue, weight: TensorValue, bias: TensorValue, *, heads: int, dtype: DType
) -> tuple[TensorValue, TensorValue]:
    """Keys and values of the audio for all blocks of a decoder on a CPU.

    Args:
        states: (B, S, H * 64) float32.
        weight: Of L layers, (2 * H * 64, H * 64) packed by `packing.pack_linear`, one behind the other.
        bias: (L, 2 * H * 64).
        heads: H.
        dtype: Element type of keys and values.

    Returns:
        keys, see `keys_shape`, and values (B, H, S, 64), in int8 `packing.bytes_shapes`, of each block: (L, B, ...).
    """
    batch, length, _ = states.shape
    types = [
        TensorType(dtype, [weight.shape[0], *shape], device=states.device)
        for shape in audio_shapes(batch, heads, length, dtype, states.device)
    ]
    keys, values = call("whisper_audio_heads", [states, weight, bias], types)
    return keys, values


def audio_shapes(
    batch: DimLike, heads: int, length: int | Dim, dtype: DType, device: DeviceRef
) -> tuple[list[DimLike], list[DimLike]]:
    """Shapes of one block's keys and values of the audio."""
    if device.is_cpu() and dtype == DType.int8:
        return packing.bytes_shapes(batch, heads, length)
    return keys_shape(batch, heads, length, device), [batch, heads, length, HEAD]


DECODER_BLOCK = (
    *("attn_ln", "attn.qkv", "attn.out"),
    *("cross_attn_ln", "cross_attn.query", "cross_attn.out"),
    *("mlp_ln", "mlp.0", "mlp.2"),
)
"""What a block of the decoder has weights and biases for, in the order of use."""


def decoder(
    rows: Sequence[TensorValue],
    picks: tuple[BufferValue, BufferValue],
    cache: tuple[BufferValue, BufferValue],
    audio: tuple[TensorValue, TensorValue],
    embeddings: Sequence[TensorValue],
    blocks: Sequence[TensorValue],
    *,
    audio_length: int,
    end: int,
    timestamp_begin: int,
    epsilon: float = EPSILON,
) -> TensorValue:
    """The whole decoder on a CPU: takes tokens in, picks one for each row, and goes on with what it picked.

    The rules of the first pick are given, those of later ones follow: see `rules.TokenRules`. The run ends after S picks,
    or when a row that had not ended picks the end of text.

    Args:
        rows: tokens (B, T); past (B), how many tokens each row's cache holds; last (B), the position of each row's last
            valid token; rules (B, 4), see `greedy`; said (B, 3), the token before the newest that was picked, the newest
            and the newest timestamp, -1 where there is none; all int32; and the suppress_mask (V), uint8. Rows whose
            newest token is the end of text have ended, and pick it again.
        picks: Updated in place: tokens (B, S), int32, -1 behind the last one, and log probabilities (B, S), float32.
        cache: Keys, see `keys_shape`, and values (B', H, C, 64) of the text for each block, (L, B', ...), B' >= B,
            updated in place.
        audio: Keys and values of the audio, made by `audio_heads`, of B' rows.
        embeddings: The vocabulary (V, d), its rotation and screen, the positions (n_ctx, d), gamma and beta of the last
            norm.
        blocks: For each of DECODER_BLOCK gamma and beta (L, d), or weight, packed by `packing.pack_linear`, and bias, of
            all L blocks one behind the other.
        audio_length: S of the audio.
        end: The end of text.
        timestamp_begin: The first timestamp.
        epsilon: Added to the variances.

    Returns:
        The normalised states of the tokens taken in, (B, T, d).
    """
    tokens, positions = rows[0], embeddings[3]
    return call_in_place(
        "whisper_decoder",
        [*rows, *picks, *cache, *audio, *embeddings, *blocks],
        [like(positions, [*tokens.shape, positions.shape[1]])],
        epsilon=epsilon,
        audio_length=audio_length,
        end=end,
        timestamp_begin=timestamp_begin,
    )[0]

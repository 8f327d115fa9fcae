"""The kernels as functions on graph values: call one inside a `max.graph.Graph` whose `custom_extensions` hold KERNELS.

    with Graph("mlp", input_types=[...], custom_extensions=[ops.KERNELS]) as graph:
        x, weight, bias = (value.tensor for value in graph.inputs)
        graph.output(ops.linear(x, weight, bias, gelu=True))

Weights are packed by `max_whisper.packing` for the device that reads them. All tensors of an op are on one device, except
where it says "on the host".
What an op checks and computes stands in the file of the same name in `kernels/ops/`.
"""

from pathlib import Path

from max_whisper.config import HEAD_DIM as HEAD
from max_whisper.ops.attention import attention, cached_attention, keys_shape, pack_heads, self_attention
from max_whisper.ops.conv1d import conv1d
from max_whisper.ops.decoder import DECODER_BLOCK, audio_heads, audio_shapes, decoder
from max_whisper.ops.embedding import embed
from max_whisper.ops.encoder import ENCODER_BLOCK, encoder_block
from max_whisper.ops.layer_norm import add_layer_norm, layer_norm
from max_whisper.ops.linear import linear, norm_linear
from max_whisper.ops.log_mel import log_mel
from max_whisper.ops.vocabulary import greedy, greedy_step, logits, token_probability

__all__ = [
    "DECODER_BLOCK",
    "ENCODER_BLOCK",
    "HEAD",
    "KERNELS",
    "add_layer_norm",
    "attention",
    "audio_heads",
    "audio_shapes",
    "cached_attention",
    "conv1d",
    "decoder",
    "embed",
    "encoder_block",
    "greedy",
    "greedy_step",
    "keys_shape",
    "layer_norm",
    "linear",
    "log_mel",
    "logits",
    "norm_linear",
    "pack_heads",
    "self_attention",
    "token_probability",
]

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
"""The Mojo package with the kernels, as `Graph(custom_extensions=[KERNELS])` takes it."""

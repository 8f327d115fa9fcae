"""The encoder: two convolutions, positions, self-attention blocks, a last layer norm.

mel (B, n_mels, 3000) -> states (B, 1500, d)
"""

from max.dtype import DType
from max.graph import TensorType
from max.graph import ops as max_ops

from max_whisper import ops
from max_whisper.config import ModelDimensions
from max_whisper.graphs.blocks import Weights, encoder_block, layer_norm
from max_whisper.graphs.module import GraphModule


def encoder_graph(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds the graph "encoder": mel (B, n_mels, 2 * n_audio_ctx) -> states (B, n_audio_ctx, n_audio_state).

    Args:
        module: Receives the graph.
        dims: The model's sizes.
        weights: The packed weights.
    """
    mel_type = TensorType(DType.float32, ["batch", dims.n_mels, 2 * dims.n_audio_ctx], device=weights.device)
    with module.graph("encoder", [mel_type]) as graph:
        w = weights.at("encoder")
        mel = graph.inputs[0].tensor
        x = max_ops.cast(max_ops.permute(mel, [0, 2, 1]), weights.dtype)
        x = ops.conv1d(x, w["conv1.weight"], w["conv1.bias"], stride=1)
        x = ops.conv1d(x, w["conv2.weight"], w["conv2.bias"], w["positional_embedding"], stride=2)
        for layer in range(dims.n_audio_layer):
            x = encoder_block(x, w.at(f"blocks.{layer}"), heads=dims.n_audio_head)
        graph.output(layer_norm(x, w.at("ln_post")))

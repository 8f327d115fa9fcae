"""Whisper's graphs, in the order in which audio passes through them."""

from max_whisper.config import ModelDimensions
from max_whisper.graphs.blocks import Weights
from max_whisper.graphs.decoder import cross_attention_graph, decoder_graph, logits_graph, silence_graph
from max_whisper.graphs.encoder import encoder_graph
from max_whisper.graphs.log_mel import log_mel_graph
from max_whisper.graphs.module import GraphModule

__all__ = [
    "build",
    "cross_attention_graph",
    "decoder_graph",
    "encoder_graph",
    "log_mel_graph",
    "logits_graph",
    "silence_graph",
]


def build(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds all graphs of one model to a module."""
    log_mel_graph(module, dims, weights.device)
    encoder_graph(module, dims, weights)
    cross_attention_graph(module, dims, weights)
    decoder_graph(module, dims, weights)
    silence_graph(module, dims, weights)
    logits_graph(module, dims, weights)

"""The decoder: keys and values of the audio once per window, then tokens in, token out.

    states (B, 1500, d) -> per block: keys (B, H, 94, 64, 16), values (B, H, 1500, 64), or bytes  cross_attention_graph
    tokens (B, T) + KV caches -> picked token (B), its log probability (B), no-speech (B)         decoder_graph

One graph serves the prompt (T > 1) and every later step (T = 1): T is a symbolic dimension.
"""

from max.dtype import DType
from max.graph import BufferType, DimLike, TensorType, TensorValue

from max_whisper import ops
from max_whisper.config import ModelDimensions
from max_whisper.graphs.blocks import Weights, decoder_block, layer_norm, linear
from max_whisper.graphs.module import GraphModule
from max_whisper.packing import bytes_shapes


def cross_attention_graph(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds the graph "cross_attention": states (B, n_audio_ctx, d) -> keys and values of the audio, block by block."""
    states_type = TensorType(weights.dtype, ["batch", dims.n_audio_ctx, dims.n_audio_state], device=weights.device)
    with module.graph("cross_attention", [states_type]) as graph:
        states = graph.inputs[0].tensor
        outputs: list[TensorValue] = []
        for layer in range(dims.n_text_layer):
            rows = linear(states, weights.at(f"decoder.blocks.{layer}.cross_attn.kv"))
            outputs += ops.pack_heads(rows, heads=dims.n_text_head, dtype=weights.audio_caches)
        graph.output(*outputs)


def decoder_graph(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds the graph "decoder", with the greedy pick.

    Inputs: tokens (B, T) int32, past (B) int32, last (B) int32: the position whose next token is picked,
    no_speech_at (B) int32: the position that tells whether somebody speaks, -1 to skip, suppress_mask (n_vocab) uint8,
    rules (B, 4) int32: see `ops.greedy`, and the caches, see `cache_types`.

    Outputs: picked token (B) int32, log probability (B) float32, no-speech probability (B) float32, states (B, T, d).
    """
    device = weights.device
    token_types = [
        TensorType(DType.int32, ["batch", "length"], device=device),
        TensorType(DType.int32, ["batch"], device=device),
        TensorType(DType.int32, ["batch"], device=device),
        TensorType(DType.int32, ["batch"], device=device),
        TensorType(DType.uint8, [dims.n_vocab], device=device),
        TensorType(DType.int32, ["batch", 4], device=device),
    ]
    with module.graph("decoder", [*token_types, *cache_types(dims, weights)]) as graph:
        w = weights.at("decoder")
        tokens, past, last, no_speech_at, mask, rules = (value.tensor for value in graph.inputs[:6])
        caches = graph.inputs[6:]
        vocabulary = w["token_embedding.weight"]  # serves as embedding and for logits
        x = ops.embed(tokens, past, vocabulary, w["positional_embedding"], n_vocab=dims.n_vocab)
        for layer in range(dims.n_text_layer):
            keys, values, cross_keys, cross_values = caches[4 * layer : 4 * layer + 4]
            cache, cross = (keys.buffer, values.buffer), (cross_keys.tensor, cross_values.tensor)
            x = decoder_block(x, past, cache, cross, w.at(f"blocks.{layer}"), audio_length=dims.n_audio_ctx)
        states = layer_norm(x, w.at("ln"))
        screen = [w[f"token_embedding.{part}"] for part in ("rotation", "screen")] if device.is_cpu() else []
        silence = ops.token_probability(
            states, no_speech_at, vocabulary, *screen, n_vocab=dims.n_vocab, token=dims.no_speech
        )
        token, log_prob = ops.greedy(
            states, last, vocabulary, mask, rules, *screen, timestamp_begin=dims.timestamp_begin
        )
        graph.output(token, log_prob, silence, states)


def logits_graph(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds the graph "logits": states (B, T, d), at (B) int32 -> logits (B, n_vocab) float32, for detecting a language."""
    states_type = TensorType(weights.dtype, ["batch", "length", dims.n_text_state], device=weights.device)
    at_type = TensorType(DType.int32, ["batch"], device=weights.device)
    with module.graph("logits", [states_type, at_type]) as graph:
        states, at = (value.tensor for value in graph.inputs)
        vocabulary = weights["decoder.token_embedding.weight"]
        graph.output(ops.logits(states, at, vocabulary, n_vocab=dims.n_vocab))


def cache_types(dims: ModelDimensions, weights: Weights) -> list[BufferType | TensorType]:
    """Types of the caches: per block the keys and values of the text, updated in place, and those of the audio."""
    heads, dtype, device = dims.n_text_head, weights.caches, weights.device

    def shapes(length: int) -> list[list[DimLike]]:
        return [ops.keys_shape("batch", heads, length, device), ["batch", heads, length, ops.HEAD]]

    audio, audio_shapes = weights.audio_caches, shapes(dims.n_audio_ctx)
    if device.is_cpu() and audio == DType.int8:
        audio_shapes = bytes_shapes("batch", heads, dims.n_audio_ctx)
    types: list[BufferType | TensorType] = []
    for _ in range(dims.n_text_layer):
        types += [BufferType(dtype, shape, device=device) for shape in shapes(dims.n_text_ctx)]
        types += [TensorType(audio, shape, device=device) for shape in audio_shapes]
    return types

"""The decoder: keys and values of the audio once per window, then tokens in, tokens out.

                       states (B, 1500, d) -> keys and values of the audio, for every block         cross_attention_graph
    on a CPU           tokens (B, T) + KV caches -> up to S tokens for each row                     decoder_graph
    on a GPU           tokens (B, T) + KV caches -> one token for each row, and the next step's     decoder_graph

One graph serves the prompt (T > 1) and every later step (T = 1): T is a symbolic dimension. On a CPU all blocks are one op,
whose caches and weights lie one behind the other; a GPU runs the kernels of each block.
"""

from collections.abc import Sequence
from typing import Any

from max.dtype import DType
from max.graph import BufferType, DimLike, TensorType, TensorValue, Value

from max_whisper import ops
from max_whisper.config import ModelDimensions
from max_whisper.graphs.blocks import Weights, decoder_block, layer_norm, linear
from max_whisper.graphs.module import GraphModule


def cross_attention_graph(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds the graph "cross_attention": states (B, n_audio_ctx, d) -> keys and values of the audio.

    On a CPU (L, B, ...), see `ops.audio_heads`; on a GPU block by block.
    """
    states_type = TensorType(weights.dtype, ["batch", dims.n_audio_ctx, dims.n_audio_state], device=weights.device)
    with module.graph("cross_attention", [states_type]) as graph:
        states = graph.inputs[0].tensor
        if weights.device.is_cpu():
            w = weights.at("decoder.blocks.cross_attn.kv")
            heads, dtype = dims.n_text_head, weights.audio_caches
            graph.output(*ops.audio_heads(states, w["weight"], w["bias"], heads=heads, dtype=dtype))
            return
        outputs: list[TensorValue] = []
        for layer in range(dims.n_text_layer):
            rows = linear(states, weights.at(f"decoder.blocks.{layer}.cross_attn.kv"))
            outputs += ops.pack_heads(rows, heads=dims.n_text_head)
        graph.output(*outputs)


def decoder_graph(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds the graph "decoder", with the greedy pick.

    Inputs: tokens (B, T), past (B), last (B): the position whose next token is picked, all int32, suppress_mask (n_vocab)
    uint8; rules (B, 4) int32: see `ops.greedy`, and said (B, 3) int32, see `ops.decoder`, on a GPU behind the next step's
    tokens (B) and past (B), all in place, see `ops.greedy_step`; what it writes to: tokens (B, S) int32, log probabilities
    (B, S) float32; the caches, see `cache_types`.

    Output: states (B, T, d).
    """
    device = weights.device
    types: list[BufferType | TensorType] = [
        TensorType(DType.int32, ["batch", "length"], device=device),
        TensorType(DType.int32, ["batch"], device=device),
        TensorType(DType.int32, ["batch"], device=device),
        TensorType(DType.uint8, [dims.n_vocab], device=device),
    ]
    if device.is_gpu():
        types += [BufferType(DType.int32, ["batch"], device=device) for _ in range(2)]
    told = TensorType if device.is_cpu() else BufferType
    types += [
        told(DType.int32, ["batch", 4], device=device),
        told(DType.int32, ["batch", 3], device=device),
        BufferType(DType.int32, ["batch", "steps"], device=device),
        BufferType(DType.float32, ["batch", "steps"], device=device),
    ]
    with module.graph("decoder", [*types, *cache_types(dims, weights)]) as graph:
        build = _run_of_steps if device.is_cpu() else _step
        graph.output(build(graph.inputs, dims, weights.at("decoder")))


def _run_of_steps(inputs: Sequence[Value[Any]], dims: ModelDimensions, w: Weights) -> TensorValue:
    """The decoder on a CPU."""
    tokens, past, last, mask, rules, said = (value.tensor for value in inputs[:6])
    picked, log_probs, keys, values = (value.buffer for value in inputs[6:10])
    audio_keys, audio_values = (value.tensor for value in inputs[10:])
    return ops.decoder(
        [tokens, past, last, rules, said, mask],
        (picked, log_probs),
        (keys, values),
        (audio_keys, audio_values),
        [*_vocabulary(w), w["positional_embedding"], w["ln.weight"], w["ln.bias"]],
        [w[f"blocks.{layer}.{part}"] for layer in ops.DECODER_BLOCK for part in ("weight", "bias")],
        audio_length=dims.n_audio_ctx,
        end=dims.end_of_text,
        timestamp_begin=dims.timestamp_begin,
    )


def _step(inputs: Sequence[Value[Any]], dims: ModelDimensions, w: Weights) -> TensorValue:
    """The decoder on a GPU."""
    tokens, past, last, mask = (value.tensor for value in inputs[:4])
    *rows, picked, log_probs = (value.buffer for value in inputs[4:10])
    caches = inputs[10:]
    (vocabulary,) = _vocabulary(w)  # serves as embedding and for logits
    x = ops.embed(tokens, past, vocabulary, w["positional_embedding"], n_vocab=dims.n_vocab)
    for layer in range(dims.n_text_layer):
        keys, values, audio_keys, audio_values = caches[4 * layer : 4 * layer + 4]
        cache, audio = (keys.buffer, values.buffer), (audio_keys.tensor, audio_values.tensor)
        x = decoder_block(x, past, cache, audio, w.at(f"blocks.{layer}"))
    states = layer_norm(x, w.at("ln"))
    ops.greedy_step(
        states,
        last,
        vocabulary,
        mask,
        rows,
        (picked, log_probs),
        end=dims.end_of_text,
        timestamp_begin=dims.timestamp_begin,
    )
    return states


def _vocabulary(w: Weights) -> list[TensorValue]:
    """The vocabulary, on a CPU with its rotation and screen."""
    parts = ("weight", "rotation", "screen") if w.device.is_cpu() else ("weight",)
    return [w[f"token_embedding.{part}"] for part in parts]


def silence_graph(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds the graph "silence": states (B, T, d), at (B) int32 -> the probability that nobody speaks (B) float32."""
    with module.graph("silence", _states_and_position(dims, weights)) as graph:
        states, at = (value.tensor for value in graph.inputs)
        vocabulary = _vocabulary(weights.at("decoder"))
        graph.output(ops.token_probability(states, at, *vocabulary, n_vocab=dims.n_vocab, token=dims.no_speech))


def logits_graph(module: GraphModule, dims: ModelDimensions, weights: Weights) -> None:
    """Adds the graph "logits": states (B, T, d), at (B) int32 -> logits (B, n_vocab) float32, for detecting a language."""
    with module.graph("logits", _states_and_position(dims, weights)) as graph:
        states, at = (value.tensor for value in graph.inputs)
        vocabulary = weights["decoder.token_embedding.weight"]
        graph.output(ops.logits(states, at, vocabulary, n_vocab=dims.n_vocab))


def _states_and_position(dims: ModelDimensions, weights: Weights) -> list[TensorType]:
    states_type = TensorType(weights.dtype, ["batch", "length", dims.n_text_state], device=weights.device)
    return [states_type, TensorType(DType.int32, ["batch"], device=weights.device)]


def cache_types(dims: ModelDimensions, weights: Weights) -> list[BufferType | TensorType]:
    """Types of the caches: keys and values of the text, updated in place, and those of the audio.

    Those of each block on a GPU; those of all blocks on a CPU, where they may have more rows than are decoded.
    """
    heads, device, on_cpu = dims.n_text_head, weights.device, weights.device.is_cpu()
    batch: DimLike = "rows" if on_cpu else "batch"
    layers: list[DimLike] = [dims.n_text_layer] if on_cpu else []
    text = [ops.keys_shape(batch, heads, dims.n_text_ctx, device), [batch, heads, dims.n_text_ctx, ops.HEAD]]
    audio = ops.audio_shapes(batch, heads, dims.n_audio_ctx, weights.audio_caches, device)
    types: list[BufferType | TensorType] = []
    for _ in range(1 if on_cpu else dims.n_text_layer):
        types += [BufferType(weights.caches, [*layers, *shape], device=device) for shape in text]
        types += [TensorType(weights.audio_caches, [*layers, *shape], device=device) for shape in audio]
    return types

"""The residual blocks of Whisper's transformers, on graph values (Radford et al., arXiv:2212.04356, section 2.2).

Every block is pre-norm: it adds to its input what it computes from the input's layer norm.
"""

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, Graph, TensorValue, Weight

from max_whisper import ops
from max_whisper.packed import Recipe
from max_whisper.target import Factors


class Weights:
    """Packed weights by name: `weights["blocks.0.attn.qkv"]`, added to the graph when they are first used.

    Args:
        recipes: What every packed weight is, see `max_whisper.packed`.
        caches: Element type of the decoder's keys and values of the text.
        audio_caches: Element type of those of the audio.
        attention: What the encoder's attention makes of its factors, see `ops.self_attention`.
        device: Where they live.
        prefix: Put before every name.

    Attributes:
        dtype: Element type of what flows between the layers: float32 on a CPU, that of the weights on a GPU.
    """

    def __init__(
        self,
        recipes: dict[str, Recipe],
        caches: DType,
        audio_caches: DType,
        attention: Factors | None,
        device: DeviceRef,
        prefix: str = "",
    ) -> None:
        self.recipes, self.caches, self.audio_caches = recipes, caches, audio_caches
        self.attention, self.device = attention, device
        self.prefix = prefix
        self.dtype = DType.float32 if device.is_cpu() else DType[next(iter(recipes.values())).dtype]

    def __getitem__(self, name: str) -> TensorValue:
        name = self.prefix + name
        recipe = self.recipes[name]
        weight = Weight(name, DType[recipe.dtype], recipe.shape, self.device)
        return Graph.current.add_weight(weight, force_initial_weight_on_host=False).tensor

    def at(self, prefix: str) -> "Weights":
        """The weights whose names begin with `prefix` and a dot."""
        prefix = f"{self.prefix}{prefix}."
        return Weights(self.recipes, self.caches, self.audio_caches, self.attention, self.device, prefix)


def layer_norm(x: TensorValue, w: Weights) -> TensorValue:
    """Layer norm with the weights `w`."""
    return ops.layer_norm(x, w["weight"], w["bias"])


def linear(x: TensorValue, w: Weights, *, residual: TensorValue | None = None, gelu: bool = False) -> TensorValue:
    """Linear layer with the weights `w`."""
    return ops.linear(x, w["weight"], w["bias"], residual, gelu=gelu)


def norm_linear(x: TensorValue, w: Weights, *, gelu: bool = False) -> TensorValue:
    """Linear layer with the weights `w` of the layer norm of x, whose weights are in them."""
    return ops.norm_linear(x, w["weight"], w["bias"], w["sums"], gelu=gelu)


def mlp(x: TensorValue, total: TensorValue, w: Weights) -> TensorValue:
    """Two linear layers with GELU between them, added to `total`; x is the layer norm of `total`."""
    return linear(linear(x, w.at("0"), gelu=True), w.at("2"), residual=total)


def add_layer_norm(x: TensorValue, residual: TensorValue, w: Weights) -> tuple[TensorValue, TensorValue]:
    """Returns x + residual and its layer norm, in one pass."""
    return ops.add_layer_norm(x, residual, w["weight"], w["bias"])


def encoder_block(x: TensorValue, w: Weights, *, heads: int) -> TensorValue:
    """Self-attention and MLP of the encoder: (B, S, d) -> (B, S, d). One op where a CPU's attention rounds its factors."""
    if w.attention and w.attention.terms == 1:
        weights = [w.at(name)[kind] for name in ops.ENCODER_BLOCK for kind in ("weight", "bias")]
        return ops.encoder_block(x, weights, dtype=DType[w.attention.dtype])
    qkv = linear(layer_norm(x, w.at("attn_ln")), w.at("attn.qkv"))
    attended = ops.self_attention(qkv, heads=heads, factors=w.attention)
    x, normed = add_layer_norm(linear(attended, w.at("attn.out")), x, w.at("mlp_ln"))
    return mlp(normed, x, w.at("mlp"))


def decoder_block(
    x: TensorValue,
    past: TensorValue,
    cache: tuple[BufferValue, BufferValue],
    cross: tuple[TensorValue, TensorValue],
    w: Weights,
) -> TensorValue:
    """Causal self-attention over the KV cache, cross-attention over the audio, MLP: (B, T, d) -> (B, T, d), on a GPU."""
    qkv = norm_linear(x, w.at("attn.qkv"))
    x = linear(ops.cached_attention(qkv, past, *cache), w.at("attn.out"), residual=x)
    query = norm_linear(x, w.at("cross_attn.query"))
    x = linear(ops.attention(query, *cross), w.at("cross_attn.out"), residual=x)
    hidden = norm_linear(x, w.at("mlp.0"), gelu=True)
    return linear(hidden, w.at("mlp.2"), residual=x)

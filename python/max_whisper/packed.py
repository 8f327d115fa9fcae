"""A model's weights as the graphs take them: packed, fused, in one dictionary, and in one file that is mapped at start.

Packing costs a pass over all weights, so it happens once per checkpoint and dtype. The result lies in the cache; a later
process maps the file and lets the operating system bring in what is read.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from max_whisper import screen
from max_whisper.cache import entry
from max_whisper.checkpoint import Checkpoint
from max_whisper.checkpoint.safetensors_file import read_safetensors
from max_whisper.config import ModelDimensions
from max_whisper.errors import CheckpointError
from max_whisper.packing import cast, fold_norm, pack_conv1d, pack_linear, packed_shape

ALIGNMENT = 64
"""Bytes: where a tensor may begin, so that no register load crosses a cache line."""

LAYOUT_VERSION = 8
"""Part of the entry's identity; grows with every change of the layout."""

FILE = "weights.safetensors"


_KINDS = {
    "float32": ("F32", "float32"),
    "float16": ("F16", "float16"),
    "bfloat16": ("BF16", "uint16"),
    "int8": ("I8", "int8"),
}
"""For each dtype what the file calls it, and the NumPy type that holds it."""


@dataclass(frozen=True)
class Recipe:
    """How one packed weight comes about.

    Attributes:
        shape: Its shape.
        dtype: Its element type.
        sources: Stacks of tensors of the checkpoint, along the first dimension; None stands for zeros (keys have no bias).
        pack: Makes it of the stacks.
        layers: Of weights that lie one behind the other what each of them is made of, in place of `sources`.
    """

    shape: tuple[int, ...]
    dtype: str
    sources: tuple[tuple[str | None, ...], ...]
    pack: Callable[..., np.ndarray]
    layers: "tuple[Recipe, ...]" = ()


ROUNDED = ("bfloat16", "int8")
"""Dtypes that checkpoints are rounded to: then attention may round, too."""


@dataclass(frozen=True)
class Format:
    """Dtypes of a model's weights and of the keys and values that its decoder keeps, and which device reads them.

    On a GPU everything has one dtype. On a CPU the matrices of the linear layers have the dtype that is asked for; biases,
    layer norms and positions stay float32; in a model of int8 the two convolutions, which see the signal itself, are
    bfloat16. Of the vocabulary a step reads few rows, which nothing is gained by rounding: they have at least float16, and
    a screen in four bits tells which (`max_whisper.screen`). A step reads all keys and values of the window: they are
    float16, which changes no token of any recording at hand, or float32 where nothing is to be rounded; those of the audio
    bytes for int8 on x86 (`max_whisper.compiled`).
    """

    device: str
    matrices: str
    convolutions: str
    vectors: str
    vocabulary: str
    caches: str

    @classmethod
    def of(cls, dtype: str, device: str) -> "Format":
        """The format of a model that computes in `dtype` on a device."""
        if device == "gpu":
            return cls(device, dtype, dtype, dtype, dtype, dtype)
        return cls(
            device,
            matrices=dtype,
            convolutions="bfloat16" if dtype == "int8" else dtype,
            vectors="float32",
            vocabulary="float32" if dtype == "float32" else "float16",
            caches="float32" if dtype == "float32" else "float16",
        )


def recipes(dims: ModelDimensions, dtype: str, device: str = "cpu") -> dict[str, Recipe]:
    """Names every packed weight of a model of these sizes, in the order of use; `Format` tells their dtypes."""
    to = Format.of(dtype, device)
    audio, text = dims.n_audio_state, dims.n_text_state
    positions = {
        "encoder.positional_embedding": (dims.n_audio_ctx, audio),
        "decoder.positional_embedding": (dims.n_text_ctx, text),
    }
    result = {
        **_convolution("encoder.conv1", audio, dims.n_mels, to),
        **_convolution("encoder.conv2", audio, audio, to),
        **{name: _recipe(shape, to.vectors, [name], cast) for name, shape in positions.items()},
        **_layer_norm("encoder.ln_post", audio, to),
        **_vocabulary("decoder.token_embedding", dims.n_vocab, text, to),
        **_layer_norm("decoder.ln", text, to),
    }
    for block in (f"encoder.blocks.{layer}" for layer in range(dims.n_audio_layer)):
        result |= _self_attention(block, audio, to) | _mlp(block, audio, to)
    folds = device == "gpu"  # a decoder's norms are within the products there
    blocks = [
        _self_attention(block, text, to, folds=folds)
        | _cross_attention(block, text, to, folds=folds)
        | _mlp(block, text, to, folds=folds)
        for block in (f"decoder.blocks.{layer}" for layer in range(dims.n_text_layer))
    ]
    if device == "gpu":
        return result | {name: recipe for block in blocks for name, recipe in block.items()}
    return result | _stacked("decoder.blocks", blocks)


def pack(checkpoint: Checkpoint, dtype: str, device: str = "cpu") -> dict[str, np.ndarray]:
    """Packs all weights of a checkpoint.

    Raises:
        CheckpointError: A weight holds NaN or infinity: the checkpoint is corrupt; or it is too large for the dtype.
    """
    return {name: _cook(name, recipe, checkpoint) for name, recipe in recipes(checkpoint.dims, dtype, device).items()}


def load(
    checkpoint: Checkpoint, dtype: str, progress: Callable[[str], None] | None = None, *, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Returns the packed weights, mapped from the cache; packs them first if the cache has none for this checkpoint.

    Args:
        checkpoint: The weights and what identifies them.
        dtype: Element type of the packed matrices, see `Format`.
        progress: Is told when packing begins.
        device: Which device reads them, "cpu" or "gpu".

    Raises:
        CheckpointError: As `pack`.
        OutputError: The cache cannot be written to.
    """
    identity = {
        "checkpoint": checkpoint.fingerprint,
        "device": device,
        "dtype": dtype,
        "layout": LAYOUT_VERSION,
    }

    def make(path: Path) -> None:
        if progress:
            progress(f"packing the weights of {checkpoint.source} ...")
        _write(path, pack(checkpoint, dtype, device))

    return _read(entry("packed", FILE, identity, make))


def _read(path: Path) -> dict[str, np.ndarray]:
    return read_safetensors(path, dict(_KINDS.values()), most_dimensions=4)  # the panels of all blocks


def _write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file whose tensors are aligned.

    The safetensors library aligns to 8 bytes; the format allows what registers need: sizes that are multiples of 64 and a
    header padded with spaces.
    """
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name, tensor in tensors.items():
        kind = next(kind for kind, held_as in _KINDS.values() if held_as == tensor.dtype.name)
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
        assert end % ALIGNMENT == 0, f"{name} has {tensor.nbytes} bytes: models of whole heads have multiples of 64"
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.data)


def _cook(name: str, recipe: Recipe, checkpoint: Checkpoint) -> np.ndarray:
    if recipe.layers:
        return np.stack([_cook(name, layer, checkpoint) for layer in recipe.layers])
    stacks = [_stack(names, checkpoint) for names in recipe.sources]
    with np.errstate(over="ignore"):  # looked for below
        packed = recipe.pack(*stacks)
    if packed.dtype == np.float16 and not np.isfinite(packed).all():
        raise CheckpointError(
            f"{checkpoint.source}: {name} is too large for float16: load the model with dtype='float32'"
        )
    assert packed.shape == recipe.shape, f"{name}: packed to {packed.shape}, expected {recipe.shape}"
    return packed


def _stack(names: Sequence[str | None], checkpoint: Checkpoint) -> np.ndarray:
    present = [checkpoint.tensors[name] for name in names if name]
    parts = [checkpoint.tensors[name] if name else np.zeros_like(present[0]) for name in names]
    stack = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if not np.isfinite(stack).all():
        raise CheckpointError(
            f"{checkpoint.source}: {' + '.join(name for name in names if name)} holds NaN or infinity; "
            "the file is corrupt, fetch it again"
        )
    return stack


def _recipe(
    shape: tuple[int, ...], dtype: str, sources: Sequence[str | None], pack: Callable[..., np.ndarray], **options: str
) -> Recipe:
    return Recipe(shape, dtype, (tuple(sources),), partial(pack, dtype=dtype, **options))


def _matrix(sources: Sequence[str], outputs: int, inputs: int, to: Format) -> Recipe:
    shape = packed_shape(outputs, inputs, to.matrices, to.device)
    return _recipe(shape, to.matrices, sources, pack_linear, device=to.device)


def _vocabulary(name: str, tokens: int, state: int, to: Format) -> dict[str, Recipe]:
    sources = [f"{name}.weight"]
    result = {f"{name}.weight": _recipe((tokens, state), to.vocabulary, sources, cast)}
    if to.device == "cpu":  # of the vocabulary as it is kept, so that bounds hold for it
        for part, shape, dtype, pack in (
            ("rotation", screen.rotation_shape(state), "float16", screen.pack_rotation),
            ("screen", screen.screen_shape(tokens, state), "int8", screen.pack_screen),
        ):
            kept = partial(_of_rounded, pack=pack, dtype=to.vocabulary)
            result[f"{name}.{part}"] = Recipe(shape, dtype, (tuple(sources),), kept)
    return result


def _of_rounded(values: np.ndarray, pack: Callable[[np.ndarray], np.ndarray], dtype: str) -> np.ndarray:
    return pack(cast(values, dtype))


def _stacked(prefix: str, blocks: Sequence[dict[str, Recipe]]) -> dict[str, Recipe]:
    """The blocks' weights one behind the other, without the block's number in their names: one op reads all of them."""
    result = {}
    for recipes_of_one in zip(*(block.items() for block in blocks), strict=True):
        part = recipes_of_one[0][0].removeprefix(f"{prefix}.0.")
        layers = tuple(recipe for _, recipe in recipes_of_one)
        first = layers[0]
        result[f"{prefix}.{part}"] = Recipe((len(layers), *first.shape), first.dtype, (), first.pack, layers)
    return result


def _self_attention(block: str, state: int, to: Format, *, folds: bool = False) -> dict[str, Recipe]:
    return {
        **_normed(_fused(f"{block}.attn", "qkv", state), f"{block}.attn_ln", state, to, folds=folds),
        **_linear(Layer.of(f"{block}.attn.out", state), state, to),
    }


def _cross_attention(block: str, state: int, to: Format, *, folds: bool) -> dict[str, Recipe]:
    query = Layer.of(f"{block}.cross_attn.query", state)
    return {
        **_normed(query, f"{block}.cross_attn_ln", state, to, folds=folds),
        **_linear(_fused(f"{block}.cross_attn", "kv", state), state, to),
        **_linear(Layer.of(f"{block}.cross_attn.out", state), state, to),
    }


def _mlp(block: str, state: int, to: Format, *, folds: bool = False) -> dict[str, Recipe]:
    return {
        **_normed(Layer.of(f"{block}.mlp.0", 4 * state), f"{block}.mlp_ln", state, to, folds=folds),
        **_linear(Layer.of(f"{block}.mlp.2", state), 4 * state, to),
    }


@dataclass(frozen=True)
class Layer:
    """A linear layer of the model, made of one or more of the checkpoint's.

    Attributes:
        name: What its weights are called.
        outputs: N.
        weights: Those of the checkpoint, stacked.
        biases: Likewise.
    """

    name: str
    outputs: int
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]

    @classmethod
    def of(cls, name: str, outputs: int) -> "Layer":
        """One of the checkpoint's."""
        return cls(name, outputs, (f"{name}.weight",), (f"{name}.bias",))


def _fused(attention: str, which: str, state: int) -> Layer:
    """Query, key and value as one linear layer: `qkv`, or `kv` for cross-attention."""
    parts = [{"q": "query", "k": "key", "v": "value"}[letter] for letter in which]
    biases = [None if part == "key" else f"{attention}.{part}.bias" for part in parts]
    weights = [f"{attention}.{part}.weight" for part in parts]
    return Layer(f"{attention}.{which}", len(parts) * state, tuple(weights), tuple(biases))


def _linear(layer: Layer, inputs: int, to: Format) -> dict[str, Recipe]:
    return {
        f"{layer.name}.weight": _matrix(layer.weights, layer.outputs, inputs, to),
        f"{layer.name}.bias": _recipe((layer.outputs,), to.vectors, layer.biases, cast),
    }


def _normed(layer: Layer, norm: str, inputs: int, to: Format, *, folds: bool) -> dict[str, Recipe]:
    """A layer norm and the linear layer behind it; if it `folds`, as one, see `packing.fold_norm`."""
    if not folds:
        return _layer_norm(norm, inputs, to) | _linear(layer, inputs, to)
    sources = layer.weights, layer.biases, (f"{norm}.weight",), (f"{norm}.bias",)
    kinds = (
        ("weight", (layer.outputs, inputs), to.matrices),
        ("bias", (layer.outputs,), to.vectors),
        ("sums", (layer.outputs,), "float32"),
    )
    return {
        f"{layer.name}.{part}": Recipe(shape, dtype, sources, partial(_folded, part=number, dtype=to.matrices))
        for number, (part, shape, dtype) in enumerate(kinds)
    }


def _folded(*stacks: np.ndarray, part: int, dtype: str) -> np.ndarray:
    return fold_norm(*stacks, dtype=dtype)[part]


def _layer_norm(name: str, state: int, to: Format) -> dict[str, Recipe]:
    return {f"{name}.{part}": _recipe((state,), to.vectors, [f"{name}.{part}"], cast) for part in ("weight", "bias")}


def _convolution(name: str, outputs: int, channels: int, to: Format) -> dict[str, Recipe]:
    shape = packed_shape(outputs, 3 * channels, to.convolutions, to.device)
    return {
        f"{name}.weight": _recipe(shape, to.convolutions, [f"{name}.weight"], pack_conv1d, device=to.device),
        f"{name}.bias": _recipe((outputs,), to.vectors, [f"{name}.bias"], cast),
    }

"""A model's weights as the graphs take them: packed, fused, in one dictionary, and in one file that is mapped at start.

Packing costs a pass over all weights, so it happens once per checkpoint and dtype. The result lies in the cache; a later
process maps the file and lets the operating system bring in what is read.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from max_whisper.cache import cache_dir
from max_whisper.checkpoint import Checkpoint
from max_whisper.checkpoint.safetensors_file import read_safetensors
from max_whisper.config import ModelDimensions
from max_whisper.errors import CheckpointError
from max_whisper.packing import pack_conv1d, pack_linear, packed_shape

ALIGNMENT = 64
"""Bytes: where a tensor may begin, so that no register load crosses a cache line."""

LAYOUT_VERSION = 1
"""Part of the file's name; grows with every change of the layout."""


@dataclass(frozen=True)
class Recipe:
    """How one packed weight comes about.

    Attributes:
        shape: Its shape.
        sources: Tensors of the checkpoint, stacked along the first dimension; None stands for zeros (keys have no bias).
        pack: Lays the stack out.
    """

    shape: tuple[int, ...]
    sources: tuple[str | None, ...]
    pack: Callable[[np.ndarray, np.dtype], np.ndarray]


def recipes(dims: ModelDimensions) -> dict[str, Recipe]:
    """Names every packed weight of a model of these sizes, in the order of use."""
    audio, text = dims.n_audio_state, dims.n_text_state
    positions = {
        "encoder.positional_embedding": (dims.n_audio_ctx, audio),
        "decoder.positional_embedding": (dims.n_text_ctx, text),
    }
    result = {
        **_convolution("encoder.conv1", audio, dims.n_mels),
        **_convolution("encoder.conv2", audio, audio),
        **{name: Recipe(shape, (name,), _keep) for name, shape in positions.items()},
        **_layer_norm("encoder.ln_post", audio),
        **_linear("decoder.token_embedding", dims.n_vocab, text, bias=False),
        **_layer_norm("decoder.ln", text),
    }
    for side, layers, state in (("encoder", dims.n_audio_layer, audio), ("decoder", dims.n_text_layer, text)):
        for block in (f"{side}.blocks.{layer}" for layer in range(layers)):
            result |= _layer_norm(f"{block}.attn_ln", state)
            result |= _fused(f"{block}.attn", "qkv", state)
            result |= _linear(f"{block}.attn.out", state, state)
            if side == "decoder":
                result |= _layer_norm(f"{block}.cross_attn_ln", state)
                result |= _linear(f"{block}.cross_attn.query", state, state)
                result |= _fused(f"{block}.cross_attn", "kv", state)
                result |= _linear(f"{block}.cross_attn.out", state, state)
            result |= _layer_norm(f"{block}.mlp_ln", state)
            result |= _linear(f"{block}.mlp.0", 4 * state, state) | _linear(f"{block}.mlp.2", state, 4 * state)
    return result


def shapes(dims: ModelDimensions) -> dict[str, tuple[int, ...]]:
    """Shapes of all packed weights."""
    return {name: recipe.shape for name, recipe in recipes(dims).items()}


def pack(checkpoint: Checkpoint, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Packs all weights of a checkpoint.

    Raises:
        CheckpointError: A packed weight holds NaN or infinity: the checkpoint is corrupt, or too large for the dtype.
    """
    return {name: _cook(name, recipe, checkpoint, dtype) for name, recipe in recipes(checkpoint.dims).items()}


def load(checkpoint: Checkpoint, dtype: str, progress: Callable[[str], None] | None = None) -> dict[str, np.ndarray]:
    """Returns the packed weights, mapped from the cache; packs them first if the cache has none for this checkpoint.

    Args:
        checkpoint: The weights and what identifies them.
        dtype: Element type of the packed weights.
        progress: Is told when packing begins.

    Raises:
        CheckpointError: As `pack`.
    """
    path = cache_dir() / "packed" / f"{checkpoint.fingerprint[:32]}-{dtype}-v{LAYOUT_VERSION}.safetensors"
    expected = recipes(checkpoint.dims)
    if path.is_file():
        try:
            tensors = read_safetensors(path)
        except CheckpointError:
            tensors = {}  # cut short by a full disk, say: packed anew below
        if {name: tensor.shape for name, tensor in tensors.items()} == {n: r.shape for n, r in expected.items()}:
            return tensors
    if progress:
        progress(f"packing the weights of {checkpoint.source} ...")
    _write(path, pack(checkpoint, np.dtype(dtype)))
    return read_safetensors(path)


def _write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file whose tensors are aligned, beside `path`, then moves it there: readers see all or none.

    The safetensors library aligns to 8 bytes; the format allows what registers need: sizes that are multiples of 64 and a
    header padded with spaces.
    """
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "float16": "F16"}[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
        assert end % ALIGNMENT == 0, f"{name} has {tensor.nbytes} bytes: models of whole heads have multiples of 64"
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as file:
        try:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                file.write(tensor.data)
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _cook(name: str, recipe: Recipe, checkpoint: Checkpoint, dtype: np.dtype) -> np.ndarray:
    present = [checkpoint.tensors[source] for source in recipe.sources if source]
    parts = [checkpoint.tensors[source] if source else np.zeros_like(present[0]) for source in recipe.sources]
    packed = recipe.pack(np.concatenate(parts) if len(parts) > 1 else parts[0], dtype)
    assert packed.shape == recipe.shape, f"{name}: packed to {packed.shape}, expected {recipe.shape}"
    if not np.isfinite(packed).all():
        raise CheckpointError(
            f"{checkpoint.source}: {' + '.join(s for s in recipe.sources if s)} holds NaN or infinity as {dtype.name}; "
            "the file is corrupt, fetch it again"
        )
    return packed


def _keep(tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(tensor, dtype)


def _layer_norm(name: str, state: int) -> dict[str, Recipe]:
    return {f"{name}.{part}": Recipe((state,), (f"{name}.{part}",), _keep) for part in ("weight", "bias")}


def _linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> dict[str, Recipe]:
    result = {f"{name}.weight": Recipe(packed_shape(outputs, inputs), (f"{name}.weight",), pack_linear)}
    return result | ({f"{name}.bias": Recipe((outputs,), (f"{name}.bias",), _keep)} if bias else {})


def _convolution(name: str, outputs: int, channels: int) -> dict[str, Recipe]:
    weight = Recipe(packed_shape(outputs, 3 * channels), (f"{name}.weight",), pack_conv1d)
    return {f"{name}.weight": weight, f"{name}.bias": Recipe((outputs,), (f"{name}.bias",), _keep)}


def _fused(attention: str, which: str, state: int) -> dict[str, Recipe]:
    """Query, key and value as one linear layer: `qkv`, or `kv` for cross-attention."""
    parts = [{"q": "query", "k": "key", "v": "value"}[letter] for letter in which]
    weights = tuple(f"{attention}.{part}.weight" for part in parts)
    biases = tuple(None if part == "key" else f"{attention}.{part}.bias" for part in parts)
    outputs = len(parts) * state
    return {
        f"{attention}.{which}.weight": Recipe(packed_shape(outputs, state), weights, pack_linear),
        f"{attention}.{which}.bias": Recipe((outputs,), biases, _keep),
    }

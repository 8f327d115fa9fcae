"""CTranslate2's `model.bin`: a header, then variables one after another, then aliases.

```
u32 binary version   string spec name   u32 spec revision   u32 number of variables
per variable:  string name   u8 rank   u32 dimensions[rank]   u8 element type   u32 bytes   data
u32 number of aliases   per alias:  string alias   string variable
```
Everything is little-endian and unaligned; a string is a u16 length, which counts the closing NUL, and its bytes.

Projections that read the same input are stacked: `self_attention/linear_0` holds the rows of query, key and value,
`attention/linear_1` (cross-attention) those of key and value. They are split into views.
"""

import re
import struct
from pathlib import Path

import numpy as np

from max_whisper.checkpoint.storage import BFLOAT16, MappedBytes, n_bytes
from max_whisper.checkpoint.tensors import account_for, sinusoids
from max_whisper.config import AUDIO_CONTEXT, HEAD_DIM, ModelDimensions
from max_whisper.errors import CheckpointError

MODEL_FILE = "model.bin"

_BINARY_VERSION = 6
_SPEC, _REVISION = "WhisperSpec", 3
_ELEMENT_TYPES = ("float32", "int8", "int16", "int32", "float16", BFLOAT16)
_CONVERT = "convert the original again with `ct2-transformers-converter --quantization float16`"

# Tensors and modules outside the blocks, and modules of a block with the projections stacked in them.
_TENSORS = {
    "encoder/position_encodings/encodings": "encoder.positional_embedding",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
}
_MODULES = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.ln_post",
    "decoder/embeddings": "decoder.token_embedding",
    "decoder/layer_norm": "decoder.ln",
}
_BLOCK_MODULES = {
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
_PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_BLOCK_VARIABLE = re.compile(r"(encoder|decoder)/layer_(\d+)/(\w+/\w+)/(\w+)")

# Scalars that state which arithmetic the variables are for, with the only value our graphs compute; the rest of the
# scalars concern word alignment, or variants of a mechanism (ALiBi) that is switched off.
_SETTINGS = {
    "decoder/activation": 3,  # GELU
    "decoder/pre_norm": 1,
    "decoder/alibi": 0,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
_IGNORED = {
    "decoder/alibi_use_positive_positions",
    "decoder/scale_alibi",
    "decoder/alignment_heads",
    "decoder/alignment_layer",
}
_PROJECTION, _EMBEDDING = "decoder/projection/weight", "decoder/embeddings/weight"


def read_model(*parts: Path) -> tuple[ModelDimensions, dict[str, np.ndarray]]:
    """Reads `model.bin`, or the parts it was cut into, in order.

    Returns:
        The model's sizes, and its tensors under openai-whisper's names: views of the mapped files.

    Raises:
        CheckpointError: The file is truncated, corrupt, quantised, or does not hold exactly a Whisper model.
    """
    data = MappedBytes(*parts)
    variables = _read_variables(data)
    _refuse_quantised(variables, data.name)
    _check_tied(variables, data.name)
    settings: dict[str, int] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, value in variables.items():
        if value.ndim == 0:
            settings[name] = value.item()
        elif name != _PROJECTION:
            tensors |= _translate(name, value, data.name)
    dims = _dimensions(tensors, data.name)
    _check_settings(settings, dims, data.name)
    if "encoder.positional_embedding" not in tensors:
        tensors["encoder.positional_embedding"] = sinusoids(dims.n_audio_ctx, dims.n_audio_state)
    account_for(tensors, dims, data.name)
    return dims, tensors


class _Cursor:
    """Reads the fields of the file one after another."""

    def __init__(self, data: MappedBytes) -> None:
        self._data = data
        self.position = 0

    def integers(self, layout: str, what: str) -> tuple[int, ...]:
        """Reads integers; `layout` is a format of the struct module, without the byte order."""
        start = self._advance(struct.calcsize("<" + layout))
        return struct.unpack("<" + layout, self._data.read(start, self.position - start, what))

    def text(self, what: str) -> str:
        (length,) = self.integers("H", what)
        start = self._advance(length)
        content = bytes(self._data.read(start, length, what)).decode("ascii", errors="replace")
        if not content.endswith("\0") or not content[:-1].isascii() or not content[:-1].isprintable():
            raise CheckpointError(f"{self._data.name} is corrupt: {what}, at byte {start}, is not a string")
        return content[:-1]

    def array(self, shape: tuple[int, ...], dtype: str, what: str) -> np.ndarray:
        return self._data.array(self._advance(n_bytes(shape, dtype)), shape, dtype, what)

    def _advance(self, count: int) -> int:
        start, self.position = self.position, self.position + count
        return start


def _read_variables(data: MappedBytes) -> dict[str, np.ndarray]:
    """Parses the file into its variables, aliases included."""
    cursor = _Cursor(data)
    (version,) = cursor.integers("I", "the binary version")
    if version != _BINARY_VERSION:
        raise CheckpointError(
            f"{data.name} has binary version {version}, expected {_BINARY_VERSION}: not a file of CTranslate2, "
            f"or of another release; {_CONVERT}"
        )
    spec = cursor.text("the name of the specification")
    (revision,) = cursor.integers("I", "the revision of the specification")
    if (spec, revision) != (_SPEC, _REVISION):
        raise CheckpointError(f"{data.name} holds {spec} revision {revision}, expected {_SPEC} revision {_REVISION}")

    variables: dict[str, np.ndarray] = {}
    (count,) = cursor.integers("I", "the number of variables")
    for index in range(1, count + 1):
        name = cursor.text(f"the name of variable {index} of {count}")
        (rank,) = cursor.integers("B", f"the rank of {name}")
        *shape, type_code, size = cursor.integers(f"{rank}IBI", f"the shape of {name}")
        if type_code >= len(_ELEMENT_TYPES):
            raise CheckpointError(f"{data.name} is corrupt: {name} has element type {type_code}, expected 0 to 5")
        shape, dtype = tuple(shape), _ELEMENT_TYPES[type_code]
        if size != n_bytes(shape, dtype):
            raise CheckpointError(f"{data.name} is corrupt: {name} has {size} bytes, expected {shape} of {dtype}")
        if name in variables:
            raise CheckpointError(f"{data.name} is corrupt: {name} is in it twice")
        variables[name] = cursor.array(shape, dtype, name)
    (count,) = cursor.integers("I", "the number of aliases")
    for index in range(1, count + 1):
        alias = cursor.text(f"alias {index} of {count}")
        name = cursor.text(f"the variable that {alias} stands for")
        if name not in variables:
            raise CheckpointError(f"{data.name} is corrupt: {alias} stands for {name}, which is not there")
        variables[alias] = variables[name]
    if cursor.position != data.size:
        raise CheckpointError(f"{data.name} is corrupt: it has {data.size} bytes, expected {cursor.position}")
    return variables


def _refuse_quantised(variables: dict[str, np.ndarray], source: str) -> None:
    for name, value in variables.items():
        if value.ndim and value.dtype in (np.int8, np.int16):
            raise CheckpointError(
                f"{source} is quantised: {name} is {value.dtype}, expected float16, bfloat16 or float32; {_CONVERT}"
            )


def _check_tied(variables: dict[str, np.ndarray], source: str) -> None:
    """Whisper projects to logits with the token embedding; a file that states another matrix is not Whisper's."""
    if not {_PROJECTION, _EMBEDDING} <= variables.keys() or variables[_PROJECTION] is variables[_EMBEDDING]:
        return
    if not np.array_equal(variables[_PROJECTION], variables[_EMBEDDING]):
        raise CheckpointError(f"{source}: {_PROJECTION} differs from {_EMBEDDING}, expected the same matrix")


def _check_settings(settings: dict[str, int], dims: ModelDimensions, source: str) -> None:
    expected = _SETTINGS | {"encoder/num_heads": dims.n_audio_head, "decoder/num_heads": dims.n_text_head}
    for name in settings.keys() - _IGNORED:
        if name not in expected:
            raise CheckpointError(f"{source}: setting {name} is unexpected, Whisper models have none of that name")
        if settings[name] != expected[name]:
            raise CheckpointError(
                f"{source}: {name} is {settings[name]}, expected {expected[name]} in a Whisper model of its width"
            )


def _translate(name: str, value: np.ndarray, source: str) -> dict[str, np.ndarray]:
    """Names a variable as openai-whisper does, split where projections are stacked; an unknown name stays as it is."""
    if name in _TENSORS:
        return {_TENSORS[name]: value}
    if match := _BLOCK_VARIABLE.fullmatch(name):
        side, layer, module, parameter = match.groups()
        if module not in _BLOCK_MODULES or parameter not in _PARAMETERS:
            return {name: value}
        projections = _BLOCK_MODULES[module]
        names = [f"{side}.blocks.{layer}.{projection}.{_PARAMETERS[parameter]}" for projection in projections]
        if value.shape[0] % len(names):
            raise CheckpointError(f"{source}: {name} is {value.shape}, expected {len(names)} stacked projections")
        tensors = dict(zip(names, np.split(value, len(names)), strict=True))
        for key_bias in [name for name in names if name.endswith(".key.bias")]:
            if tensors.pop(key_bias).any():
                raise CheckpointError(f"{source}: {name} has a bias for keys, which Whisper's attention does not have")
        return tensors
    module, _, parameter = name.rpartition("/")
    if module in _MODULES and parameter in _PARAMETERS:
        return {f"{_MODULES[module]}.{_PARAMETERS[parameter]}": value}
    return {name: value}


def _dimensions(tensors: dict[str, np.ndarray], source: str) -> ModelDimensions:
    """Reads the sizes off the tensors, since the format states few of them."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"{source} does not hold a whole Whisper model: {name} is missing")
        if tensors[name].ndim != rank:
            raise CheckpointError(f"{source}: {name} is {tensors[name].shape}, expected {rank} dimensions")
        return tensors[name].shape

    def layers(side: str) -> int:
        return len({name.split(".")[2] for name in tensors if name.startswith(f"{side}.blocks.")})

    n_audio_state, n_mels, _ = shape("encoder.conv1.weight", 3)
    n_vocab, n_text_state = shape("decoder.token_embedding.weight", 2)
    n_text_ctx, _ = shape("decoder.positional_embedding", 2)
    return ModelDimensions(
        n_mels=n_mels,
        n_audio_ctx=AUDIO_CONTEXT,
        n_audio_state=n_audio_state,
        n_audio_head=n_audio_state // HEAD_DIM,
        n_audio_layer=layers("encoder"),
        n_vocab=n_vocab,
        n_text_ctx=n_text_ctx,
        n_text_state=n_text_state,
        n_text_head=n_text_state // HEAD_DIM,
        n_text_layer=layers("decoder"),
    )

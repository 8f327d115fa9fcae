"""A folder in the layout of Hugging Face Transformers: `config.json`, and `model.safetensors` or an index of shards."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from max_whisper.checkpoint.safetensors_file import read_safetensors
from max_whisper.checkpoint.tensors import account_for, sinusoids
from max_whisper.config import ModelDimensions
from max_whisper.errors import CheckpointError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# ModelDimensions' fields and config.json's.
_SIZES = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
# What config.json may say that our graphs compute; absent means the same.
_SETTINGS = {"activation_function": "gelu", "scale_embedding": False}

_TENSORS = {
    "model.encoder.embed_positions.weight": "encoder.positional_embedding",
    "model.decoder.embed_positions.weight": "decoder.positional_embedding",
    "model.decoder.embed_tokens.weight": "decoder.token_embedding.weight",
}
_MODULES = {
    "model.encoder.conv1": "encoder.conv1",
    "model.encoder.conv2": "encoder.conv2",
    "model.encoder.layer_norm": "encoder.ln_post",
    "model.decoder.layer_norm": "decoder.ln",
}
_BLOCK_MODULES = {
    "self_attn_layer_norm": "attn_ln",
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}
_BLOCK_TENSOR = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PROJECTION, _EMBEDDING = "proj_out.weight", "model.decoder.embed_tokens.weight"


def read_folder(folder: Path) -> tuple[ModelDimensions, dict[str, np.ndarray]]:
    """Reads a Whisper model.

    Returns:
        The model's sizes, and its tensors under openai-whisper's names: views of the mapped files.

    Raises:
        CheckpointError: A file is missing, truncated or corrupt, or together they are not exactly a Whisper model.
    """
    dims = _dimensions(folder / CONFIG_FILE)
    stored = _read_tensors(folder)
    projection = stored.pop(_PROJECTION, None)
    if projection is not None and not (_EMBEDDING in stored and np.array_equal(projection, stored[_EMBEDDING])):
        raise CheckpointError(f"{folder}: {_PROJECTION} differs from {_EMBEDDING}, expected the same matrix")
    tensors = {_translate(name): value for name, value in stored.items()}
    if "encoder.positional_embedding" not in tensors:
        tensors["encoder.positional_embedding"] = sinusoids(dims.n_audio_ctx, dims.n_audio_state)
    account_for(tensors, dims, str(folder))
    return dims, tensors


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Reads the tensors under their stored names, from the one file or from all that the index points to."""
    if (folder / WEIGHTS_FILE).is_file():
        return read_safetensors(folder / WEIGHTS_FILE)
    files = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(files, dict) or any(Path(str(file)).name != file for file in files.values()):
        raise CheckpointError(f"{folder / INDEX_FILE}: weight_map must give each tensor a file of the same folder")
    shards = {file: read_safetensors(folder / file) for file in sorted(set(files.values()))}
    for name, file in files.items():
        if name not in shards[file]:
            raise CheckpointError(f"{folder / file} does not hold {name}, which {INDEX_FILE} says it does")
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _translate(name: str) -> str:
    """Names a tensor as openai-whisper does; an unknown name stays as it is."""
    if match := _BLOCK_TENSOR.fullmatch(name):
        side, layer, module, parameter = match.groups()
        return f"{side}.blocks.{layer}.{_BLOCK_MODULES[module]}.{parameter}" if module in _BLOCK_MODULES else name
    if name in _TENSORS:
        return _TENSORS[name]
    module, _, parameter = name.rpartition(".")
    return f"{_MODULES[module]}.{parameter}" if module in _MODULES else name


def _dimensions(path: Path) -> ModelDimensions:
    config = _read_json(path)
    if config.get("model_type") != "whisper":
        raise CheckpointError(f"{path}: model_type is {config.get('model_type')!r}, expected 'whisper'")
    for name, value in _SETTINGS.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"{path}: {name} is {config[name]!r}, expected {value!r}")
    for name in _SIZES.values():
        if name not in config:
            raise CheckpointError(f"{path} does not say {name}")
    return ModelDimensions(**{field: config[name] for field, name in _SIZES.items()})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content

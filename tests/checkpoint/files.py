"""Small models, and the files that the converters of both formats would make of them, written byte by byte."""

import struct
from collections.abc import Callable

import numpy as np
import pytest

from max_whisper.config import ModelDimensions
from max_whisper.errors import CheckpointError, WhisperError

Tensors = dict[str, np.ndarray]

DIMS = ModelDimensions(80, 1500, 128, 2, 2, 300, 24, 128, 2, 2)
SETTINGS = {
    "decoder/activation": np.int8(3),
    "decoder/alibi": np.int8(0),
    "decoder/alignment_heads": np.int16(1),
    "decoder/alignment_layer": np.int16(-1),
    "decoder/num_heads": np.int16(2),
    "decoder/pre_norm": np.int8(1),
    "decoder/scale_embeddings": np.int8(0),
    "decoder/start_from_zero_embedding": np.int8(0),
    "encoder/num_heads": np.int16(2),
}
ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}
TYPE_CODES = {np.float32: 0, np.int8: 1, np.int16: 2, np.int32: 3, np.float16: 4, np.uint16: 5}  # uint16 for bfloat16


def same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name]) for name in left
    )


def refused(call: Callable[[], object], match: str, kind: type[WhisperError] = CheckpointError) -> str:
    with pytest.raises(kind, match=match) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def to_ctranslate2(tensors: Tensors) -> dict[str, np.ndarray]:
    """Names and stacks tensors as CTranslate2's converter does."""
    variables: dict[str, np.ndarray] = {
        "encoder/position_encodings/encodings": tensors["encoder.positional_embedding"],
        "decoder/position_encodings/encodings": tensors["decoder.positional_embedding"],
        "decoder/embeddings/weight": tensors["decoder.token_embedding.weight"],
    }

    def linear(target: str, *sources: str) -> None:
        for parameter in ("weight", "bias"):
            parts = [
                np.zeros(len(tensors[f"{source}.weight"]), tensors[f"{source}.weight"].dtype)
                if parameter == "bias" and source.endswith("key")
                else tensors[f"{source}.{parameter}"]
                for source in sources
            ]
            variables[f"{target}/{parameter}"] = np.concatenate(parts)

    def norm(target: str, source: str) -> None:
        variables[f"{target}/gamma"] = tensors[f"{source}.weight"]
        variables[f"{target}/beta"] = tensors[f"{source}.bias"]

    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    norm("encoder/layer_norm", "encoder.ln_post")
    norm("decoder/layer_norm", "decoder.ln")
    for side in ("encoder", "decoder"):
        for layer in range(2):
            to, of = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            norm(f"{to}/self_attention/layer_norm", f"{of}.attn_ln")
            linear(f"{to}/self_attention/linear_0", f"{of}.attn.query", f"{of}.attn.key", f"{of}.attn.value")
            linear(f"{to}/self_attention/linear_1", f"{of}.attn.out")
            if side == "decoder":
                norm(f"{to}/attention/layer_norm", f"{of}.cross_attn_ln")
                linear(f"{to}/attention/linear_0", f"{of}.cross_attn.query")
                linear(f"{to}/attention/linear_1", f"{of}.cross_attn.key", f"{of}.cross_attn.value")
                linear(f"{to}/attention/linear_2", f"{of}.cross_attn.out")
            norm(f"{to}/ffn/layer_norm", f"{of}.mlp_ln")
            linear(f"{to}/ffn/linear_0", f"{of}.mlp.0")
            linear(f"{to}/ffn/linear_1", f"{of}.mlp.2")
    return variables


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name: str, value: np.ndarray | np.generic) -> bytes:
    header = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
    return string(name) + header + struct.pack("<BI", TYPE_CODES[value.dtype.type], value.nbytes) + value.tobytes()


def model_bin(
    variables: dict[str, np.ndarray],
    settings: dict[str, np.generic] = SETTINGS,  # type: ignore[assignment]
    aliases: dict[str, str] = ALIASES,
    version: int = 6,
    spec: str = "WhisperSpec",
    revision: int = 3,
) -> bytes:
    fields = sorted({**variables, **settings}.items())
    parts = [struct.pack("<I", version), string(spec), struct.pack("<II", revision, len(fields))]
    parts += [variable(name, value) for name, value in fields]
    parts += [struct.pack("<I", len(aliases))]
    parts += [string(text) for pair in aliases.items() for text in pair]
    return b"".join(parts)


CONFIG = {
    "model_type": "whisper",
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "d_model": 128,
    "encoder_attention_heads": 2,
    "encoder_layers": 2,
    "vocab_size": 300,
    "max_target_positions": 24,
    "decoder_attention_heads": 2,
    "decoder_layers": 2,
    "activation_function": "gelu",
    "scale_embedding": False,
}


def to_hugging_face(tensors: Tensors) -> Tensors:
    """Names tensors as Transformers does, by rewriting one piece of the name after another."""
    pieces = [
        ("encoder.positional_embedding", "encoder.embed_positions.weight"),
        ("decoder.positional_embedding", "decoder.embed_positions.weight"),
        ("token_embedding", "embed_tokens"),
        ("ln_post", "layer_norm"),
        ("decoder.ln.", "decoder.layer_norm."),
        (".blocks.", ".layers."),
        (".cross_attn_ln.", ".encoder_attn_layer_norm."),
        (".cross_attn.", ".encoder_attn."),
        (".attn_ln.", ".self_attn_layer_norm."),
        (".attn.", ".self_attn."),
        (".query.", ".q_proj."),
        (".key.", ".k_proj."),
        (".value.", ".v_proj."),
        (".out.", ".out_proj."),
        (".mlp_ln.", ".final_layer_norm."),
        (".mlp.0.", ".fc1."),
        (".mlp.2.", ".fc2."),
    ]
    renamed = {}
    for name, value in tensors.items():
        for old, new in pieces:
            name = name.replace(old, new)
        renamed[f"model.{name}"] = value
    return renamed

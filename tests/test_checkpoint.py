"""Readers of both weight formats, on small models that this file writes itself, byte by byte."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import filter_repo_objects

from max_whisper.checkpoint import Checkpoint, ctranslate2, hub, hugging_face, load_checkpoint, packages
from max_whisper.checkpoint.tensors import sinusoids
from max_whisper.checkpoint.vocabulary_files import read_vocabulary
from max_whisper.config import ModelDimensions, expected_tensors
from max_whisper.errors import CheckpointError, UnknownModelError, WhisperError

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


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape, np.float32).astype(np.float16)
        for name, shape in expected_tensors(DIMS).items()
    }


def same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name]) for name in left
    )


def refused(call: Callable[[], object], match: str, kind: type[WhisperError] = CheckpointError) -> str:
    with pytest.raises(kind, match=match) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- CTranslate2 ---------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def variables(tensors: Tensors) -> dict[str, np.ndarray]:
    return to_ctranslate2(tensors)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Tensors]:
    def write_and_read(content: bytes) -> Tensors:
        (tmp_path / "model.bin").write_bytes(content)
        return ctranslate2.read_model(tmp_path / "model.bin")[1]

    return write_and_read


Read = Callable[[bytes], Tensors]


def test_ctranslate2_gives_back_what_was_written(tmp_path: Path, variables: Tensors, tensors: Tensors) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(model_bin(variables))
    dims, found = ctranslate2.read_model(path)
    assert dims == DIMS
    assert same(found, tensors)
    assert not any(tensor.flags.owndata or tensor.flags.writeable for tensor in found.values())


def test_parts_cut_anywhere_read_as_one(tmp_path: Path, variables: Tensors, tensors: Tensors) -> None:
    content = model_bin(variables)
    in_a_tensor = content.index(variables["decoder/embeddings/weight"].tobytes()) + 1001
    for cut in (1, 10, 27, content.index(b"embeddings"), in_a_tensor, len(content) - 5):
        parts = [tmp_path / "model.bin.part1", tmp_path / "model.bin.part2"]
        parts[0].write_bytes(content[:cut])
        parts[1].write_bytes(content[cut:])
        dims, found = ctranslate2.read_model(*parts)
        assert dims == DIMS
        assert same(found, tensors), cut
    three = [tmp_path / name for name in "abc"]
    for path, piece in zip(three, (content[:100], content[100:103], content[103:]), strict=True):
        path.write_bytes(piece)
    assert same(ctranslate2.read_model(*three)[1], tensors)
    refused(lambda: ctranslate2.read_model(parts[0]), "part1 is truncated at byte")
    refused(lambda: ctranslate2.read_model(*reversed(parts)), "binary version|truncated|corrupt")


def test_wider_and_narrower_elements(read: Read, variables: Tensors, tensors: Tensors) -> None:
    float32 = {name: value.astype(np.float32) for name, value in variables.items()}
    assert same(read(model_bin(float32)), {name: value.astype(np.float32) for name, value in tensors.items()})
    bfloat16 = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in float32.items()}
    truncated = {name: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, value in float32.items()}
    assert same(to_ctranslate2(read(model_bin(bfloat16))), truncated)


def test_positions_are_computed_where_the_file_has_none(read: Read, variables: Tensors) -> None:
    del (variables := dict(variables))["encoder/position_encodings/encodings"]
    found = read(model_bin(variables))["encoder.positional_embedding"]
    assert found.dtype == np.float32
    assert np.array_equal(found, sinusoids(1500, 128))


def test_sinusoids_against_the_formula_one_by_one() -> None:
    table = sinusoids(20, 8)
    for position in range(20):
        for column in range(4):
            angle = position * 10000.0 ** (-column / 3)
            assert table[position, column] == pytest.approx(np.sin(angle), abs=1e-7)
            assert table[position, 4 + column] == pytest.approx(np.cos(angle), abs=1e-7)


def test_a_truncated_model_bin_is_refused_wherever_it_ends(read: Read, variables: Tensors) -> None:
    content = model_bin(variables)
    some = np.random.default_rng(1).integers(30, len(content), 40)
    for end in [*range(30), *map(int, some), *range(len(content) - 70, len(content))]:
        refused(lambda end=end: read(content[:end]), f"truncated at byte {end}: .* up to byte ")


def test_foreign_files_are_refused(read: Read, variables: Tensors) -> None:
    refused(lambda: read(model_bin(variables, version=5)), "binary version 5, expected 6")
    refused(lambda: read(model_bin(variables, spec="TransformerSpec")), "TransformerSpec revision 3, expected Whisper")
    refused(lambda: read(model_bin(variables, revision=4)), "WhisperSpec revision 4, expected WhisperSpec revision 3")
    refused(lambda: read(b"PK\3\4" + bytes(1000)), "binary version 67324752, expected 6")
    refused(lambda: read(bytes(1000)), "binary version 0, expected 6")
    refused(lambda: read(struct.pack("<I", 6) + bytes(1000)), "corrupt: the name of the specification")
    refused(lambda: ctranslate2.read_model(Path("/no/such/model.bin")), "cannot read /no/such/model.bin: No such file")


def test_corrupt_bytes_are_refused(read: Read, variables: Tensors) -> None:
    content = model_bin(variables)
    bias = variable("encoder/conv1/bias", variables["encoder/conv1/bias"])
    more = struct.pack("<I", len(variables) + len(SETTINGS) + 1)
    refused(lambda: read(content[:22] + more + bias + content[26:]), "encoder/conv1/bias is in it twice")
    refused(lambda: read(content + b"\0\0"), f"it has {len(content) + 2} bytes, expected {len(content)}")
    conv1 = content.index(b"encoder/conv1/bias\0") + len(b"encoder/conv1/bias\0")
    refused(lambda: read(content[: conv1 + 5] + b"\7" + content[conv1 + 6 :]), "conv1/bias has element type 7")
    refused(lambda: read(content[: conv1 + 1] + b"\x7f" + content[conv1 + 2 :]), r"256 bytes, expected \(127,\)")
    refused(lambda: read(content[: conv1 - 1] + b"x" + content[conv1:]), "corrupt: the name of variable")
    refused(lambda: read(content[: conv1 - 9] + b"\xff" + content[conv1 - 8 :]), "corrupt: the name of variable")
    refused(lambda: read(content[: conv1 - 9] + b"\n" + content[conv1 - 8 :]), "corrupt: the name of variable")
    refused(lambda: read(model_bin(variables, aliases={"a": "b"})), "a stands for b, which is not there")


def test_flipped_bytes_never_end_in_anything_but_our_error(read: Read, variables: Tensors) -> None:
    content = bytearray(model_bin(variables))
    embedding = content.index(b"decoder/embeddings")
    for position in [*range(120), *range(embedding - 2, embedding + 45), *range(len(content) - 80, len(content))]:
        content[position] ^= 0xFF
        with suppress(CheckpointError):
            read(bytes(content))
        content[position] ^= 0xFF


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder/layer_norm/beta": None}, r"decoder\.ln\.bias \(128,\) is missing"),
        ({"encoder/conv1/weight": None}, r"encoder\.conv1\.weight is missing"),
        ({"decoder/position_encodings/encodings": None}, r"decoder\.positional_embedding is missing"),
        ({"encoder/layer_0/ffn/gate/weight": np.ones((2, 2), np.float16)}, r"ffn/gate/weight \(2, 2\) is unexpected"),
        ({"encoder/extra": np.ones(2, np.float16)}, r"encoder/extra \(2,\) is unexpected"),
        ({"encoder/layer_2/ffn/linear_1/bias": np.ones(128, np.float16)}, r"blocks\.2\.attn_ln\.weight .* is missing"),
        ({"encoder/conv2/bias": np.ones(127, np.float16)}, r"conv2\.bias is \(127,\), expected \(128,\)"),
        ({"encoder/conv1/weight": np.ones((128, 80), np.float16)}, r"conv1\.weight is \(128, 80\), expected 3 dim"),
        ({"encoder/conv1/weight": np.ones((128, 96, 3), np.float16)}, r"n_mels is 96: Whisper models have 80 or 128"),
        ({"encoder/conv1/weight": np.ones((96, 80, 3), np.float16)}, r"n_audio_state is 96 with 1 heads"),
        ({"encoder/conv2/bias": np.ones((1,) * 10, np.float16)}, r"expected at most 3 dimensions"),
        ({"encoder/conv2/bias": np.ones(0, np.float16)}, r"conv2/bias is \(0,\), expected .* none of size 0"),
        ({"encoder/conv2/bias": np.ones(128, np.int32)}, r"conv2\.bias is int32, expected float16"),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.zeros(383, np.float16)}, r"\(383,\), expected 3 stacked"),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(384, np.float16)}, r"a bias for keys"),
        ({"decoder/layer_1/attention/linear_1/bias": np.ones(256, np.float16)}, r"a bias for keys"),
        ({"encoder/conv2/weight": np.ones((128, 128, 3), np.int8)}, r"quantised: encoder/conv2/weight is int8"),
        ({"encoder/conv2/weight": np.ones((128, 128, 3), np.int16)}, r"quantised: encoder/conv2/weight is int16"),
        ({"decoder/projection/weight": np.ones((300, 128), np.float16)}, r"expected the same matrix"),
        ({"decoder/activation": np.int8(0)}, r"decoder/activation is 0, expected 3"),
        ({"decoder/pre_norm": np.int8(0)}, r"decoder/pre_norm is 0, expected 1"),
        ({"encoder/num_heads": np.int16(4)}, r"encoder/num_heads is 4, expected 2"),
        ({"decoder/rotary_dim": np.int32(32)}, r"setting decoder/rotary_dim is unexpected"),
    ],
)
def test_a_model_that_is_not_exactly_whisper_is_refused(
    read: Read, variables: Tensors, change: dict[str, np.ndarray | None], message: str
) -> None:
    changed = {name: value for name, value in {**variables, **SETTINGS, **change}.items() if value is not None}
    aliases = {alias: name for alias, name in ALIASES.items() if alias not in change}
    refused(lambda: read(model_bin(changed, settings={}, aliases=aliases)), message)  # type: ignore[arg-type]


def test_quantised_models_are_refused_with_the_remedy(read: Read, variables: Tensors) -> None:
    quantised = dict(variables)
    for name, value in variables.items():
        if value.ndim > 1 and "encodings" not in name:
            quantised[name] = value.astype(np.int8)
            quantised[f"{name}_scale"] = np.ones(len(value), np.float32)
    refused(
        lambda: read(model_bin(quantised)), "is int8, expected float16, .*ct2-transformers-converter --quantization"
    )


def test_only_the_first_three_of_many_faults_are_listed(read: Read, variables: Tensors) -> None:
    few = {name: value for name, value in variables.items() if "/layer_1/ffn" not in name}
    message = refused(lambda: read(model_bin(few)), "; and 9 more$")
    assert message.count("is missing") == 3


def test_a_projection_stored_twice_is_accepted_if_it_is_the_same(
    read: Read, variables: Tensors, tensors: Tensors
) -> None:
    stored = {**variables, "decoder/projection/weight": variables["decoder/embeddings/weight"].copy()}
    assert same(read(model_bin(stored, aliases={})), tensors)


def test_equal_tensors_may_be_aliases(read: Read, variables: Tensors, tensors: Tensors) -> None:
    name, alias = "decoder/layer_norm/beta", "encoder/layer_norm/beta"
    del (fewer := dict(variables))[alias]
    expected = {**tensors, "encoder.ln_post.bias": tensors["decoder.ln.bias"]}
    assert same(read(model_bin(fewer, aliases={**ALIASES, alias: name})), expected)


# --- Hugging Face --------------------------------------------------------------------------------------------------

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


@pytest.fixture
def folder(tmp_path: Path, tensors: Tensors) -> Path:
    """A whole model, to be damaged."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file(to_hugging_face(tensors), tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_hugging_face_equals_ctranslate2(folder: Path, variables: Tensors, tensors: Tensors) -> None:
    dims, found = hugging_face.read_folder(folder)
    assert dims == DIMS
    assert same(found, tensors)
    assert not any(tensor.flags.owndata or tensor.flags.writeable for tensor in found.values())
    (folder / "model.bin").write_bytes(model_bin(variables))
    assert ctranslate2.read_model(folder / "model.bin")[0] == dims
    assert same(ctranslate2.read_model(folder / "model.bin")[1], found)


def shard(folder: Path, tensors: Tensors) -> dict[str, str]:
    """Cuts the model in two files and writes the index."""
    named = to_hugging_face(tensors)
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + (number > 30)}-of-00002.safetensors" for number, name in enumerate(named)}
    for file in set(files.values()):
        safetensors.numpy.save_file({name: named[name] for name in named if files[name] == file}, folder / file)
    write_index(folder, files)
    return files


def write_index(folder: Path, files: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_shards_read_as_one(folder: Path, tensors: Tensors) -> None:
    files = shard(folder, tensors)
    assert same(hugging_face.read_folder(folder)[1], tensors)
    first, *_ = files
    write_index(folder, {**files, first: "model-00002-of-00002.safetensors"})
    refused(lambda: hugging_face.read_folder(folder), rf"00002-of-00002.safetensors does not hold {first}")
    write_index(folder, {**files, first: "../elsewhere.safetensors"})
    refused(lambda: hugging_face.read_folder(folder), "each tensor a file of the same folder")
    write_index(folder, None)
    refused(lambda: hugging_face.read_folder(folder), "each tensor a file of the same folder")
    write_index(folder, files)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(lambda: hugging_face.read_folder(folder), "cannot read .*00002-of-00002.safetensors: No such file")


def write_safetensors(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_bfloat16_is_widened_exactly(folder: Path, tensors: Tensors) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data, expected = b"", {}
    for name, value in to_hugging_face(tensors).items():
        bits = value.astype(np.float32).view(np.uint32) >> 16
        expected[name] = (bits << 16).view(np.float32)
        start, data = len(data), data + bits.astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [start, len(data)]}
    write_safetensors(folder / "model.safetensors", header, data)
    assert same(to_hugging_face(hugging_face.read_folder(folder)[1]), expected)


def test_a_truncated_safetensors_is_refused_wherever_it_ends(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    for end in (0, 7, 8, 9, 100, 8 + header - 1, 8 + header, 8 + header + 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        refused(lambda: hugging_face.read_folder(folder), f"truncated at byte {end}: .* up to byte ")
    path.write_bytes(content + b"\0")
    refused(lambda: hugging_face.read_folder(folder), f"it has {len(content) + 1} bytes, expected {len(content)}")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([1, 2], "no safetensors header"),
        ("text", "no safetensors header"),
        ({"a": 1}, "no safetensors header"),
        ({"a\n": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}, "no safetensors header"),
        ({"a": {"dtype": "F16", "shape": [2]}}, "no safetensors header"),
        ({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0]}}, "no safetensors header"),
        ({"a": {"dtype": "F16", "shape": ["x"], "data_offsets": [0, 4]}}, "no safetensors header"),
        ({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 6]}}, r"bytes 0 to 6, expected \(2,\) of float16"),
        ({"a": {"dtype": "F16", "shape": [2], "data_offsets": [-4, 0]}}, r"bytes -4 to 0"),
        ({"a": {"dtype": "F16", "shape": [2], "data_offsets": [2, 6]}}, r"bytes 2 to 6, expected .* from byte 0 on"),
        ({"a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}, r"truncated at byte"),
        ({"a": {"dtype": "F16", "shape": [-2], "data_offsets": [4, 0]}}, r"bytes 4 to 0"),
        ({"a": {"dtype": "F16", "shape": [1] * 70 + [2], "data_offsets": [0, 4]}}, r"expected at most 3 dimensions"),
        ({"a": {"dtype": "F16", "shape": [0, 2], "data_offsets": [0, 0]}}, r"none of size 0"),
        ({"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}, r"a is 'I8', expected BF16, F16, F32"),
        ({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, r"a is 'F8_E4M3'"),
    ],
)
def test_a_corrupt_safetensors_header_is_refused(folder: Path, header: object, message: str) -> None:
    write_safetensors(folder / "model.safetensors", header, b"\0\0\0\0")
    refused(lambda: hugging_face.read_folder(folder), message)


def test_a_safetensors_header_that_is_not_text_is_refused(folder: Path) -> None:
    for header in (b"\xff" * 10, b"{", b"", b"[" * 100_000):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        refused(lambda: hugging_face.read_folder(folder), "no safetensors header")
    (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>")
    refused(lambda: hugging_face.read_folder(folder), "truncated at byte 21")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.decoder.layer_norm.bias": None}, r"decoder\.ln\.bias \(128,\) is missing"),
        (
            {"model.decoder.layers.0.self_attn.k_proj.bias": np.ones(128, np.float16)},
            r"key\.bias \(128,\) is unexpected",
        ),
        (
            {"model.decoder.layers.0.adapter.weight": np.ones(2, np.float16)},
            r"layers\.0\.adapter\.weight \(2,\) is unexp",
        ),
        ({"model.encoder.layers.0.fc1.bias": np.ones(128, np.float16)}, r"mlp\.0\.bias is \(128,\), expected \(512,\)"),
        ({"proj_out.weight": np.ones((300, 128), np.float16)}, r"proj_out\.weight differs"),
    ],
)
def test_a_folder_that_is_not_exactly_whisper_is_refused(
    folder: Path, tensors: Tensors, change: dict[str, np.ndarray | None], message: str
) -> None:
    changed = {name: value for name, value in {**to_hugging_face(tensors), **change}.items() if value is not None}
    safetensors.numpy.save_file(changed, folder / "model.safetensors")
    refused(lambda: hugging_face.read_folder(folder), message)


def test_the_tied_projection_and_absent_positions(folder: Path, tensors: Tensors) -> None:
    named = to_hugging_face(tensors)
    named["proj_out.weight"] = named["model.decoder.embed_tokens.weight"].copy()
    del named["model.encoder.embed_positions.weight"]
    safetensors.numpy.save_file(named, folder / "model.safetensors")
    assert same(hugging_face.read_folder(folder)[1], {**tensors, "encoder.positional_embedding": sinusoids(1500, 128)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "config.json is not JSON"),
        ("[]", "config.json is not a JSON object"),
        ("{}", "model_type is None, expected 'whisper'"),
        (json.dumps({**CONFIG, "model_type": "bart"}), "model_type is 'bart', expected 'whisper'"),
        (json.dumps({**CONFIG, "activation_function": "relu"}), "activation_function is 'relu', expected 'gelu'"),
        (json.dumps({key: CONFIG[key] for key in CONFIG if key != "d_model"}), "does not say d_model"),
        (json.dumps({**CONFIG, "d_model": "128"}), "n_audio_state is '128': expected a positive whole number"),
        (json.dumps({**CONFIG, "d_model": 256}), "n_audio_state is 256 with 2 heads"),
        (json.dumps({**CONFIG, "encoder_layers": 3}), r"blocks\.2\.attn_ln\.weight \(128,\) is missing"),
        (json.dumps({**CONFIG, "vocab_size": 301}), r"embedding\.weight is \(300, 128\), expected \(301, 128\)"),
    ],
)
def test_a_wrong_config_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    refused(lambda: hugging_face.read_folder(folder), message)
    (folder / "config.json").unlink()
    refused(lambda: hugging_face.read_folder(folder), "cannot read .*config.json: No such file")


# --- Names, folders and the hub ------------------------------------------------------------------------------------

SMALL = replace(DIMS, n_audio_state=64, n_audio_head=1, n_text_state=64, n_text_head=1, n_vocab=51864)


@pytest.fixture(scope="module")
def tokens() -> list[str]:
    """The English vocabulary: text tokens, special tokens, timestamps."""
    path = packages.MODELS["tiny.en"].vocabulary.locate()
    assert path is not None
    return read_vocabulary(path)


@pytest.fixture(scope="module")
def small(tokens: list[str]) -> Tensors:
    generator = np.random.default_rng(2)
    return {
        name: generator.standard_normal(shape, np.float32).astype(np.float16)
        for name, shape in expected_tensors(SMALL).items()
    }


def write_ctranslate2(folder: Path, tensors: Tensors, tokens: list[str]) -> Path:
    folder.mkdir(parents=True)
    settings = {**SETTINGS, "encoder/num_heads": np.int16(1), "decoder/num_heads": np.int16(1)}
    (folder / "model.bin").write_bytes(model_bin(to_ctranslate2(tensors), settings))
    (folder / "vocabulary.json").write_text(json.dumps(tokens))
    return folder


def write_hugging_face(folder: Path, tensors: Tensors, tokens: list[str]) -> Path:
    folder.mkdir(parents=True)
    sizes = {"d_model": 64, "encoder_attention_heads": 1, "decoder_attention_heads": 1, "vocab_size": 51864}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **sizes}))
    safetensors.numpy.save_file(to_hugging_face(tensors), folder / "model.safetensors")
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens[:50257])}))
    return folder


def test_folders_of_both_layouts_load_to_the_same_model(tmp_path: Path, small: Tensors, tokens: list[str]) -> None:
    one = load_checkpoint(write_ctranslate2(tmp_path / "one", small, tokens))
    two = load_checkpoint(str(write_hugging_face(tmp_path / "two", small, tokens)))
    assert one.dims == two.dims == SMALL
    assert same(one.tensors, two.tensors)
    assert one.source == str(tmp_path / "one")
    assert one.vocabulary.ranks == two.vocabulary.ranks
    assert one.vocabulary.n_vocab == two.vocabulary.n_vocab == 51864
    assert not one.vocabulary.is_multilingual


def test_the_fingerprint_follows_the_files(tmp_path: Path, small: Tensors, tokens: list[str]) -> None:
    folder = write_ctranslate2(tmp_path / "model", small, tokens)
    first = load_checkpoint(folder).fingerprint
    assert load_checkpoint(folder).fingerprint == first
    os.utime(folder / "model.bin", ns=(0, 0))
    second = load_checkpoint(folder).fingerprint
    os.utime(folder / "vocabulary.json", ns=(0, 0))
    assert len({first, second, load_checkpoint(folder).fingerprint}) == 3


def test_a_folder_wins_over_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Tensors, tokens: list[str]
) -> None:
    write_ctranslate2(tmp_path / "tiny.en", small, tokens)
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("tiny.en").dims == SMALL


def test_a_folder_without_weights_or_vocabulary(tmp_path: Path, small: Tensors, tokens: list[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(lambda: load_checkpoint(empty), r"empty holds no weights: expected model\.bin .* or model\.safetensors")
    (empty / "pytorch_model.bin").touch()
    refused(lambda: load_checkpoint(empty), "holds no weights")
    folder = write_ctranslate2(tmp_path / "one", small, tokens)
    (folder / "vocabulary.json").unlink()
    refused(lambda: load_checkpoint(folder), r"one has no vocabulary: expected vocabulary\.json or vocabulary\.txt")
    folder = write_hugging_face(tmp_path / "two", small, tokens)
    (folder / "vocab.json").unlink()
    refused(lambda: load_checkpoint(folder), r"two has no vocabulary: expected vocab\.json or tokenizer\.json")


def test_a_vocabulary_of_another_model(tmp_path: Path, small: Tensors, tokens: list[str]) -> None:
    folder = write_ctranslate2(tmp_path / "one", small, [*tokens[:50256], "", *tokens[50256:]])
    refused(
        lambda: load_checkpoint(folder), r"vocabulary\.json has 50257 text tokens: a model of 51864 tokens has 50256"
    )
    tensors = {**small, "decoder.token_embedding.weight": small["decoder.token_embedding.weight"][:51000]}
    folder = write_ctranslate2(tmp_path / "two", tensors, tokens[:51000])
    refused(lambda: load_checkpoint(folder), "n_vocab is 51000: expected one of 51864, 51865, 51866")


def test_unknown_names(tmp_path: Path) -> None:
    for name in ("huge", "tiny.de", "", "/no/such/folder", "a/b/c", "../x", str(tmp_path / "model.bin")):
        message = refused(lambda name=name: load_checkpoint(name), "expected one of tiny.en, ", UnknownModelError)
        assert repr(name) in message


def test_vocabulary_files(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    expected = ["!", "Ġthe", "", "<|endoftext|>"]
    ids = {"<|endoftext|>": 3, "!": 0, "": 2, "Ġthe": 1}
    assert read_vocabulary(write("vocabulary.txt", "!\nĠthe\n\n<|endoftext|>\n")) == expected
    assert read_vocabulary(write("vocabulary.json", json.dumps(expected))) == expected
    assert read_vocabulary(write("vocab.json", json.dumps(ids))) == expected
    assert read_vocabulary(write("tokenizer.json", json.dumps({"model": {"vocab": ids}}))) == expected
    for text in ("", "[", '"text"', "[1, 2]", '{"a": 0, "b": 2}', '{"a": 0, "b": "1"}', '{"model": {}}', "3"):
        refused(
            lambda text=text: read_vocabulary(write("vocab.json", text)), r"vocab\.json is (corrupt|not a vocabulary)"
        )
    (tmp_path / "vocabulary.txt").write_bytes(b"\xff\xfe")
    refused(lambda: read_vocabulary(tmp_path / "vocabulary.txt"), "is corrupt: 'utf-8' codec")
    refused(lambda: read_vocabulary(tmp_path / "none.txt"), "cannot read .*none.txt: No such file")


def test_names_of_the_hub() -> None:
    assert hub.repository("turbo") == hub.repository("large-v3-turbo") == "openai/whisper-large-v3-turbo"
    assert hub.repository("large") == "openai/whisper-large-v3"
    assert hub.repository("small.en") == "openai/whisper-small.en"
    assert hub.repository("distil-whisper/distil-large-v3.5") == "distil-whisper/distil-large-v3.5"
    for name in ("huge", "a/b/c", "/a", "a/", "../a", "~/a", "a b/c"):
        assert hub.repository(name) is None


def test_one_precision_of_the_weights_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Tensors, tokens: list[str]
) -> None:
    folder = write_hugging_face(tmp_path / "snapshot", small, tokens)
    published = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.fp32-00001-of-00002.safetensors",
        "model.safetensors",
        "model.safetensors.index.fp32.json",
        "model.safetensors.index.json",
        "normalizer.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    asked = []

    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, set(filter_repo_objects(published, allow_patterns=allow_patterns))))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    checkpoint = load_checkpoint("large-v3")
    assert checkpoint.source == "openai/whisper-large-v3 of the Hugging Face hub"
    assert same(checkpoint.tensors, small)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "vocab.json"}
    assert asked == [
        ("openai/whisper-large-v3", wanted | {"model-00001-of-00002.safetensors", "model.safetensors.index.json"})
    ]


def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_with(error: Exception) -> Callable[[], Checkpoint]:
        def snapshot_download(*_: object, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return lambda: load_checkpoint("small")

    full = OSError(28, "No space left on device")
    refused(
        failing_with(full), r"fetching openai/whisper-small from .* \(OSError: .*No space left on device\): try again"
    )
    refused(failing_with(RuntimeError("first\nsecond")), r"\(RuntimeError: first\): try again")
    refused(failing_with(TimeoutError()), r"\(TimeoutError: no reason given\): try again")
    refused(failing_with(HFValidationError("--")), "hub has no model 'openai/whisper-small'", UnknownModelError)


def run_offline(code: str, cache: Path) -> str:
    """Runs code in a fresh process that has an own hub cache and no network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_without_a_network_the_hub_ends_in_one_line(tmp_path: Path) -> None:
    code = """
from max_whisper.checkpoint import load_checkpoint
from max_whisper.errors import CheckpointError
import max_whisper.checkpoint.packages as packages
packages.is_installed = lambda name: False
for name in ("small", "someone/whisper", "tiny.en"):
    try:
        load_checkpoint(name)
    except CheckpointError as error:
        print(error)
"""
    small, someone, tiny = run_offline(code, tmp_path).splitlines()
    assert small.startswith("openai/whisper-small is not in the local cache and the Hugging Face hub cannot be reached")
    assert small.endswith("or give the path of a folder with the model")
    assert someone.startswith("someone/whisper is not in the local cache and ")
    assert tiny.startswith("openai/whisper-tiny.en is not in the local cache and ")
    assert tiny.endswith('or run `pip install "max-whisper[tiny-en]"`')


def test_what_the_hub_once_fetched_loads_offline(tmp_path: Path, small: Tensors, tokens: list[str]) -> None:
    repository = tmp_path / "models--openai--whisper-medium.en"
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_hugging_face(repository / "snapshots" / commit, small, tokens)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = """
from max_whisper.checkpoint import available_models, load_checkpoint
print(load_checkpoint("medium.en").dims.n_text_state, "medium.en" in available_models(), "small" in available_models())
"""
    assert run_offline(code, tmp_path).split() == ["64", "True", "False"]

"""The reader of Hugging Face's format."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from max_whisper.checkpoint import ctranslate2, hugging_face
from max_whisper.checkpoint.tensors import sinusoids
from tests.checkpoint.files import CONFIG, DIMS, Tensors, model_bin, refused, same, to_hugging_face


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

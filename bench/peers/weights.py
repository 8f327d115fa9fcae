"""The same trained weights and the same samples for every engine: what max-whisper finds, in the formats peers read.

Runs in our environment and writes, for each model, a folder in the layout of Hugging Face and one of CTranslate2;
`convert.py` makes the other formats from the former in the peers' environment.
"""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from max_whisper.audio import load_audio
from max_whisper.checkpoint import Checkpoint, load_checkpoint
from max_whisper.checkpoint import hugging_face as names
from max_whisper.checkpoint.packages import MODELS
from max_whisper.tokenizer import get_tokenizer

HUGGING_FACE, CTRANSLATE2 = "hugging-face", "ctranslate2"


def write_models(folder: Path, models: list[str]) -> None:
    """Writes the formats that need nothing but NumPy; what is there already is kept."""
    for model in models:
        for name, write in ((HUGGING_FACE, _write_hugging_face), (CTRANSLATE2, _write_ctranslate2)):
            target = folder / model / name
            if target.exists():
                continue
            unfinished = target.with_name(f".{name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write(model, unfinished)
            unfinished.rename(target)


def write_samples(folder: Path, recordings: list[Path]) -> list[Path]:
    """Decodes recordings to 16 kHz float32 `.npy` files, so that no engine's own way of decoding is part of its time."""
    paths = []
    for recording in recordings:
        paths.append(folder / "samples" / f"{recording.stem}.npy")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        np.save(paths[-1], load_audio(recording))
    return paths


def _write_ctranslate2(model: str, folder: Path) -> None:
    """The packages bring this format already; parts are joined."""
    package = MODELS[model]
    with (folder / "model.bin").open("wb") as joined:
        for part in _located(package.weights):
            joined.write(part.read_bytes())
    (vocabulary,) = _located([package.vocabulary])
    for file in ("config.json", "tokenizer.json", vocabulary.name):
        shutil.copy(vocabulary.with_name(file), folder / file)


def _write_hugging_face(model: str, folder: Path) -> None:
    checkpoint = load_checkpoint(model)
    theirs = dict(_hugging_face_names(checkpoint))
    tensors = {theirs[name]: np.array(tensor) for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, folder / names.WEIGHTS_FILE, metadata={"format": "pt"})
    (vocabulary,) = _located([MODELS[model].vocabulary])
    shutil.copy(vocabulary.with_name("tokenizer.json"), folder / "tokenizer.json")
    for file, content in _configuration(
        checkpoint, json.loads(vocabulary.with_name("config.json").read_text())
    ).items():
        (folder / file).write_text(json.dumps(content, indent=1))


def _hugging_face_names(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Our names and Hugging Face's, from the tables that our reader of that format has."""
    yield from ((ours, theirs) for theirs, ours in names._TENSORS.items())
    modules = dict(names._MODULES)
    for side, layers in (("encoder", checkpoint.dims.n_audio_layer), ("decoder", checkpoint.dims.n_text_layer)):
        for layer in range(layers):
            for theirs, ours in names._BLOCK_MODULES.items():
                modules[f"model.{side}.layers.{layer}.{theirs}"] = f"{side}.blocks.{layer}.{ours}"
    for theirs, ours in modules.items():
        yield from ((f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias"))


def _configuration(checkpoint: Checkpoint, packaged: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What Transformers keeps beside the weights: the sizes, the features, and what generation has to know."""
    dims, tokenizer = checkpoint.dims, get_tokenizer(checkpoint.vocabulary)
    sizes = {theirs: getattr(dims, ours) for ours, theirs in names._SIZES.items()}
    ends = {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot, "pad_token_id": tokenizer.eot}
    ends["decoder_start_token_id"] = tokenizer.sot
    generation: dict[str, Any] = {
        **ends,
        "_from_model_config": False,
        "alignment_heads": packaged["alignment_heads"],
        "begin_suppress_tokens": packaged["suppress_ids_begin"],
        "suppress_tokens": packaged["suppress_ids"],
        "is_multilingual": dims.is_multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": dims.n_text_ctx,
        "no_timestamps_token_id": tokenizer.no_timestamps,
        "prev_sot_token_id": tokenizer.sot_prev,
        "return_timestamps": False,
    }
    if dims.is_multilingual:
        languages = zip(tokenizer.all_language_codes, tokenizer.all_language_tokens, strict=True)
        generation["lang_to_id"] = {f"<|{code}|>": token for code, token in languages}
        generation["task_to_id"] = {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate}
    return {
        names.CONFIG_FILE: {
            "model_type": "whisper",
            "architectures": ["WhisperForConditionalGeneration"],
            "activation_function": "gelu",
            "encoder_ffn_dim": 4 * dims.n_audio_state,
            "decoder_ffn_dim": 4 * dims.n_text_state,
            "num_hidden_layers": dims.n_audio_layer,
            "max_length": dims.n_text_ctx,
            "torch_dtype": "float16",
            "tie_word_embeddings": True,
            **sizes,
            **ends,
        },
        "generation_config.json": generation,
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": dims.n_mels,
            "sampling_rate": 16000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 30,
            "n_samples": 480000,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "WhisperTokenizer",
            "processor_class": "WhisperProcessor",
            "model_max_length": dims.n_text_ctx,
            **{key: "<|endoftext|>" for key in ("bos_token", "eos_token", "pad_token", "unk_token")},
        },
    }


def _located(files: Any) -> list[Path]:
    found = [file.locate() for file in files]
    missing = [file.distribution for file, path in zip(files, found, strict=True) if path is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    return found


def is_installed(module: str) -> bool:
    """Whether a module can be imported here."""
    return find_spec(module) is not None

"""Runs a model through its graphs on one device, in a process of its own: a process computes on a CPU or on a GPU.

python -m tests.gpu.run_model gpu float16 results.npz                       a tiny model with random weights
python -m tests.gpu.run_model gpu float16 results.npz tiny.en speech.wav    a trained one, on 30 s of a recording
"""

import hashlib
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from max_whisper import config
from max_whisper.cache import cache_dir
from max_whisper.checkpoint import Checkpoint
from max_whisper.config import ModelDimensions, expected_tensors
from max_whisper.tokenizer import Vocabulary
from tests.phantom import install
from tests.phantom.launch import Options

CONTEXT, STATE, LAYERS, VOCABULARY = 100, 128, 2, 1600
STEPS = 8
"""Tokens that the tiny model picks, one by one."""

SILENCE = 3000
"""Samples of silence behind its audio."""

PROMPT = np.array([[5, 60, 700], [8, 90, 1000]], np.int32)
NO_SPEECH_AT = np.array([1, 0], np.int32)
"""Where in the prompt the probability of silence is asked for."""


@cache
def tiny() -> Checkpoint:
    """A model of two layers and 2 s of audio, whose weights are random float16 numbers, always the same."""
    heads = STATE // config.HEAD_DIM
    with patch.object(config, "AUDIO_CONTEXT", CONTEXT):
        dims = ModelDimensions(80, CONTEXT, STATE, heads, LAYERS, VOCABULARY, 32, STATE, heads, LAYERS)
    rng = np.random.default_rng(7)
    tensors = {}
    for name, shape in expected_tensors(dims).items():
        scale = 1.0 if len(shape) == 1 or "embedding" in name else 2 / np.sqrt(np.prod(shape[1:]))
        values = rng.standard_normal(shape) * scale
        if len(shape) == 1:
            values = 0.1 * values + name.endswith(("ln.weight", "ln_post.weight"))
        tensors[name] = values.astype(np.float16).astype(np.float32)
    digest = hashlib.sha256(b"".join(tensor.tobytes() for tensor in tensors.values())).hexdigest()
    return Checkpoint(dims, tensors, Vocabulary({}, 0), "random weights", digest)


def noise() -> np.ndarray:
    """Two windows of audio for the tiny model, always the same; silence follows each."""
    rng = np.random.default_rng(8)
    audio = (rng.standard_normal((2, 160 * 2 * CONTEXT)) * [[0.1], [0.01]]).astype(np.float32)
    audio[1] += 0.1 * np.sin(np.arange(audio.shape[1]) / 5, dtype=np.float32)
    return audio[:, :-SILENCE]


def hear_tiny(model: Any) -> tuple[np.ndarray, Any]:
    """Two windows of noise: log-mel, and what the encoder makes of it."""
    mel = np.stack([model.log_mel_spectrogram(row, padding=SILENCE) for row in noise()])
    return mel, model.embed_audio(mel)


def decode_tiny(model: Any, mel: np.ndarray, features: Any, steps: int = STEPS) -> dict[str, np.ndarray]:
    """What was heard, and with a new decoder a prompt, tokens one by one, logits."""
    decoder = model.new_decoder(features)
    rules = np.tile(np.array([0, 0, 0, VOCABULARY], np.int32), (2, 1))
    picks = [decoder.forward(PROMPT, rules, no_speech_at=NO_SPEECH_AT)]
    for _ in range(steps - 1):
        picks.append(decoder.forward(picks[-1].tokens[:, None], rules))
    assert picks[0].no_speech_probs is not None
    return {
        "mel": mel,
        "states": host(features.states),
        "tokens": np.stack([pick.tokens for pick in picks], axis=1),
        "log_probs": np.stack([pick.log_probs for pick in picks], axis=1),
        "no_speech_probs": picks[0].no_speech_probs,
        "logits": decoder.logits(picks[-1].tokens[:, None]),
    }


def run_trained(device: str, dtype: str, name: str, recording: str) -> dict[str, np.ndarray]:
    """The first 30 s of a recording: its tokens, timestamps included."""
    from max_whisper.audio import load_audio, pad_or_trim
    from max_whisper.model import load_model

    model = load_model(name, device, dtype)
    mel = model.log_mel_spectrogram(pad_or_trim(load_audio(recording), 480_000))
    result = model.decode(mel)
    print(result.text)
    return {
        "mel": mel,
        "tokens": np.array(result.tokens),
        "avg_logprob": np.array(result.avg_logprob),
        "no_speech_prob": np.array(result.no_speech_prob),
    }


def host(buffer) -> np.ndarray:
    """Float32 on the host."""
    from max.driver import CPU

    return buffer.to(CPU()).to_numpy().astype(np.float32)


def main(device: str, dtype: str, path: str, *trained: str) -> None:
    """Runs a model, and writes what it computed; fails with the first fault that the phantom found."""
    if device == "gpu" and install.is_needed():
        phantom_cache = cache_dir() / "phantom"
        install.install(phantom_cache).options = Options(count=False)
        os.environ["MAX_WHISPER_CACHE"] = str(
            phantom_cache
        )  # its graphs hold PTX: no real GPU's are to be mixed with them
    from max_whisper.model import load_model

    if trained:
        results = run_trained(device, dtype, *trained)
    else:
        model = load_model(tiny(), device, dtype)
        results = decode_tiny(model, *hear_tiny(model))
    if install.installed and install.installed.faults:
        sys.exit(install.installed.faults[0])
    np.savez(Path(path), allow_pickle=False, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])

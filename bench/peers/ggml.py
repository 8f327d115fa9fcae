"""Writes whisper.cpp's model format: a header, mel filters, the vocabulary, then tensors.

Little-endian. Matrices are float16, vectors, biases and positions float32; dimensions are stored innermost first.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import whisper.audio  # pyright: ignore[reportMissingImports]

MAGIC = 0x67676D6C
FLOAT32, FLOAT16 = 0, 1
HEADER = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)


def write_ggml(checkpoint: dict[str, Any], tokenizer: Path, path: Path) -> None:
    """Writes one file from openai-whisper's tensors and a vocabulary in byte-level letters (`tokenizer.json`)."""
    dims = checkpoint["dims"]
    filters = whisper.audio.mel_filters("cpu", dims["n_mels"]).numpy()
    words = _words(tokenizer)
    with path.open("wb") as file:
        file.write(struct.pack("<12i", MAGIC, *(dims[name] for name in HEADER), FLOAT16))
        file.write(struct.pack("<2i", *filters.shape) + filters.astype("<f4").tobytes())
        file.write(struct.pack("<i", len(words)))
        for word in words:
            file.write(struct.pack("<i", len(word)) + word)
        for name, tensor in checkpoint["model_state_dict"].items():
            file.write(_tensor(name, tensor))


def _tensor(name: str, tensor: torch.Tensor) -> bytes:
    array = tensor.float().numpy()
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        array = array[:, None]  # added to columns
    half = array.ndim > 1 and "positional_embedding" not in name and not name.endswith("bias")
    shape = array.shape[::-1]
    header = struct.pack("<3i", array.ndim, len(name), FLOAT16 if half else FLOAT32)
    header += struct.pack(f"<{array.ndim}i", *shape) + name.encode()
    return header + np.ascontiguousarray(array, "<f2" if half else "<f4").tobytes()


def _words(tokenizer: Path) -> list[bytes]:
    """The bytes of every word of text, in the order of their tokens."""
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in plain)
    letters = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
    words = sorted((token, word) for word, token in vocabulary.items() if not word.startswith("<|"))
    return [bytes(letters[letter] for letter in word) for _, word in words]

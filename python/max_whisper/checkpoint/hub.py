"""The Hugging Face hub: which repository a Whisper name means, what of it is needed, what of it is here already."""

import re
from pathlib import Path

from max_whisper.checkpoint.hugging_face import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from max_whisper.errors import CheckpointError, UnknownModelError

REPOSITORIES = {
    "tiny.en": "openai/whisper-tiny.en",
    "tiny": "openai/whisper-tiny",
    "base.en": "openai/whisper-base.en",
    "base": "openai/whisper-base",
    "small.en": "openai/whisper-small.en",
    "small": "openai/whisper-small",
    "medium.en": "openai/whisper-medium.en",
    "medium": "openai/whisper-medium",
    "large-v1": "openai/whisper-large",
    "large-v2": "openai/whisper-large-v2",
    "large-v3": "openai/whisper-large-v3",
    "large": "openai/whisper-large-v3",
    "large-v3-turbo": "openai/whisper-large-v3-turbo",
    "turbo": "openai/whisper-large-v3-turbo",
}
"""openai-whisper's model names, and the repositories where OpenAI publishes the same weights."""

# Weights come in several formats and precisions side by side; these patterns take one.
_PATTERNS = [CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "model-*-of-*.safetensors", "vocab.json", "tokenizer.json"]
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def repository(name: str) -> str | None:
    """Gives the repository that a Whisper name or an "organisation/name" stands for, or None if it is neither."""
    return REPOSITORIES.get(name) or (name if _REPOSITORY.fullmatch(name) else None)


def download(repo: str) -> Path:
    """Brings a repository's weights, configuration and vocabulary into the hub's own cache, unless they are there.

    Returns:
        The folder that holds them.

    Raises:
        UnknownModelError: The hub has no such repository, or not for this user.
        CheckpointError: The files are not in the cache, and the hub cannot be reached or breaks off.
    """
    # Imported here because it takes longer than loading a model that is on disk.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=_PATTERNS))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModelError(
            f"the Hugging Face hub has no model {repo!r} that you may read: check its name, or run `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repo} is not in the local cache and the Hugging Face hub cannot be reached: "
            "connect to the network (and unset HF_HUB_OFFLINE), or give the path of a folder with the model"
        ) from error
    except Exception as error:  # whatever the network or the disk does; the hub's releases differ in what they raise
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise CheckpointError(
            f"fetching {repo} from the Hugging Face hub failed ({type(error).__name__}: {reason}): try again"
        ) from error


def cached() -> dict[str, Path]:
    """Finds the named models that are in the hub's cache: name and folder."""
    from huggingface_hub import try_to_load_from_cache

    found = {}
    for name, repo in REPOSITORIES.items():
        weights = try_to_load_from_cache(repo, WEIGHTS_FILE)
        if isinstance(weights, str):
            found[name] = Path(weights).parent
    return found

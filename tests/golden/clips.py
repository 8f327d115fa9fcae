"""The clips that golden transcripts speak of: a name for each recording, found wherever it is on this machine.

`speech/*` lies in a folder outside the project (environment variable MAX_WHISPER_SPEECH, or ../shared/speech beside the
repository); the others come with packages; `synthetic/*` is computed. A clip that is not here is absent from `paths()`.
"""

import hashlib
import os
import site
import sysconfig
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
SPEECH = Path(os.environ.get("MAX_WHISPER_SPEECH", REPOSITORY.parent / "shared" / "speech"))
PACKAGES = [Path(sysconfig.get_path("purelib")), *map(Path, site.getsitepackages()), REPOSITORY / ".venv" / "speech"]
PACKAGE_FOLDERS = {
    "pytest-audioeval": ("pytest_audioeval", "samples/audio", "*/*.wav"),
    "moonshine-voice": ("moonshine_voice", "assets", "*.wav"),
}
NOT_SPEECH = {"moonshine-voice/success.wav", "moonshine-voice/error.wav"}


def paths() -> dict[str, Path]:
    """Every recording on this machine: name to file, in a fixed order."""
    folders = [("speech", SPEECH, "*.flac"), ("speech", SPEECH, "*.wav")]
    for name, (package, subfolder, pattern) in PACKAGE_FOLDERS.items():
        folders += [(name, root / package / subfolder, pattern) for root in PACKAGES]  # nothing is imported
    found = {}
    for name, root, pattern in folders:
        found |= {f"{name}/{path.relative_to(root).as_posix()}": path for path in sorted(root.glob(pattern))}
    return {name: path for name, path in found.items() if name not in NOT_SPEECH}


def synthetic() -> dict[str, np.ndarray]:
    """Inputs without speech, float32 at 16 kHz: silence, noise, and recordings of next to nothing."""
    noise = (0.1 * np.random.default_rng(0).standard_normal(480_000)).astype(np.float32)
    return {
        "synthetic/silence-30s": np.zeros(480_000, np.float32),
        "synthetic/noise-30s": noise,
        "synthetic/noise-10ms": noise[:160],
        "synthetic/1-sample": noise[:1],
    }


def sha256(samples: np.ndarray) -> str:
    """Identity of decoded samples (float32 little-endian)."""
    return hashlib.sha256(samples.astype("<f4").tobytes()).hexdigest()

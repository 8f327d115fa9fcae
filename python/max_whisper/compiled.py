"""Graphs compiled ahead of time: built once per machine and set of sizes, then loaded in milliseconds.

An entry of the cache is a folder named after everything that its contents depend on: the version of MAX, the sources
of kernels and graphs, the model's sizes, device and dtype, and the level of the CPU or the architecture of the GPU. It
holds a MEF with all graphs and a manifest with its digest; what does not match the manifest is built anew, never trusted.
An entry is built in a folder of its own and moved into place at the end, so that two processes that build at once do not
meet.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from max_whisper import target
from max_whisper.cache import cache_dir, writing
from max_whisper.config import ModelDimensions
from max_whisper.cross import compile_elsewhere

GRAPHS = "graphs.mef"
MANIFEST = "manifest.json"

Say = Callable[[str], None]


def entries() -> list[Path]:
    """The cache's entries."""
    folder = cache_dir() / "compiled"
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir())


def build(
    dims: ModelDimensions,
    device: str = "cpu",
    dtype: str | None = None,
    *,
    architecture: str | None = None,
    force: bool = False,
    progress: Say | None = None,
) -> Path:
    """Returns the MEF of a model's compiled graphs; compiles them if the cache has none that are whole.

    Args:
        dims: The model's sizes.
        device: Where the graphs will run.
        dtype: Element type of the weights; None for the device's own.
        architecture: A GPU architecture to build for, present or not, instead of what this machine has.
        force: Compile even what the cache has.
        progress: Is told, in words, what is being done.

    Raises:
        DeviceError: The device or dtype is not there.
        OutputError: The cache cannot be written to.
    """
    if architecture is None:
        device, dtype = target.choose(device, dtype)
    else:
        device, dtype = target.choose_target(architecture, dtype)
    identity = _identity(dims, device, dtype, architecture)
    folder = cache_dir() / "compiled" / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    if not force and _is_whole(folder, identity):
        return folder / GRAPHS
    say = progress or (lambda _: None)
    with writing():
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
        try:
            say(f"compiling the graphs for {identity['target']}, once for this machine and model size ...")
            if architecture is None:
                compile_graphs(dims, device, dtype, building / GRAPHS)
            else:
                compile_elsewhere(dims, dtype, architecture, building / GRAPHS)
            manifest = {"identity": identity, "sha256": _digest(building / GRAPHS)}
            (building / MANIFEST).write_text(json.dumps(manifest, indent=1))
            _move(building, folder, identity, force=force)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder / GRAPHS


def _move(building: Path, folder: Path, identity: dict[str, object], *, force: bool) -> None:
    """Puts a finished entry in place; another process may have been faster, and its entry is as good."""
    if force or not _is_whole(folder, identity):
        stale = building.with_name(building.name + "-stale")
        if folder.exists():
            folder.rename(stale)
        try:
            building.rename(folder)
        except OSError:
            if not _is_whole(folder, identity):
                raise
        shutil.rmtree(stale, ignore_errors=True)


def _is_whole(folder: Path, identity: dict[str, object]) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["identity"] == identity and manifest["sha256"] == _digest(folder / GRAPHS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _identity(dims: ModelDimensions, device: str, dtype: str, architecture: str | None) -> dict[str, object]:
    from max.driver import __version__

    return {
        "max": __version__,
        "sources": _sources(),
        "dims": asdict(dims),
        "dtype": dtype,
        "device": device,
        "target": architecture or (target.gpu_architecture() if device == "gpu" else target.cpu_target()),
        **({"host": target.cpu_target("gpu")} if device == "gpu" else {}),
    }


@cache
def _sources() -> str:
    """Digest of all that graphs are made of: kernels, graph builders, and the layout of weights."""
    here = Path(__file__).parent
    files = [*(here / "kernels").rglob("*.mojo"), *(here / "graphs").rglob("*.py")]
    files += [here / "ops.py", here / "packing.py", here / "packed.py"]  # what the graphs take
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compile_graphs(dims: ModelDimensions, device: str, dtype: str, path: Path) -> None:
    """Compiles all graphs of a model for this process's device and writes them to a MEF."""
    from max.dtype import DType
    from max.graph import DeviceRef

    from max_whisper import graphs, packed, runtime
    from max_whisper.graphs.blocks import Weights
    from max_whisper.graphs.module import GraphModule

    runtime.use(device)
    module = GraphModule()
    caches = DType[packed.Format.of(dtype, device).caches]
    reference = DeviceRef.GPU() if device == "gpu" else DeviceRef.CPU()
    pairs = device == "cpu" and dtype in packed.ROUNDED and target.multiplies_bfloat16()
    weights = Weights(packed.recipes(dims, dtype, device), caches, DType.bfloat16 if pairs else None, reference)
    graphs.build(module, dims, weights)
    module.compile().export_mef(path)

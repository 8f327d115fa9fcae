"""Compiles a model's graphs for a GPU that is not there: a process of its own, because its devices are virtual.

`python -m max_whisper.cross sm_80 float16 graphs.mef '{"n_mels": 80, ...}'` writes what an sm_80 is to run.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from max_whisper.config import ModelDimensions
from max_whisper.errors import DeviceError


def compile_elsewhere(dims: ModelDimensions, dtype: str, architecture: str, path: Path) -> None:
    """Compiles in a child process.

    Args:
        dims: The model's sizes.
        dtype: Element type of weights and activations.
        architecture: One of `target.GPU_TARGETS`.
        path: Where the MEF goes.

    Raises:
        DeviceError: The compiler complained. Some of its complaints leave the exit status 0.
    """
    command = [sys.executable, "-m", "max_whisper.cross", architecture, dtype, str(path), json.dumps(asdict(dims))]
    # MAX's own extensions (those of `max.nn`) tell C's environment, which os.environ does not see, that the Python to run
    # is the first on PATH: a child would be that one, and not find what this one has installed.
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    lines = (done.stdout + done.stderr).splitlines()
    complaints = [line for line in lines if "error:" in line.lower()]
    if done.returncode or complaints:
        raise DeviceError(
            f"the graphs do not compile for {architecture}: {(complaints or lines or ['no reason given'])[-1]}"
        )


def use_virtual_device(architecture: str) -> None:
    """Makes a GPU that is not there the only one of this process, for compilers alone. MAX must not have looked yet."""
    from max import driver

    driver.set_virtual_device_api("cuda" if architecture.startswith("sm_") else "hip")
    driver.set_virtual_device_target_arch(architecture)
    driver.set_virtual_device_count(1)


def leave() -> None:
    """Ends a process that had a virtual device.

    MAX 26.7 leaves threads of the device behind, and now and then aborts the process over them when it ends, after the work
    is done. What fails before has raised.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main(architecture: str, dtype: str, path: str, dims: str) -> None:
    """Compiles in this process."""
    use_virtual_device(architecture)

    from max_whisper import compiled

    compiled.compile_graphs(ModelDimensions(**json.loads(dims)), "gpu", dtype, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()

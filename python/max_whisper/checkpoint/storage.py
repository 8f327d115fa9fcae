"""Weight files mapped into memory, and arrays that look into them without copying.

A mapping costs nothing until its bytes are touched, so a checkpoint of any size "loads" in milliseconds; the reading
happens when the weights are packed for the kernels.
"""

import mmap
from functools import cache
from math import prod
from pathlib import Path

import numpy as np

from max_whisper.errors import CheckpointError

BFLOAT16 = "bfloat16"
"""Element type without a NumPy counterpart: such arrays are widened to float32, which is exact, and so are copies."""


class MappedBytes:
    """The bytes of a file, or of several files that continue one another, as one read-only range.

    Args:
        paths: The file, or its parts in order.

    Raises:
        CheckpointError: A file cannot be opened.
    """

    def __init__(self, *paths: Path) -> None:
        self.name = " + ".join(map(str, paths))
        self._parts = [_map(path) for path in paths]
        self.size = sum(map(len, self._parts))

    def read(self, start: int, count: int, what: str) -> memoryview | bytes:
        """Gives `count` bytes from `start` on: a view, or a copy where they cross from one file into the next.

        Raises:
            CheckpointError: The files end before; `what` names what should stand there.
        """
        if start + count > self.size:
            raise CheckpointError(
                f"{self.name} is truncated at byte {self.size}: {what} goes up to byte {start + count}; fetch it again"
            )
        pieces = []
        for part in self._parts:
            if start < len(part) and count > 0:
                pieces.append(part[start : start + count])
                count -= len(pieces[-1])
            start = max(0, start - len(part))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def array(self, start: int, shape: tuple[int, ...], dtype: str, what: str, most_dimensions: int = 3) -> np.ndarray:
        """Gives the array of `shape` that starts at byte `start`.

        Returns:
            A read-only view of the mapping, which may be unaligned; a float32 copy where `dtype` is bfloat16.

        Raises:
            CheckpointError: The files end before the array does, or the shape is none of a weight.
        """
        if len(shape) > most_dimensions or 0 in shape:
            raise CheckpointError(
                f"{self.name}: {what} is {shape}, expected at most {most_dimensions} dimensions and none of size 0"
            )
        data = np.frombuffer(self.read(start, n_bytes(shape, dtype), what), _element(dtype)).reshape(shape)
        data.flags.writeable = False
        return (data.astype(np.uint32) << 16).view(np.float32) if dtype == BFLOAT16 else data


def n_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes that an array takes in a file."""
    return prod(shape) * _element(dtype).itemsize


@cache
def _element(dtype: str) -> np.dtype:
    return np.dtype("uint16" if dtype == BFLOAT16 else dtype).newbyteorder("<")


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:  # mapped for this process alone: nothing that it wrote would reach the file
            if path.stat().st_size == 0:  # which cannot be mapped
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error

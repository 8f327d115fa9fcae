"""Registers: one vector each, with an element for every thread, made when it is first used."""

from functools import cache

import numpy as np


@cache
def _garbage(dtype: np.dtype, count: int) -> np.ndarray:
    """Bits that are NaN in every type of floating-point numbers: any 16 of them are, and what they begin."""
    random = np.random.default_rng(1)
    if dtype.itemsize == 1:
        return random.integers(0, 2 if dtype.kind == "b" else 256, count).astype(dtype)
    return random.integers(0x7FF1, 0x8000, count * dtype.itemsize // 2, np.uint16).view(dtype)


class Registers:
    """The registers of threads that run together. What nobody set is garbage.

    Args:
        declared: Type of each register, by its name.
        count: Threads.
    """

    def __init__(self, declared: dict[str, np.dtype], count: int) -> None:
        self._declared, self._count = declared, count
        self._vectors: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._declared

    def __getitem__(self, name: str) -> np.ndarray:
        vector = self._vectors.get(name)
        if vector is None:
            vector = self._vectors[name] = _garbage(self._declared[name], self._count).copy()
        return vector

    def get(self, name: str) -> np.ndarray | None:
        """A register, or None if there is none of this name."""
        vector = self._vectors.get(name)
        return self[name] if vector is None and name in self._declared else vector

    def put(self, name: str, value: np.ndarray, mask: np.ndarray | None) -> None:
        """Sets a register, of the threads in the mask, to a value of its type: a vector, or one for all."""
        if mask is not None:
            np.copyto(self[name], value, where=mask)
        elif name in self._vectors:
            self._vectors[name][...] = value
        else:
            vector = self._vectors[name] = np.empty(self._count, value.dtype)
            vector[...] = value

    def dtype(self, name: str) -> np.dtype:
        """A register's type."""
        return self._declared[name]

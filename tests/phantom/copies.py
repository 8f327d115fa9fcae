"""Asynchronous copies on their way to shared memory.

Every thread closes its copies into groups of its own and waits for its own: no commit or wait of another thread counts, and
threads that are not active do neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Copy:
    """One cp.async.

    Attributes:
        threads: Those whose bytes are in flight.
        group: Of which of its groups it is part, for each of them.
        at: Where in shared memory the bytes go, in elements of as many.
        values: These elements.
    """

    threads: np.ndarray
    group: np.ndarray
    at: np.ndarray
    values: np.ndarray

    def of(self, some: np.ndarray) -> Copy:
        """The same of some of the threads."""
        return Copy(self.threads[some], self.group[some], self.at[some], self.values[some])


class Copies:
    """The copies in flight of so many threads."""

    def __init__(self, count: int) -> None:
        self._committed = np.zeros(count, np.int32)
        self._in_flight: list[Copy] = []

    def start(self, threads: np.ndarray, at: np.ndarray, values: np.ndarray) -> None:
        """Some threads start a copy each."""
        self._in_flight.append(Copy(threads, self._committed[threads], at, values))

    def commit(self, active: np.ndarray) -> None:
        """The active threads close a group."""
        self._committed += active

    def wait(self, active: np.ndarray, pending: int) -> list[Copy]:
        """What lands, in order, when the active threads wait for their groups but the `pending` latest."""
        until = np.where(active, self._committed - pending, 0)
        first, last = until.min(), until.max()
        landed, waiting = [], []
        for copy in self._in_flight:
            if copy.group.min() >= last:
                waiting.append(copy)
            elif copy.group.max() < first:
                landed.append(copy)
            else:
                here = copy.group < until[copy.threads]
                landed += [copy.of(here)] if here.any() else []
                waiting += [copy.of(~here)] if not here.all() else []
        self._in_flight = waiting
        return landed

"""CUDA graphs, as MAX's runtime makes them: what is enqueued while a stream is captured is put down instead of done, and
done whenever the graph is launched. Everything happens in order here, so a graph is a list.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

Work = Callable[[], None]

NOT_CAPTURING, CAPTURING = 0, 1


def _set(pointer: int, value: int, kind: type = ctypes.c_uint64) -> None:
    if pointer:
        kind.from_address(pointer).value = value


@dataclass
class Graphs:
    """The functions of the driver that make and launch graphs."""

    _captured: list[Work] | None = None
    _graphs: dict[int, list[Work]] = field(default_factory=dict)
    _graph_handles: count = field(default_factory=lambda: count(0x10_0000))

    @property
    def is_capturing(self) -> bool:
        """Whether what is enqueued is put down."""
        return self._captured is not None

    def enqueue(self, work: Work) -> None:
        """Does what a stream is to do, or puts it down while it is captured."""
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> None:
        self._captured = []

    def cuStreamEndCapture(self, stream: int, graph: int) -> None:
        self._keep(graph, self._captured or [])
        self._captured = None

    def cuStreamIsCapturing(self, stream: int, status: int) -> None:
        _set(status, CAPTURING if self.is_capturing else NOT_CAPTURING, ctypes.c_int)

    def cuStreamGetCaptureInfo_v2(self, stream: int, status: int) -> None:
        self.cuStreamIsCapturing(stream, status)

    def cuGraphInstantiateWithFlags(self, executable: int, graph: int) -> None:
        self._keep(executable, self._graphs[graph])

    cuGraphInstantiate = cuGraphInstantiateWithParams = cuGraphInstantiateWithFlags

    def cuGraphLaunch(self, executable: int, stream: int) -> None:
        for work in self._graphs[executable]:
            self.enqueue(work)

    def cuGraphDestroy(self, graph: int) -> None:
        self._graphs.pop(graph, None)

    cuGraphExecDestroy = cuGraphDestroy

    def _keep(self, pointer: int, work: list[Work]) -> None:
        handle = next(self._graph_handles)
        self._graphs[handle] = work
        _set(pointer, handle)

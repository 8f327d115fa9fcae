"""Calls of functions, and `vprintf`, with which they print.

Functions do not call themselves, so each has one place for its parameters and for where to go back to, for every thread.
"""

import re

import numpy as np

from tests.phantom.errors import UnsupportedError
from tests.phantom.machine import Machine
from tests.phantom.memory import BASE, LOCAL_WINDOW
from tests.phantom.ptx import callee, vector

MOST_TEXT = 65536
"""Bytes after which a text without an end is cut."""


def call(machine: Machine, threads: np.ndarray, back: int) -> None:
    """Sends threads into the function that the current instruction calls, from where they go on at `back`."""
    name, operands = callee(machine.current), machine.current.operands
    arguments = vector(operands[-1]) if operands[-1].startswith("(") else []
    if name == "vprintf":
        _print(machine, np.flatnonzero(threads), *arguments)
        machine.pc[threads] = back
        return
    function = machine.kernel.functions.get(name)
    if function is None:
        raise UnsupportedError(f"a call of {name}: {machine.current.text}")
    for parameter, argument in zip(function.parameters, filter(None, arguments), strict=True):
        _copy(machine, argument, parameter, threads)
    machine.returns.setdefault(name, np.zeros(machine.count, np.int32))[threads] = back
    machine.pc[threads] = function.begin


def come_back(machine: Machine, threads: np.ndarray) -> None:
    """Threads leave the function that the current instruction belongs to, each to where it was called."""
    name = machine.current.function
    for back in np.unique(machine.returns[name][threads]):
        these = threads & (machine.returns[name] == back)
        operands = machine.kernel.instructions[back - 1].operands
        if operands[0].startswith("("):
            for result, target in zip(machine.kernel.functions[name].results, vector(operands[0]), strict=True):
                _copy(machine, result, target, these)
        machine.pc[these] = back


def _copy(machine: Machine, source: str, target: str, threads: np.ndarray) -> None:
    size = min(machine.kernel.frames[source], machine.kernel.frames[target])
    machine.frame(target)[threads, :size] = machine.frame(source)[threads, :size]


def _print(machine: Machine, threads: np.ndarray, format_: str, arguments: str) -> None:
    """vprintf: the threads' lines, in their order, behind the names of their blocks and threads."""
    for thread in threads:
        text = _text(machine, thread, _integer(machine.frame(format_)[thread, :8]))
        values = _Values(machine, thread, _integer(machine.frame(arguments)[thread, :8]))
        text = re.sub(r"%([-+ #0]*\d*(?:\.\d+)?)(?:hh|h|(ll|l|z|j|t))?([diouxXeEfFgGcsp%])", values.format, text)
        where = f"[block {machine.block_name(thread)} thread {machine.thread[thread]}]"
        print("\n".join(f"{where} {line}" for line in text.removesuffix("\n").split("\n")), flush=True)


class _Values:
    """The arguments behind a format: as C lays them out in memory, each at a multiple of its size."""

    def __init__(self, machine: Machine, thread: int, address: int) -> None:
        self._machine, self._thread, self._address = machine, thread, address

    def format(self, found: re.Match[str]) -> str:
        flags, long, kind = found.groups()
        if kind == "%":
            return "%"
        if kind in "eEfFgG":
            return f"%{flags}{kind}" % self._next(8).view(np.float64)[0]
        if kind == "s":
            return f"%{flags}s" % _text(self._machine, self._thread, _integer(self._next(8)))
        value = _integer(self._next(8 if long or kind == "p" else 4), signed=kind in "di")
        return hex(value) if kind == "p" else f"%{flags}{kind}" % value

    def _next(self, size: int) -> np.ndarray:
        at = -(-self._address // size) * size
        self._address = at + size
        return _bytes(self._machine, self._thread, at, size).copy()


def _integer(data: np.ndarray, *, signed: bool = False) -> int:
    return int.from_bytes(data.tobytes(), "little", signed=signed)


def _bytes(machine: Machine, thread: int, address: int, size: int) -> np.ndarray:
    """Bytes at an address of no space, for one thread; fewer where the memory ends."""
    if address >= BASE:
        return machine.memory.bytes[address - BASE : address - BASE + size]
    at = address - LOCAL_WINDOW
    if not 0 <= at < machine.local_size:
        raise machine.fault(f"vprintf reads at {address:#x}", np.array([thread]))
    return machine.local[thread * machine.local_size :][at : min(at + size, machine.local_size)]


def _text(machine: Machine, thread: int, address: int) -> str:
    """The text up to its NUL."""
    return _bytes(machine, thread, address, MOST_TEXT).tobytes().partition(b"\0")[0].decode(errors="replace")

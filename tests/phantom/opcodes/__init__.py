"""One table of opcodes: first part of the opcode -> function of the machine and the instruction."""

from collections.abc import Callable

import numpy as np

from tests.phantom.machine import Machine
from tests.phantom.opcodes import arithmetic, bits, movement, tensor_core, warp, warpgroup
from tests.phantom.ptx import Instruction

Execute = Callable[[Machine, Instruction], None]

WARP_WIDE = frozenset({"shfl", "vote", "match", "redux", "bar", "barrier", "ldmatrix", "stmatrix", "mma"})
"""Opcodes that all lanes of a warp execute together (with `.sync`)."""

MEMBERS_LAST = frozenset({"shfl", "vote", "match", "redux", "bar", "barrier"})
"""Those of them whose last operand says which lanes."""


def _nothing(machine: Machine, instruction: Instruction) -> None:
    """Memory order and hints: threads here run in lockstep and memory is one."""


def _fence(machine: Machine, instruction: Instruction) -> None:
    """fence: `fence.proxy.async` lets tensor cores see what a thread wrote to shared memory; others as `membar`."""
    if instruction.parts[1] == "proxy":
        machine.shared.publish(machine.active())


def _trap(machine: Machine, instruction: Instruction) -> None:
    """trap: what a failed assertion and `abort` end in."""
    if machine.active().any():
        raise machine.fault("the kernel aborts", np.flatnonzero(machine.active()))


EXECUTE: dict[str, Execute] = {
    **arithmetic.EXECUTE,
    **bits.EXECUTE,
    **movement.EXECUTE,
    **warp.EXECUTE,
    **tensor_core.EXECUTE,
    **warpgroup.EXECUTE,
    "fence": _fence,
    "trap": _trap,
    **dict.fromkeys(("membar", "nanosleep", "prefetch", "griddepcontrol", "discard"), _nothing),
}
"""What each opcode does; branches, returns and barriers of blocks are the scheduler's."""

CONTROL = frozenset({"bra", "ret", "exit", "call"})
"""Opcodes that the scheduler carries out itself."""

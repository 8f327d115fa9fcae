"""What the lanes of a warp do together: shuffles, votes, reductions, the warp's barrier."""

import numpy as np

from tests.phantom.errors import UnsupportedError
from tests.phantom.machine import WARP, Machine
from tests.phantom.ptx import Instruction


def shuffle(machine: Machine, instruction: Instruction) -> None:
    """shfl.sync: another lane's value, within segments of the warp."""
    targets = instruction.operands[0].split("|")
    value = machine.each(instruction.operands[1], "b32")
    by = machine.each(instruction.operands[2], "u32").astype(np.int64) & 31
    control = machine.each(instruction.operands[3], "u32").astype(np.int64)
    lane, segment, clamp = machine.lane, control >> 8 & 31, control & 31
    lowest = lane & segment
    highest = lowest | clamp & ~segment
    source, inside = {
        "bfly": lambda: (lane ^ by, (lane ^ by) <= highest),
        "down": lambda: (lane + by, lane + by <= highest),
        "up": lambda: (lane - by, lane - by >= highest),
        "idx": lambda: (lowest | by & ~segment, (lowest | by & ~segment) <= highest),
    }[instruction.parts[2]]()
    source = machine.warp * WARP + np.where(inside, source, lane)
    active = machine.active()
    if (active & ~active[source]).any():
        raise machine.fault("shfl reads from an inactive lane", np.flatnonzero(active & ~active[source]))
    machine.set(targets[0], value[source])
    if len(targets) > 1:
        machine.set(targets[1], inside)


def vote(machine: Machine, instruction: Instruction) -> None:
    """vote.sync."""
    active = machine.active().reshape(-1, WARP)
    yes = machine.predicate(instruction.operands[1]).reshape(-1, WARP) & active
    mode = instruction.parts[2]
    if mode == "ballot":
        result = (yes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(axis=1).astype(np.uint32)
    elif mode in ("any", "all"):
        result = yes.any(axis=1) if mode == "any" else (yes | ~active).all(axis=1)
    else:
        raise UnsupportedError(f"not supported: {instruction.text}")
    machine.set(instruction.operands[0], np.repeat(result, WARP))


def active_lanes(machine: Machine, instruction: Instruction) -> None:
    """activemask."""
    active = machine.active().reshape(-1, WARP).astype(np.uint64)
    bits = (active << np.arange(WARP, dtype=np.uint64)).sum(axis=1).astype(np.uint32)
    machine.set(instruction.operands[0], np.repeat(bits, WARP))


def reduce(machine: Machine, instruction: Instruction) -> None:
    """redux.sync."""
    kind = instruction.types()[-1]
    value, active = machine.each(instruction.operands[1], kind).reshape(-1, WARP), machine.active().reshape(-1, WARP)
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    function = functions[next(part for part in instruction.parts if part in functions)]
    result = np.zeros(len(value), value.dtype)
    for i in np.flatnonzero(active.any(axis=1)):
        result[i] = function.reduce(value[i][active[i]], dtype=value.dtype)
    machine.set(instruction.operands[0], np.repeat(result, WARP))


def barrier(machine: Machine, instruction: Instruction) -> None:
    """bar.warp.sync: what the lanes did before is ordered before what they do after."""
    machine.shared.warp_barrier(np.unique(machine.warp[machine.active()]))


EXECUTE = {
    "shfl": shuffle,
    "vote": vote,
    "activemask": active_lanes,
    "redux": reduce,
    "bar": barrier,
    "barrier": barrier,
}

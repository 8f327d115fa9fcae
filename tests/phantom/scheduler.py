"""Which threads run next, and who waits for whom."""

import numpy as np

from tests.phantom import calls, trace
from tests.phantom.errors import PhantomError
from tests.phantom.machine import MOST_STEPS, WARP, Machine, State
from tests.phantom.opcodes import CONTROL, EXECUTE, MEMBERS_LAST, WARP_WIDE


def run(machine: Machine) -> None:
    """Runs all threads of a machine to their end.

    Raises:
        PhantomError: The kernel did something wrong.
    """
    steps = 0
    while True:
        running = machine.state == State.RUNNING
        if running.any():
            _straight_line(machine, running)
        elif (machine.state == State.EXITED).all():
            return
        elif not _release(machine):
            raise _deadlock(machine)
        steps += 1
        if steps > MOST_STEPS:
            raise machine.fault("does not end")


def _straight_line(machine: Machine, running: np.ndarray) -> None:
    """Runs the threads at the earliest instruction up to the next branch, label or wait."""
    kernel = machine.kernel
    instructions, labels, joins = kernel.instructions, kernel.labels, kernel.joins
    pc = int(kernel.order[kernel.position[machine.pc[running]].min()])
    here = running & (machine.pc == pc)
    everyone = bool(here.all())
    while True:
        instruction = machine.current = instructions[pc]
        machine.mask = None if everyone else here
        if instruction.guard is not None:
            guard = machine.registers[instruction.guard] ^ instruction.negated
            machine.mask = guard if everyone else guard & here
        _count(machine, instruction.opcode)
        opcode = instruction.opcode
        if opcode in CONTROL or (opcode in ("bar", "barrier") and "warp" not in instruction.parts):
            taking_part = machine.active() & here
            if machine.traced is not None:
                trace.show(machine)
            machine.pc[here] = pc + 1
            if opcode == "bra":
                machine.pc[taking_part] = labels[instruction.operands[0]]
            elif opcode == "call":
                calls.call(machine, taking_part, pc + 1)
            elif opcode == "ret" and instruction.function:
                calls.come_back(machine, taking_part)
            elif opcode in ("ret", "exit"):
                machine.state[taking_part] = State.EXITED
            else:
                _arrive(machine, taking_part)
            return
        if opcode in WARP_WIDE and "sync" in instruction.parts:
            ready = _whole_warps(machine, machine.active() & here)
            waiting = machine.active() & here & ~ready
            if waiting.any():
                machine.pc[here] = pc + 1
                machine.pc[waiting], machine.state[waiting] = pc, State.AT_WARP
                if ready.any():
                    machine.mask = ready
                    EXECUTE[opcode](machine, instruction)
                return
        EXECUTE[opcode](machine, instruction)
        if machine.traced is not None:
            trace.show(machine)
        pc += 1
        if pc in joins:
            machine.pc[here] = pc
            return


def _count(machine: Machine, opcode: str) -> None:
    if machine.counters is None:
        return
    warps = machine.count // WARP if machine.mask is None else int(machine.mask.reshape(-1, WARP).any(axis=1).sum())
    counts = machine.counters.instructions
    counts[opcode] = counts.get(opcode, 0) + warps
    if opcode == "mma":
        machine.counters.tensor_core += warps
    elif opcode in ("bar", "barrier"):
        machine.counters.barriers += warps


def _members(machine: Machine) -> np.ndarray:
    """The threads that the current warp-wide instruction needs, (warps, 32)."""
    instruction = machine.current
    needed = (machine.state != State.EXITED).reshape(-1, WARP)
    if instruction.opcode in MEMBERS_LAST:
        bits = machine.each(instruction.operands[-1], "u32")
        needed = needed & ((bits >> machine.lane.astype(np.uint32)) & 1).astype(bool).reshape(-1, WARP)
    return needed


def _whole_warps(machine: Machine, here: np.ndarray) -> np.ndarray:
    """Of the threads that have come to a warp-wide instruction, those whose warp is complete."""
    needed, come = _members(machine), here.reshape(-1, WARP)
    if machine.current.opcode not in MEMBERS_LAST:
        short = come.any(axis=1) & ~needed.all(axis=1)
        if short.any():
            raise machine.fault("warp-wide instruction in a warp with exited lanes", np.flatnonzero(here))
    complete = (come | ~needed).all(axis=1) & come.any(axis=1)
    return np.repeat(complete, WARP) & here


def _arrive(machine: Machine, threads: np.ndarray) -> None:
    """Threads come to a barrier of their block."""
    instruction, operands = machine.current, machine.current.operands
    if instruction.opcode == "bar" or instruction.has("aligned"):
        here, needed = threads.reshape(-1, WARP), (machine.state != State.EXITED).reshape(-1, WARP)
        short = here.any(axis=1) & (needed & ~here).any(axis=1)
        if short.any():
            raise machine.fault("barrier in a warp that diverged", np.flatnonzero(threads & np.repeat(short, WARP)))
    machine.barrier_id[threads] = int(operands[0]) if operands else 0
    machine.barrier_count[threads] = int(operands[1]) if len(operands) > 1 else 0
    machine.state[threads] = State.AT_BARRIER


def _release(machine: Machine) -> bool:
    """Lets threads go on whose barrier or warp is complete; returns whether there were any."""
    released = False
    waiting = machine.state == State.AT_WARP
    for warp in np.unique(machine.warp[waiting]):
        lanes = slice(warp * WARP, (warp + 1) * WARP)
        here = waiting[lanes]
        at = set(machine.pc[lanes][here].tolist())
        if len(at) == 1:
            machine.current = machine.kernel.instructions[at.pop()]
            machine.mask = None
            if (here | ~_members(machine)[warp]).all():
                machine.state[lanes][here] = State.RUNNING
                released = True
    for block in range(machine.blocks):
        threads = slice(block * machine.padded, (block + 1) * machine.padded)
        state, at_barrier = machine.state[threads], machine.state[threads] == State.AT_BARRIER
        for barrier in np.unique(machine.barrier_id[threads][at_barrier]):
            here = at_barrier & (machine.barrier_id[threads] == barrier)
            expected = int(machine.barrier_count[threads][here][0])
            if here.sum() == expected if expected else (here | (state == State.EXITED)).all():
                state[here] = State.RUNNING
                released = True
                if not expected or here.sum() == machine.threads_per_block:
                    machine.shared.barrier(block)
    return released


def _deadlock(machine: Machine) -> PhantomError:
    stuck = np.flatnonzero(machine.state != State.EXITED)
    machine.current = machine.kernel.instructions[max(int(machine.pc[stuck[0]]) - 1, 0)]
    return machine.fault("deadlock: threads wait at a barrier or warp-wide instruction that others never reach", stuck)

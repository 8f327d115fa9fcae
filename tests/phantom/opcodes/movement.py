"""Moving data: registers, loads and stores, asynchronous copies, atomics."""

import numpy as np

from tests.phantom.errors import UnsupportedError
from tests.phantom.machine import Machine
from tests.phantom.memory import LOCAL_WINDOW, SHARED_WINDOW, all_true, by_thread, elements
from tests.phantom.ptx import Instruction, vector
from tests.phantom.types import TYPES, UNSIGNED

_WINDOWS = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}
_SPACES = ("global", "shared", "local", "param", "const")


def _space(instruction: Instruction) -> str:
    """The space an instruction names, or "generic"; `shared::cta` is shared, constants lie in global memory."""
    for part in instruction.parts[1:]:
        name = part.split("::")[0]
        if name in _SPACES:
            return "global" if name == "const" else name
    return "generic"


def move(machine: Machine, instruction: Instruction) -> None:
    """mov: a register, a constant, an address, or a vector packed into a wider register and back."""
    kind = instruction.types()[-1]
    target, source = instruction.operands
    if kind == "pred":
        machine.set(target, machine.predicate(source))
    elif target.startswith("{"):
        parts, value = vector(target), machine.value(source, kind)
        width = value.dtype.itemsize // len(parts)
        for i, part in enumerate(parts):
            machine.set(part, (value >> np.array(8 * width * i, value.dtype)).astype(UNSIGNED[width]))
    elif source.startswith("{"):
        parts, dtype = vector(source), TYPES[kind]
        width = dtype.itemsize // len(parts)
        value = np.zeros(machine.count, dtype)
        for i, part in enumerate(parts):
            value = value | machine.value(part, f"b{8 * width}").astype(dtype) << np.array(8 * width * i, dtype)
        machine.set(target, value)
    else:
        machine.set(target, machine.value(source, kind))


def select(machine: Machine, instruction: Instruction) -> None:
    """selp."""
    kind = instruction.types()[-1]
    target, yes, no, predicate = instruction.operands
    machine.set(target, np.where(machine.predicate(predicate), machine.value(yes, kind), machine.value(no, kind)))


def convert_address(machine: Machine, instruction: Instruction) -> None:
    """cvta: an address of a space as one of no space, or `.to` that space."""
    value = machine.value(instruction.operands[1], instruction.types()[-1])
    window = np.array(_WINDOWS.get(_space(instruction), 0), value.dtype)
    machine.set(instruction.operands[0], value - window if instruction.has("to") else value + window)


def load(machine: Machine, instruction: Instruction) -> None:
    """ld, of one register or a vector of them."""
    space, kind, targets = _space(instruction), instruction.types()[-1], vector(instruction.operands[0])
    dtype = TYPES[kind]
    size = dtype.itemsize
    if space == "param":
        name, _, offset = instruction.operands[1].strip("[]").partition("+")
        if name in machine.kernel.frames:
            for i, target in enumerate(targets):
                at = int(offset or 0) + i * size
                machine.set(target, np.ascontiguousarray(machine.frame(name)[:, at : at + size]).view(dtype)[:, 0])
            return
        at = machine.address(instruction.operands[1])
        if "%" not in instruction.operands[1]:
            at = at[:1]  # the same in all threads
        rows = at[:, None] + np.arange(size * len(targets))
        if rows.max() >= len(machine.parameters) or rows.min() < 0:
            raise machine.fault("out-of-bounds access of parameters", address=at)
        data = machine.parameters[rows]
        for i, target in enumerate(targets):
            machine.set(target, np.ascontiguousarray(data[:, i * size : (i + 1) * size]).view(dtype)[:, 0])
        return
    threads = np.flatnonzero(machine.active())
    if not len(threads):
        return
    data = machine.load(space, machine.address(instruction.operands[1]), size * len(targets), threads).view(dtype)
    for i, target in enumerate(targets):
        if len(threads) == machine.count:
            machine.set(target, data[:, i])
        else:
            full = np.zeros(machine.count, dtype)
            full[threads] = data[:, i]
            machine.set(target, full)


def store(machine: Machine, instruction: Instruction) -> None:
    """st, of one register or a vector of them."""
    kind, threads = instruction.types()[-1], np.flatnonzero(machine.active())
    if len(threads):
        sources, space = vector(instruction.operands[1]), _space(instruction)
        values = np.empty((len(threads), len(sources)), TYPES[kind])
        for i, source in enumerate(sources):
            value = machine.each(source, kind)
            values[:, i] = value if len(threads) == machine.count else value[threads]
        data = values.view(np.uint8)
        if space == "param":
            name, _, offset = instruction.operands[0].strip("[]").partition("+")
            machine.frame(name)[threads, int(offset or 0) : int(offset or 0) + data.shape[1]] = data
        else:
            machine.store(space, machine.address(instruction.operands[0]), threads, data)


def copy_asynchronously(machine: Machine, instruction: Instruction) -> None:
    """cp.async: bytes of global memory on their way to shared memory, which holds nothing there until they are waited for.

    The bytes are read at once, and land at the wait: a wait that is missing or comes too late is seen as a read of memory
    that nobody wrote.
    """
    if instruction.has("commit_group", "wait_group", "wait_all"):
        if instruction.has("commit_group", "wait_all"):
            machine.copies.commit(machine.active())
        if not instruction.has("commit_group"):
            pending = int(instruction.operands[0]) if instruction.operands else 0
            for copy in machine.copies.wait(machine.active(), pending):
                machine.shared.land(copy.at, copy.threads, copy.values)
        return
    if not instruction.has("async") or instruction.has("bulk", "mbarrier"):
        raise UnsupportedError(f"not supported: {instruction.text}")
    threads = np.flatnonzero(machine.active())
    if not len(threads):
        return
    operands = instruction.operands
    size = int(operands[2])
    read = machine.each(operands[3], "u32") if len(operands) > 3 else np.full(machine.count, size, np.uint32)
    source, target = machine.address(operands[1]), machine.address(operands[0])
    data = np.zeros((len(threads), size), np.uint8)  # what is not read is zero
    for count in np.unique(read[threads]):
        if count:
            some = read[threads] == count
            data[some, : int(count)] = _load_bytes(machine, source, int(count), threads[some])
    at = machine.locate("shared", target[threads], size, threads)
    machine.shared.expect(at, size, threads)
    machine.copies.start(threads, at, elements(data, size)[:, 0])


def _load_bytes(machine: Machine, source: np.ndarray, count: int, threads: np.ndarray) -> np.ndarray:
    """Reads `count` bytes each, which need not be a power of two."""
    if count & (count - 1) == 0:
        return machine.load("global", source, count, threads)
    unit = count & -count
    return np.concatenate([machine.load("global", source + at, unit, threads) for at in range(0, count, unit)], axis=1)


_ATOMIC = {
    "add": lambda old, new: old + new,
    "max": lambda old, new: max(old, new),
    "min": lambda old, new: min(old, new),
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
    "exch": lambda old, new: new,
    "inc": lambda old, new: 0 if old >= new else old + 1,
}


def atomic(machine: Machine, instruction: Instruction) -> None:
    """atom and red: one thread after another, in the order of their numbers."""
    kind, space = instruction.types()[-1], _space(instruction)
    space = "global" if space == "generic" else space
    operands = instruction.operands if instruction.opcode == "red" else instruction.operands[1:]
    threads = np.flatnonzero(machine.active())
    if not len(threads):
        return
    dtype, address = TYPES[kind], machine.address(operands[0])
    values = machine.each(operands[1], kind)
    at = machine.locate(space, address[threads], dtype.itemsize, threads)
    memory = elements(machine.memory.bytes if space == "global" else machine.shared.bytes, dtype.itemsize).view(dtype)
    written = elements(machine.memory.written if space == "global" else machine.shared.written, dtype.itemsize)
    if not all_true(flags := written.take(at)):
        raise machine.fault(f"atomic on {space} memory that nobody wrote", threads[~by_thread(flags)], address)
    result = np.zeros(machine.count, dtype)
    name = next((part for part in instruction.parts if part in _ATOMIC or part == "cas"), "")
    for thread, place in zip(threads, at, strict=True):
        old = memory[place]
        result[thread] = old
        if name == "cas":
            new = machine.each(operands[2], kind)[thread] if old == values[thread] else old
        else:
            new = _ATOMIC[name](old, values[thread])
        memory[place] = new
    if instruction.opcode == "atom":
        machine.set(instruction.operands[0], result)


EXECUTE = {
    "mov": move,
    "selp": select,
    "cvta": convert_address,
    "ld": load,
    "ldu": load,
    "st": store,
    "cp": copy_asynchronously,
    "atom": atomic,
    "red": atomic,
}

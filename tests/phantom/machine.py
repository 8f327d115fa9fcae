"""The multiprocessor: runs some blocks of a launch in lockstep, as NumPy vectors with one element per thread.

Threads of all these blocks that stand at the same instruction execute it together, under a mask. The scheduler always picks
the earliest instruction that a running thread stands at, in the order of `flow.py`: diverged threads wait for those behind
them. Barriers and warp-wide instructions hold threads until the ones they need have come.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tests.phantom.block_races import BlockRaces
from tests.phantom.copies import Copies
from tests.phantom.counters import Counters
from tests.phantom.errors import PhantomError, UnsupportedError
from tests.phantom.memory import (
    BASE,
    LOCAL_WINDOW,
    SHARED_WINDOW,
    Memory,
    all_true,
    by_thread,
    elements,
    set_true,
)
from tests.phantom.ptx import Instruction, Kernel, vector
from tests.phantom.registers import Registers
from tests.phantom.shared_memory import SharedMemory
from tests.phantom.types import TYPES, UNSIGNED

if TYPE_CHECKING:
    from tests.phantom.opcodes.warpgroup import Warpgroups

WARP = 32
MOST_STEPS = 20_000_000
UNCHECKED = 4096
"""Bytes behind a block's shared memory that may be read where nobody checks."""
"""Stretches of straight code after which a launch is taken for endless."""


class State(IntEnum):
    """What a thread does."""

    RUNNING, AT_BARRIER, AT_WARP, EXITED = range(4)


class Machine:
    """Some blocks of one launch.

    Args:
        kernel: What they run.
        memory: Global memory.
        grid: Blocks of the launch in x, y, z.
        block: Threads of a block in x, y, z.
        blocks: Numbers of the blocks that run here.
        parameters: The parameter space.
        dynamic_shared: Bytes of dynamic shared memory.
        global_variables: Addresses of the module's global arrays.
        counters: Receives the counts; None to save the time.
        check_races: Whether to look for races in shared memory.
        block_races: Looks for races between blocks; None to save the time.
        traced: The thread, of all that run here, that `trace.show` shows.
    """

    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        blocks: np.ndarray,
        parameters: bytes,
        dynamic_shared: int,
        global_variables: dict[str, int],
        counters: Counters | None,
        check_races: bool,
        check_shared: bool = True,
        block_races: BlockRaces | None = None,
        traced: int | None = None,
    ) -> None:
        self.block_races, self.traced = block_races, traced
        self.kernel, self.memory, self.counters = kernel, memory, counters
        self.parameters = np.frombuffer(parameters + bytes(16), np.uint8)
        self.global_variables = global_variables
        self.threads_per_block = int(np.prod(block))
        padded = -(-self.threads_per_block // WARP) * WARP
        self.blocks, self.padded = len(blocks), padded
        self.count = n = self.blocks * padded
        self.all = np.arange(n)
        self.lane, self.warp = self.all % WARP, self.all // WARP
        self.thread = np.tile(np.arange(padded, dtype=np.uint32), self.blocks)
        self.block_slot = self.all // padded
        self.block_number = np.repeat(blocks.astype(np.uint32), padded)
        self.special = self._special_registers(grid, block)
        self.registers = Registers(kernel.registers, n)
        self.local_size = -(-max(kernel.space_bytes("local"), 1) // 16) * 16
        self.local = np.full(n * self.local_size, 0xA5, np.uint8)
        self.local_written = np.zeros(n * self.local_size, bool)
        self._set_up_shared(dynamic_shared, check_races, check_shared)
        self.pc = np.zeros(n, np.int32)
        self.state = np.where(self.thread < self.threads_per_block, State.RUNNING, State.EXITED).astype(np.int8)
        self.barrier_id = np.zeros(n, np.int32)
        self.barrier_count = np.zeros(n, np.int32)
        self.carry = np.zeros(n, bool)
        self.frames: dict[str, np.ndarray] = {}
        self.returns: dict[str, np.ndarray] = {}
        self.copies = Copies(n)
        self.warpgroups: Warpgroups | None = None
        self.mask: np.ndarray | None = None
        self.current: Instruction = kernel.instructions[0]

    def _special_registers(self, grid: tuple[int, ...], block: tuple[int, ...]) -> dict[str, np.ndarray]:
        special = {"%laneid": self.lane.astype(np.uint32), "%warpid": self.thread // np.uint32(WARP)}
        thread, number = self.thread, self.block_number
        for axis, name in enumerate("xyz"):
            threads, blocks = np.uint32(block[axis]), np.uint32(grid[axis])
            special[f"%tid.{name}"], special[f"%ctaid.{name}"] = thread % threads, number % blocks
            special[f"%ntid.{name}"] = np.full(self.count, threads)
            special[f"%nctaid.{name}"] = np.full(self.count, blocks)
            thread, number = thread // threads, number // blocks
        return special

    def _set_up_shared(self, dynamic: int, check_races: bool, check_contents: bool) -> None:
        alignment = self.kernel.dynamic_alignment
        fixed = -(-self.kernel.space_bytes("shared") // alignment) * alignment
        size = fixed + -(-dynamic // 16) * 16 + (16 if check_contents else UNCHECKED)
        allowed = np.zeros(size, bool)
        for variable in self.kernel.variables.values():
            if variable.space == "shared":
                allowed[variable.offset : variable.offset + variable.size] = True
        allowed[fixed : fixed + dynamic] = True
        allowed |= not check_contents
        self.dynamic_offset = fixed
        sizes = {shared_bytes(at) for at in self.kernel.instructions}
        unit = min(sizes - {0}, default=16)
        proxy = any(at.opcode == "wgmma" for at in self.kernel.instructions)
        self.shared = SharedMemory(self.blocks, size, allowed, self.warp, unit, check_races, self._complain, proxy)
        self.shared.written |= not check_contents

    # --- operands ---------------------------------------------------------------------------------------------------

    def value(self, operand: str, kind: str) -> np.ndarray:
        """An operand as a vector of a PTX type: one element per thread, or one for all."""
        dtype = TYPES[kind]
        register = self.registers.get(operand)
        if register is not None:
            if register.dtype == bool or register.dtype == dtype:
                return register
            if register.dtype.itemsize == dtype.itemsize:
                return register.view(dtype)
            if register.dtype.itemsize > dtype.itemsize:
                return register.astype(UNSIGNED[dtype.itemsize]).view(dtype)
            raise self.fault(f"register {operand} is narrower than .{kind}")
        if operand in self.special:
            return self.special[operand].astype(dtype)
        if operand[0].isdigit() or operand[0] == "-":
            return _constant(operand, kind)
        if operand.startswith("%clock") or operand == "%globaltimer":
            return np.zeros(1, dtype)
        number = self.symbol(operand)
        if number is None:
            raise UnsupportedError(f"operand {operand} is not understood: {self.current.text}")
        return np.array([number], np.uint64).astype(UNSIGNED[dtype.itemsize]).view(dtype)

    def each(self, operand: str, kind: str) -> np.ndarray:
        """`value` with an element for every thread."""
        value = self.value(operand, kind)
        return value if len(value) == self.count else np.broadcast_to(value, (self.count,))

    def number(self, operand: str, kind: str) -> np.ndarray:
        """A floating-point operand as numbers; bfloat16 comes as float32."""
        value = self.value(operand, kind)
        return (value.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else value

    def predicate(self, operand: str) -> np.ndarray:
        """A predicate register, the opposite of `!%p`, or a constant."""
        if operand in self.registers:
            return self.registers[operand]
        if operand.startswith("!"):
            return ~self.registers[operand[1:]]
        return np.full(self.count, int(operand, 0) != 0)

    def symbol(self, operand: str) -> int | None:
        """The address of a variable or of a parameter in its space, plus a constant; None if it is none."""
        name, _, offset = operand.partition("+")
        base: int | None = None
        if name in self.kernel.variables:
            variable = self.kernel.variables[name]
            base = self.global_variables[name] if variable.space == "global" else variable.offset
        elif name == self.kernel.dynamic_shared:
            base = self.dynamic_offset
        else:
            base = self.kernel.parameter_offsets.get(name)
        return None if base is None else base + int(offset or 0)

    def set(self, register: str, value: np.ndarray) -> None:
        """Sets a register of the threads that take part, by bits; integers are narrowed or extended."""
        if register == "_":
            return
        dtype, value = self.registers.dtype(register), np.asarray(value)
        if dtype.kind == "b":
            value = value.astype(bool, copy=False)
        elif value.dtype.itemsize == dtype.itemsize:
            value = value.view(dtype)
        elif value.dtype.kind == "i":
            value = value.astype(f"i{dtype.itemsize}").view(dtype)
        elif value.dtype.kind == "u" or value.dtype == bool:
            value = value.astype(dtype)
        else:
            raise self.fault(f"a {value.dtype} does not fit register {register}")
        self.registers.put(register, value, self.mask)

    def active(self) -> np.ndarray:
        """The threads that take part in the current instruction."""
        return np.ones(self.count, bool) if self.mask is None else self.mask

    # --- memory -----------------------------------------------------------------------------------------------------

    def address(self, operand: str) -> np.ndarray:
        """The address `[%r+8]` of every thread, in its space."""
        base, offset = _split_address(operand)
        register = self.registers.get(base)
        if register is not None:
            wide = register.astype(np.int64) if register.dtype.itemsize == 4 else register.view(np.int64)
            return wide + offset
        number = self.symbol(base)
        return np.full(self.count, (int(base, 0) if number is None else number) + offset, np.int64)

    def frame(self, name: str) -> np.ndarray:
        """Parameters of a function by name, (threads, bytes)."""
        if name not in self.frames:
            self.frames[name] = np.zeros((self.count, self.kernel.frames[name]), np.uint8)
        return self.frames[name]

    def load(self, space: str, address: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """Reads `size` bytes for each of some threads: (threads, size) uint8."""
        if space == "generic":
            data = np.empty((len(threads), size), np.uint8)
            for named, there, some in self._spaces(address, threads):
                data[some] = self.load(named, there, size, threads[some])
            return data
        at = self.locate(space, address[threads], size, threads)
        if space == "shared":
            return self.shared.read(at, size, threads)
        written, data = (
            (self.memory.written, self.memory.bytes) if space == "global" else (self.local_written, self.local)
        )
        flags = elements(written, size).take(at)
        if not all_true(flags):
            raise self.fault(f"read of {space} memory that nobody wrote", threads[~by_thread(flags)], address)
        if space == "global" and self.counters:
            self.counters.count_global(address[threads], threads, size, write=False)
        if space == "global" and self.block_races:
            self.block_races.read(self, at, size, threads)
        return elements(data, size).take(at).view(np.uint8).reshape(-1, size)

    def store(self, space: str, address: np.ndarray, threads: np.ndarray, data: np.ndarray) -> None:
        """Writes one row of bytes for each of some threads."""
        if space == "generic":
            for named, there, some in self._spaces(address, threads):
                self.store(named, there, threads[some], data[some])
            return
        size = data.shape[1]
        at = self.locate(space, address[threads], size, threads)
        values = elements(data, size)[:, 0]
        if space == "shared":
            self.shared.write(at, size, threads, values)
            return
        if space == "global":
            if self.counters:
                self.counters.count_global(address[threads], threads, size, write=True)
            if self.block_races:
                self.block_races.write(self, at, size, threads)
            bytes_, written = self.memory.bytes, self.memory.written
        else:
            bytes_, written = self.local, self.local_written
        elements(bytes_, size)[at] = values
        set_true(written, size, at)

    def _spaces(self, address: np.ndarray, threads: np.ndarray) -> Iterator[tuple[str, np.ndarray, slice | np.ndarray]]:
        """What addresses that name no space mean: a space, the addresses in it, and which of the threads go there."""
        at = address[threads]
        local, shared = at // LOCAL_WINDOW == 1, at // SHARED_WINDOW == 1
        local &= at < BASE
        shared &= at < LOCAL_WINDOW
        if not (local.any() or shared.any()):
            yield "global", address, slice(None)
            return
        for space, some, base in (
            ("local", local, LOCAL_WINDOW),
            ("shared", shared, SHARED_WINDOW),
            ("global", ~(local | shared), 0),
        ):
            if some.any():
                yield space, address - base, np.flatnonzero(some)

    def locate(self, space: str, address: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """Where threads' accesses lie in a space's array, counted in elements of `size` bytes, after the checks."""
        shift: np.ndarray | int = 0
        if space == "global":
            offset, limit, allowed = address - BASE, self.memory.size, self.memory.allowed
        elif space == "shared":
            offset, limit, allowed = address, self.shared.size, self.shared.allowed
            shift = self.block_slot[threads] * (limit // size)
            if self.counters:
                self.counters.count_shared(address, threads, size)
        elif space == "local":
            offset, limit, allowed = address, self.local_size, None
            shift = threads * (limit // size)
        else:
            raise UnsupportedError(f"space .{space} is not supported: {self.current.text}")
        aligned = not int(np.bitwise_or.reduce(offset)) & (size - 1)
        if not aligned or offset.min() < 0 or offset.max() + size > limit:
            raise self._misplaced(space, offset, limit, allowed, address, size, threads)
        at = offset >> (size.bit_length() - 1)
        if allowed is not None and not all_true(elements(allowed, size).take(at)):
            raise self._misplaced(space, offset, limit, allowed, address, size, threads)
        return at + shift

    def _misplaced(
        self,
        space: str,
        offset: np.ndarray,
        limit: int,
        allowed: np.ndarray | None,
        address: np.ndarray,
        size: int,
        threads: np.ndarray,
    ) -> PhantomError:
        """The fault of accesses of which some are out of bounds or, if none are, misaligned."""
        outside = (offset < 0) | (offset + size > limit)
        if allowed is not None:
            inside = np.where(outside, 0, offset)
            outside |= ~(allowed[inside] & allowed[inside + size - 1])
        if not outside.any():
            return self.fault(f"misaligned access of {size} bytes of {space} memory", threads[address % size != 0])
        full = np.zeros(self.count, np.int64)
        full[threads] = address
        return self.fault(f"out-of-bounds access of {size} bytes of {space} memory", threads[outside], full)

    def block_name(self, thread: int) -> str:
        """The block of a thread, x,y,z."""
        return ",".join(str(int(self.special[f"%ctaid.{axis}"][thread])) for axis in "xyz")

    # --- errors -----------------------------------------------------------------------------------------------------

    def fault(self, what: str, threads: np.ndarray | None = None, address: np.ndarray | None = None) -> PhantomError:
        """The error of the current instruction, with the first thread at fault."""
        where = ""
        if threads is not None and len(threads):
            t = int(threads[0])
            thread = int(self.thread[t])
            where = f"; block {self.block_name(t)} thread {thread} (warp {thread // WARP} lane {thread % WARP})"
            where += f" and {len(threads) - 1} more" if len(threads) > 1 else ""
            if address is not None and self.memory.contains(int(address[t])):
                where += f"; {self.memory.describe(int(address[t]))}"
            elif address is not None:
                where += f"; address {int(address[t]):#x}"
        source = f" ({self.current.source})" if self.current.source else ""
        return PhantomError(
            f"{self.kernel.name}: {what}{where}; PTX line {self.current.line}: {self.current.text}{source}"
        )

    def _complain(self, what: str, threads: np.ndarray | None) -> None:
        raise self.fault(what, threads)


@cache
def _constant(operand: str, kind: str) -> np.ndarray:
    """A number: an integer, or the bits of a floating-point number behind 0f or 0d."""
    dtype = TYPES[kind]
    if operand[:2].lower() in ("0f", "0d"):
        wide = np.dtype(f"f{len(operand) // 2 - 1}")
        value = np.frombuffer(bytes.fromhex(operand[2:])[::-1], wide)
        value = value.view(dtype if dtype.itemsize == wide.itemsize else UNSIGNED[wide.itemsize]).copy()
    else:
        bits = int(operand.rstrip("U"), 0) & ((1 << (8 * dtype.itemsize)) - 1)
        value = np.array([bits], np.uint64).astype(UNSIGNED[dtype.itemsize]).view(dtype)
    value.flags.writeable = False
    return value


@cache
def _split_address(operand: str) -> tuple[str, int]:
    """What an address begins with, and the constant behind it."""
    base, _, offset = operand.strip("[]").strip().partition("+")
    return base, int(offset or 0)


def shared_bytes(instruction: Instruction) -> int:
    """The least that an instruction accesses of shared memory at once, 0 if it does not."""
    if instruction.opcode == "cp" and instruction.has("async") and len(instruction.operands) > 2:
        return int(instruction.operands[2])
    if instruction.opcode == "ldmatrix":
        return 16
    if instruction.opcode not in ("ld", "st", "atom", "red", "ldu") or instruction.has(
        "global", "local", "param", "const"
    ):
        return 0
    many = [len(vector(operand)) for operand in instruction.operands]
    return TYPES[instruction.types()[-1]].itemsize * max(many)

"""A launch: the checks that a driver makes, then all blocks, some at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tests.phantom import scheduler
from tests.phantom.architecture import CURRENT
from tests.phantom.block_races import BlockRaces, order_blocks
from tests.phantom.counters import Counters
from tests.phantom.errors import PhantomError, UnsupportedError
from tests.phantom.machine import Machine
from tests.phantom.memory import Memory
from tests.phantom.opcodes import CONTROL, EXECUTE
from tests.phantom.ptx import Kernel, parse

MOST_THREADS = 1024
MOST_SHARED = CURRENT.most_shared
"""Shared memory of a block, dynamic included, if more was asked for than is UNASKED."""

UNASKED = 48 << 10
"""Shared memory of a block, dynamic included, that need not be asked for; the most that is not dynamic."""

THREADS_TOGETHER = 8192
"""Threads that run in lockstep: enough to make NumPy's overhead small, few enough to stay in the cache."""


@dataclass(frozen=True)
class Options:
    """How to run launches.

    Attributes:
        check_races: Look for races in shared memory.
        check_block_races: Look for races between blocks in global memory.
        check_shared: Refuse reads of shared memory that nobody wrote or that lies a little behind the block's. Kernels of
            others may fetch ahead what they never use.
        count: Count what `Counters` has beside the kernel's name.
        only_block: Run this block alone, to debug it; counted x first.
        only_launch: The launch of an op that `only_block` is about; later ones do not run.
        trace: Print what this thread of that block does, of block 0 if there is no `only_block`.
    """

    check_races: bool = True
    check_block_races: bool = True
    check_shared: bool = True
    count: bool = True
    only_block: int | None = None
    only_launch: int = 0
    trace: int | None = None


DEFAULT = Options()


@cache
def load_kernel(text: str, entry: str | None = None) -> Kernel:
    """Parses a kernel, once.

    Raises:
        UnsupportedError: It has an instruction that the phantom GPU does not know.
    """
    kernel = parse(text, entry)
    unknown = sorted({i.opcode for i in kernel.instructions} - EXECUTE.keys() - CONTROL)
    if unknown:
        raise UnsupportedError(f"{kernel.name}: instructions not supported: {', '.join(unknown)}")
    return kernel


def launch(
    kernel: Kernel,
    memory: Memory,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: Sequence[bytes],
    dynamic_shared: int = 0,
    options: Options = DEFAULT,
    most_dynamic: int | None = None,
) -> Counters:
    """Runs a kernel.

    Args:
        kernel: From `load_kernel`.
        memory: Global memory.
        grid: Blocks in x, y, z.
        block: Threads of a block in x, y, z.
        arguments: The bytes of each parameter.
        dynamic_shared: Bytes of dynamic shared memory.
        options: See `Options`.
        most_dynamic: The dynamic shared memory that was asked for; None for what is left of UNASKED.

    Returns:
        What it did, counted.

    Raises:
        PhantomError: The launch is refused, or the kernel does something wrong.
    """
    _check_launch(kernel, grid, block, arguments, dynamic_shared, most_dynamic)
    parameters = bytearray(kernel.parameter_bytes())
    for parameter, data in zip(kernel.parameters, arguments, strict=True):
        parameters[parameter.offset : parameter.offset + parameter.size] = data
    variables = {}
    for variable in kernel.variables.values():
        if variable.space == "global":
            variables[variable.name] = memory.allocate(variable.size)
            memory.write(variables[variable.name], variable.data)
    counters = Counters(kernel.name, grid, block, dynamic_shared)
    together = max(1, THREADS_TOGETHER // int(np.prod(block)))
    blocks = np.arange(np.prod(grid)) if options.only_block is None else np.array([options.only_block])
    if blocks[-1] >= np.prod(grid) or (options.trace or 0) >= np.prod(block):
        raise PhantomError(
            f"{kernel.name}: no block {blocks[-1]} or thread {options.trace} in {grid} blocks of {block} threads"
        )
    look = options.check_block_races and len(blocks) > 1 and not order_blocks(kernel)
    block_races = BlockRaces(memory, kernel, grid) if look else None
    try:
        with np.errstate(all="ignore"):
            for begin in range(0, len(blocks), together):
                traced = begin == 0 and options.trace is not None
                machine = Machine(
                    kernel,
                    memory,
                    grid,
                    block,
                    blocks[begin : begin + together],
                    bytes(parameters),
                    dynamic_shared,
                    variables,
                    counters if options.count else None,
                    options.check_races,
                    options.check_shared,
                    block_races,
                    options.trace if traced else None,
                )
                scheduler.run(machine)
        if block_races:
            block_races.finish()
    finally:
        for address in variables.values():
            memory.free(address)
    return counters


def _check_launch(
    kernel: Kernel,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[bytes],
    dynamic_shared: int,
    most_dynamic: int | None,
) -> None:
    threads = int(np.prod(block))
    if min(*grid, *block) < 1:
        raise PhantomError(f"{kernel.name}: a launch of {grid} blocks of {block} threads: each must be at least 1")
    if grid[1] > 65535 or grid[2] > 65535:
        raise PhantomError(f"{kernel.name}: a grid of {grid}: at most 65535 blocks in y and z")
    limit = kernel.max_threads or MOST_THREADS
    if threads > min(limit, MOST_THREADS):
        raise PhantomError(f"{kernel.name}: {threads} threads in a block, at most {min(limit, MOST_THREADS)}")
    fixed = sum(v.size for v in kernel.variables.values() if v.space == "shared")
    most = UNASKED if most_dynamic is None else min(fixed + most_dynamic, MOST_SHARED)
    if fixed > UNASKED or fixed + dynamic_shared > most:
        raise PhantomError(
            f"{kernel.name}: {fixed} + {dynamic_shared} bytes of shared memory, at most {UNASKED} and with dynamic {most}"
        )
    expected = [p.size for p in kernel.parameters]
    if [len(a) for a in arguments] != expected:
        raise PhantomError(f"{kernel.name}: arguments of {[len(a) for a in arguments]} bytes, expected {expected}")

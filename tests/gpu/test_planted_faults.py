"""Faults planted in the compiled kernels: the phantom, or a wrong number, must give each of them away."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest

from max_whisper import ops
from tests.kernels import references as cpu_references
from tests.phantom import install
from tests.phantom.architecture import CURRENT, H100
from tests.phantom.ptx import Instruction, Kernel

from . import (
    references,
    test_attention,
    test_conv1d,
    test_embed,
    test_greedy,
    test_layer_norm,
    test_linear,
    test_log_mel,
)
from .harness import check

pytestmark = pytest.mark.gpu


def linear(rng, rows: int) -> None:
    check(ops.linear, "f16", test_linear.arguments(rng, "f16", rows, 72, 136), references.linear, gelu=False)


def conv1d(rng) -> None:
    check(ops.conv1d, "f16", test_conv1d.arguments(rng, "f16", 1, 258, 8, 24), references.conv1d, stride=1)


def embed(rng) -> None:
    check(ops.embed, "f16", test_embed.arguments(rng, "f16", 3, 7, 64), test_embed.reference, n_vocab=test_embed.V)


def greedy(rng) -> None:
    mask = np.zeros(test_greedy.V, np.uint8)
    rules = np.array([test_greedy.EVERYTHING] * 2, np.int32)
    hidden, at, table = test_greedy.rows(rng, "f16", 2, 64)
    test_greedy.check_greedy("f16", hidden, at, table, mask, rules)


def greedy_step(rng) -> None:
    mask = np.zeros(test_greedy.V, np.uint8)
    test_greedy.check_step(*test_greedy.rows(rng, "f16", 17, 8), mask, *test_greedy.told(rng, 17, mask))


def layer_norm(rng) -> None:
    arguments = test_layer_norm.arguments(rng, "f16", (17, 1), 384, 1)
    check(ops.layer_norm, "f16", arguments, cpu_references.layer_norm)


def log_mel(rng) -> None:
    test_log_mel.check("f32", test_log_mel.arguments(rng, "f32", 1, 9000, 1500))


def attention(rng, queries: int, keys: int) -> None:
    test_attention.test_attention(rng, (1, queries, keys, 1), "f16")


def cached_attention(rng, length: int) -> None:
    test_attention.test_cached_attention(rng, [length, 1], "f16")


KEYS = 385 if CURRENT is H100 else 129
"""So many that stages of shared memory are filled again: for each of two groups 3, of 64 keys, or of one 2."""

RUNS: dict[str, Callable[[np.random.Generator], None]] = {
    "linear, many rows": lambda rng: linear(rng, 129),
    "linear, few rows": lambda rng: linear(rng, 5),
    "linear, normalised rows": lambda rng: test_linear.test_of_normalised_rows(rng, "f16", (5, 24, 136)),
    "attention, many queries": lambda rng: attention(rng, 97, KEYS),
    "attention, one query": lambda rng: attention(rng, 1, 769),
    "cached attention": lambda rng: cached_attention(rng, 5),
    "convolution": conv1d,
    "layer norm": layer_norm,
    "log-mel": log_mel,
    "embedding": embed,
    "greedy": greedy,
    "greedy, step": greedy_step,
}


def nothing(at: Instruction) -> Instruction:
    return replace(at, text="membar.cta", parts=("membar", "cta"), operands=[])


def no_barrier(at: Instruction) -> Instruction:
    return nothing(at) if at.opcode in ("bar", "barrier") and "warp" not in at.parts else at


def no_wait(at: Instruction) -> Instruction:
    return nothing(at) if at.opcode == "cp" and at.has("wait_group", "wait_all") else at


def swapped_fragments(at: Instruction) -> Instruction:
    if at.opcode != "mma":
        return at
    first, second, *rest = (name.strip() for name in at.operands[1][1:-1].split(","))
    return replace(at, operands=[at.operands[0], "{" + ", ".join([second, first, *rest]) + "}", *at.operands[2:]])


def near_lane(at: Instruction) -> Instruction:
    """Lanes pass values half as far: the sum of a warp misses half of it."""
    if at.opcode != "shfl" or not at.operands[2].isdigit():
        return at
    return replace(at, operands=[*at.operands[:2], str(int(at.operands[2]) // 2), *at.operands[3:]])


def bound_too_far(at: Instruction) -> Instruction:
    if at.opcode != "setp" or at.parts[-1] not in ("s32", "u32", "s64", "u64"):
        return at
    further = {"lt": "le", "ge": "gt", "gt": "ge", "le": "lt"}
    return replace(at, parts=(at.parts[0], further.get(at.parts[1], at.parts[1]), *at.parts[2:]))


def narrow_store(at: Instruction) -> Instruction:
    """The last element of every vector that is stored to global memory stays behind."""
    if at.opcode != "st" or not at.has("global") or not at.operands[1].startswith("{"):
        return at
    names = at.operands[1][1:-1].split(",")
    return replace(at, operands=[at.operands[0], "{" + ",".join([*names[:-1], names[0]]) + "}"])


def one_block(at: Instruction) -> Instruction:
    """Every block does what the first one should do."""
    if at.opcode != "mov" or not at.operands[-1].startswith("%ctaid"):
        return at
    return replace(at, operands=[at.operands[0], "0"])


def no_zeros(at: Instruction) -> Instruction:
    """Sums are not set to zero before they begin."""
    return nothing(at) if at.opcode == "mov" and at.operands[-1] == "0f00000000" else at


def only_the_first_warp_waits(kernel: Kernel) -> Kernel:
    first = Instruction("setp", ("setp", "lt", "u32"), ["%first", "%tid.x", "32"], None, False, 0, "")
    waits = [replace(at, guard="%first") if no_wait(at) is not at else at for at in kernel.instructions]
    return replace(
        kernel,
        registers={**kernel.registers, "%first": np.dtype(bool)},
        instructions=[first, *waits],
        labels={name: at + 1 for name, at in kernel.labels.items()},
    )


def barrier_behind_copies(kernel: Kernel) -> Kernel:
    """Copies to the stage that was just read start on the wrong side of the barrier that ends the reading."""
    instructions, labels = list(kernel.instructions), kernel.labels
    for begin in range(len(instructions)):
        if no_barrier(instructions[begin]) is instructions[begin]:
            continue
        end = begin + 1
        while instructions[end].opcode not in ("ldmatrix", "wgmma", "bar", "ret"):
            end += 1
        copies = [at for at in range(begin, end) if instructions[at].opcode == "cp"]
        if copies:
            last = copies[-1]
            instructions[begin : last + 1] = [*instructions[begin + 1 : last + 1], instructions[begin]]
            labels = {name: at - (begin < at <= last + 1) for name, at in labels.items()}
    return replace(kernel, instructions=instructions, labels=labels)


OF_KERNELS = (only_the_first_warp_waits, barrier_behind_copies)
"""Faults of whole kernels, not of instructions."""

COPIES = [no_barrier, no_wait, only_the_first_warp_waits]
PRODUCTS = [*COPIES, swapped_fragments, no_zeros, bound_too_far, one_block]

FAULTS = {
    "linear, many rows": [*PRODUCTS, narrow_store],
    "linear, few rows": [no_barrier, swapped_fragments, no_zeros, bound_too_far, one_block],
    "linear, normalised rows": [no_barrier, swapped_fragments, near_lane, no_zeros, bound_too_far, one_block],
    "attention, many queries": [*PRODUCTS, barrier_behind_copies, near_lane],
    "attention, one query": [no_barrier, near_lane, no_zeros, bound_too_far, one_block],
    "cached attention": [no_barrier, near_lane, no_zeros, bound_too_far, narrow_store, one_block],
    "convolution": [*PRODUCTS, narrow_store],
    "layer norm": [near_lane, no_zeros, bound_too_far, narrow_store, one_block],
    "log-mel": [no_barrier, no_zeros, bound_too_far, one_block],
    "embedding": [bound_too_far, narrow_store, one_block],
    "greedy": [*PRODUCTS, near_lane],
    "greedy, step": [no_barrier, near_lane, no_zeros, bound_too_far, narrow_store, one_block],
}


def no_publication(at: Instruction) -> Instruction:
    return nothing(at) if at.opcode == "fence" and at.has("proxy") else at


def no_products_awaited(at: Instruction) -> Instruction:
    return nothing(at) if at.opcode == "wgmma" and at.has("wait_group") else at


def another_transposition(at: Instruction) -> Instruction:
    """What tensor cores read by rows they read by columns, and the other way round."""
    if at.opcode != "wgmma" or not at.has("mma_async"):
        return at
    return replace(at, operands=[*at.operands[:-1], str(1 - int(at.operands[-1]))])


WARPGROUPS = [
    *COPIES,
    *(no_publication, no_products_awaited, another_transposition),
    *(no_zeros, bound_too_far, one_block),
]

if CURRENT is H100:
    FAULTS = {
        "linear, many rows": [*WARPGROUPS, narrow_store],
        "convolution": [*WARPGROUPS, narrow_store],
        "attention, many queries": [*WARPGROUPS, barrier_behind_copies, near_lane],
    }
    RUNS = {name: RUNS[name] for name in FAULTS}

SAYS = {
    no_barrier: "race|nobody wrote",
    no_wait: "race|nobody wrote",
    one_block: "race between blocks",
    only_the_first_warp_waits: "nobody wrote",
    barrier_behind_copies: "shared-memory race: write after another thread's read",
    no_publication: "not published",
}
"""What the phantom calls a fault, where it does not depend on the numbers whether they come out wrong."""


@cache
def is_clean_without(name: str) -> None:
    RUNS[name](np.random.default_rng(0))


@contextmanager
def altered(change: Callable[[Kernel, tuple[int, int, int]], tuple[Kernel, tuple[int, int, int]]]) -> Iterator[None]:
    phantom = install.installed
    if phantom is None:
        pytest.skip("faults are planted on the phantom only")
    phantom.alter = change
    try:
        yield
    finally:
        phantom.alter = None


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name, faults in FAULTS.items() for fault in faults],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_is_found(rng, name, fault):
    is_clean_without(name)
    changed = False

    def plant(kernel: Kernel, grid: tuple[int, int, int]) -> tuple[Kernel, tuple[int, int, int]]:
        nonlocal changed
        planted = (
            fault(kernel)
            if fault in OF_KERNELS
            else replace(kernel, instructions=[fault(at) for at in kernel.instructions])
        )
        changed |= planted.instructions != kernel.instructions
        return planted, grid

    with altered(plant), pytest.raises(AssertionError, match=SAYS.get(fault)):
        RUNS[name](rng)
    assert changed, "there is nothing of the kind in the kernel"


@pytest.mark.parametrize("name", RUNS)
def test_a_missing_block_is_found(rng, name):
    def shrink(kernel: Kernel, grid: tuple[int, int, int]) -> tuple[Kernel, tuple[int, int, int]]:
        axis = int(np.argmax(grid))
        return kernel, tuple(n - (i == axis and n > 1) for i, n in enumerate(grid))  # type: ignore[return-value]

    is_clean_without(name)
    with altered(shrink), pytest.raises(AssertionError):
        RUNS[name](rng)


@pytest.mark.parametrize("name", ["linear, many rows", "convolution", "attention, many queries"])
def test_shared_memory_that_was_not_asked_for_is_found(rng, name):
    is_clean_without(name)
    phantom = install.installed or pytest.skip("faults are planted on the phantom only")
    with patch.dict(phantom.most_dynamic, clear=True), pytest.raises(AssertionError, match="bytes of shared memory"):
        RUNS[name](rng)

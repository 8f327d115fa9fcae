"""Counters on accesses whose cost is known."""

import numpy as np
import pytest

from tests.phantom.programs import run

ARRAY = np.zeros(1 << 12, np.float32)


def address(stride: int) -> str:
    return f"    mul.wide.u32 %d19, %r31, {stride};\n    add.s64 %d20, %d0, %d19;\n"


@pytest.mark.parametrize(
    ("stride", "load", "sectors", "requested"),
    [
        (4, "ld.global.f32 %f1, [%d20];", 8, 128 * 2),  # of two warps: 2 x 128 bytes
        (16, "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%d20];", 32, 512 * 2),
        (128, "ld.global.f32 %f1, [%d20];", 64, 128 * 2),  # a sector per lane
        (0, "ld.global.f32 %f1, [%d20];", 2, 128 * 2),  # one sector per warp
    ],
)
def test_sectors(memory, stride, load, sectors, requested):
    _, counters = run(memory, address(stride) + load, [ARRAY], threads=64)
    assert (counters.sectors_read, counters.global_read, counters.requests) == (sectors, requested, 2)
    assert counters.sectors_written == counters.global_written == 0


def test_writes(memory):
    body = address(4) + "setp.lt.u32 %p1, %r31, 5; @%p1 st.global.f32 [%d20], 0f00000000;"
    _, counters = run(memory, body, [ARRAY], threads=64)
    assert (counters.sectors_written, counters.global_written, counters.requests) == (1, 20, 1)
    assert counters.moved == 32


@pytest.mark.parametrize(
    ("stride", "store", "passes", "ideal"),
    [
        (4, "st.shared.b32 [%r30], %r31;", 1, 1),
        (8, "st.shared.b32 [%r30], %r31;", 2, 1),
        (128, "st.shared.b32 [%r30], %r31;", 32, 1),
        (16, "st.shared.v4.b32 [%r30], {%r31, %r31, %r31, %r31};", 4, 4),
        (32, "st.shared.v4.b32 [%r30], {%r31, %r31, %r31, %r31};", 8, 4),
        (8, "st.shared.v2.b32 [%r30], {%r31, %r31};", 2, 2),
    ],
)
def test_bank_conflicts(memory, stride, store, passes, ideal):
    body = f"    mul.lo.u32 %r29, %r31, {stride};\n    mov.b32 %r30, tile;\n    add.s32 %r30, %r30, %r29;\n" + store
    _, counters = run(memory, body, shared=4096)
    assert (counters.shared_wavefronts, counters.shared_ideal) == (passes, ideal)
    assert counters.bank_conflicts == passes - ideal


def test_one_word_for_all_lanes_is_one_pass(memory):
    body = "setp.eq.u32 %p1, %r31, 0; @%p1 st.shared.b32 [tile], 1; bar.sync 0; ld.shared.b32 %r1, [tile];"
    _, counters = run(memory, body)
    assert counters.shared_wavefronts == 2
    assert counters.barriers == 1


def test_instructions_are_counted_by_warp(memory):
    _, counters = run(memory, "add.s32 %r1, %r31, 1; add.s32 %r1, %r1, 1;", grid=(3, 1, 1), threads=96)
    assert counters.instructions["add"] == 2 * 3 * 3


RARE = """
    mov.b32 %r1, 0;
    setp.lt.u32 %p1, %r31, 4;
$loop:
    @%p1 bra $rare;
$met:
    add.u32 %r1, %r1, 1;
    ld.global.f32 %f1, [%d20];
    setp.lt.u32 %p2, %r1, 10;
    @%p2 bra $loop;
    bra $end;
$rare:
    mov.b32 %r2, 0;
    bra $met;
$end:
"""


def test_threads_sent_out_of_line_are_waited_for(memory):
    """Four lanes take, in every round, a detour that stands behind the loop: the loads are still the whole warp's."""
    _, counters = run(memory, address(4) + RARE, [ARRAY])
    assert counters.requests == 10
    assert counters.sectors_read == 40

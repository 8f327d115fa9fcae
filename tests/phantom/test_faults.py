"""Every kind of fault, planted: it must be found, and its neighbour without the fault must pass."""

import ctypes

import numpy as np
import pytest

from tests.phantom.driver.cuda import MOST_DYNAMIC_SHARED, Driver
from tests.phantom.errors import PhantomError
from tests.phantom.launch import MOST_SHARED, UNASKED, Options, launch, load_kernel
from tests.phantom.programs import run
from tests.phantom.types import TYPES, from_bfloat16

ADDRESS = """
    mul.wide.u32 %d19, %r31, 4;
    add.s64 %d20, %d0, %d19;
    mov.b32 %r30, tile;
    shl.b32 %r29, %r31, 2;
    add.s32 %r30, %r30, %r29;
    xor.b32 %r28, %r30, 128;
    setp.lt.u32 %p7, %r31, 32;
"""
"""%d20: element of this thread in the first array; %r30: its word in shared memory; %r28: that of a thread of the other
warp; %p7: whether this is the first warp."""

COPY = "cp.async.ca.shared.global [%r30], [%d20], 4;"
COMMIT = "cp.async.commit_group;"

ONES = np.ones(64, np.float32)

FAULTS = {
    "global read behind the end": ("ld.global.f32 %f1, [%d20+4];", "out-of-bounds access of 4 bytes of global memory"),
    "global write behind the end": ("st.global.f32 [%d20+8], 0f00000000;", "out-of-bounds access of 4 bytes of global"),
    "global read before the beginning": ("ld.global.f32 %f1, [%d20+-4];", "out-of-bounds access of 4 bytes of global"),
    "misaligned": (
        "setp.lt.u32 %p1, %r31, 62; @%p1 ld.global.v2.f32 {%f1, %f2}, [%d20];",
        "misaligned access of 8 bytes of global memory",
    ),
    "shared behind its array": ("st.shared.f32 [%r30+1020], 0f00000000;", "out-of-bounds access of 4 bytes of shared"),
    "shared memory that nobody wrote": ("ld.shared.f32 %f1, [%r30];", "read of shared memory that nobody wrote"),
    "division by zero": ("mov.b32 %r1, 0; div.u32 %r2, %r31, %r1;", "integer division by zero"),
    "write, then another's read": (
        "st.shared.b32 [%r30], %r31; xor.b32 %r29, %r29, 128; mov.b32 %r28, tile; add.s32 %r28, %r28, %r29;"
        "ld.shared.b32 %r1, [%r28];",
        "shared-memory race: read after another thread's write",
    ),
    "read, then another's write": (
        "st.shared.b32 [%r30], %r31; bar.sync 0; ld.shared.b32 %r1, [%r30]; xor.b32 %r29, %r29, 128;"
        "mov.b32 %r28, tile; add.s32 %r28, %r28, %r29; st.shared.b32 [%r28], %r31;",
        "shared-memory race: write after another thread's read",
    ),
    "two writers of one word": ("st.shared.b32 [tile], %r31;", "two threads write one byte at once"),
    "barrier that half the block reaches": (
        "setp.lt.u32 %p1, %r31, 32; @%p1 bra L1; bar.sync 0; bra L2; L1:\n bar.sync 1; L2:\n bar.sync 0;",
        "deadlock",
    ),
    "shuffle without all lanes": (
        "setp.lt.u32 %p1, %r31, 16; @%p1 bra L1; barrier.sync 0; bra L2; L1:\n"
        "shfl.sync.bfly.b32 %r1, %r31, 1, 31, 0xFFFFFFFF; barrier.sync 0; L2:\n",
        "deadlock",
    ),
    "barriers of half a warp each": (
        "setp.lt.u32 %p1, %r31, 16; @%p1 bra L1; bar.sync 0; bra L2; L1:\n bar.sync 0; L2:\n",
        "barrier in a warp that diverged",
    ),
    "barrier of half a warp, guarded": (
        "setp.lt.u32 %p1, %r31, 16; @%p1 barrier.sync.aligned 0; @!%p1 barrier.sync.aligned 0;",
        "barrier in a warp that diverged",
    ),
    "shuffle from a lane outside": (
        "setp.lt.u32 %p1, %r31, 16; @%p1 shfl.sync.idx.b32 %r1, %r31, 20, 31, 0xFFFF;",
        "shfl reads from an inactive lane",
    ),
    "asynchronous copy that is not waited for": (
        f"{COPY} {COMMIT} ld.shared.f32 %f1, [%r30];",
        "read of shared memory that nobody wrote",
    ),
    "asynchronous copy waited for one group too early": (
        f"{COPY} {COMMIT} {COMMIT} cp.async.wait_group 2; ld.shared.f32 %f1, [%r30];",
        "read of shared memory that nobody wrote",
    ),
    "asynchronous copies that one warp waits for": (
        f"{COPY} {COMMIT} @%p7 cp.async.wait_group 0; bar.sync 0; ld.shared.f32 %f1, [%r28];",
        r"read of shared memory that nobody wrote; block 0,0,0 thread 0 \(warp 0 lane 0\) and 31 more",
    ),
    "asynchronous copies that nobody waits for, as none is active": (
        f"{COPY} {COMMIT} setp.gt.u32 %p1, %r31, 63; @%p1 cp.async.wait_all; ld.shared.f32 %f1, [%r30];",
        "read of shared memory that nobody wrote",
    ),
    "asynchronous copies waited for, were groups of other warps this one's": (
        f"@%p7 {COPY} {COMMIT} @!%p7 {COMMIT} @%p7 cp.async.wait_group 1; @%p7 ld.shared.f32 %f1, [%r30];",
        "read of shared memory that nobody wrote",
    ),
    "asynchronous copies that only another warp closes into a group": (
        f"@%p7 {COPY} @!%p7 {COMMIT} cp.async.wait_group 0; @%p7 ld.shared.f32 %f1, [%r30];",
        "read of shared memory that nobody wrote",
    ),
    "asynchronous copies that landed, without a barrier": (
        f"{COPY} cp.async.wait_all; ld.shared.f32 %f1, [%r28];",
        "shared-memory race: read after another thread's write",
    ),
    "asynchronous copy to what others still read": (
        f"st.shared.b32 [%r30], %r31; bar.sync 0; ld.shared.b32 %r1, [%r28]; {COPY} bar.sync 0; cp.async.wait_all;",
        "shared-memory race: write after another thread's read.*: cp.async.ca",
    ),
    "asynchronous copy to what others just wrote": (
        f"st.shared.b32 [%r28], %r31; {COPY} bar.sync 0; cp.async.wait_all;",
        "shared-memory race: write after another thread's write.*: cp.async.ca",
    ),
    "write to where a copy is in flight": (
        f"{COPY} bar.sync 0; st.shared.b32 [%r28], %r31; bar.sync 0; cp.async.wait_all;",
        "shared-memory race: write to where a copy is in flight",
    ),
    "asynchronous copies to one place": (
        f"{COPY} {COMMIT} {COPY} cp.async.wait_all;",
        "shared-memory race: write to where a copy is in flight",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted(memory, name):
    body, message = FAULTS[name]
    with pytest.raises(PhantomError, match=message) as caught:
        run(memory, ADDRESS + body, [ONES], threads=64)
    assert "\n" not in str(caught.value)
    assert "PTX line" in str(caught.value)


CLEAN = {
    "global": "ld.global.f32 %f1, [%d20]; st.global.f32 [%d20], %f1;",
    "shared with a barrier": "st.shared.b32 [%r30], %r31; bar.sync 0; xor.b32 %r29, %r29, 128; mov.b32 %r28, tile;"
    "add.s32 %r28, %r28, %r29; ld.shared.b32 %r1, [%r28]; bar.sync 0; st.shared.b32 [%r28], %r1;",
    "shared within a warp": "st.shared.b32 [%r30], %r31; bar.warp.sync 0xFFFFFFFF; xor.b32 %r29, %r29, 64;"
    "mov.b32 %r28, tile; add.s32 %r28, %r28, %r29; ld.shared.b32 %r1, [%r28];",
    "all read one word": "setp.eq.u32 %p1, %r31, 0; @%p1 st.shared.b32 [tile], 7; bar.sync 0; ld.shared.b32 %r1, [tile];",
    "copy that is waited for": f"{COPY} {COMMIT} cp.async.wait_group 0; ld.shared.f32 %f1, [%r30];",
    "copies that each warp waits for when it wants": f"@%p7 {COPY} @%p7 cp.async.wait_all; @!%p7 {COPY} {COMMIT}"
    f"@%p7 {COMMIT} {COMMIT} @!%p7 cp.async.wait_group 1; bar.sync 0; ld.shared.f32 %f1, [%r28]; bar.sync 0; {COPY}",
    "barriers of half a warp each, not aligned": "setp.lt.u32 %p1, %r31, 16; @%p1 barrier.sync 0; @!%p1 barrier.sync 0;",
    "barrier of the lanes that are left": "setp.lt.u32 %p1, %r31, 40; @%p1 bra L1; ret; L1:\n bar.sync 0;",
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean(memory, name):
    run(memory, ADDRESS + CLEAN[name], [ONES], threads=64)


BLOCKS = """
    mov.u32 %r20, %ctaid.x; setp.eq.u32 %p1, %r20, 0; setp.eq.u32 %p2, %r20, 1; setp.eq.u32 %p3, %r20, 2;
"""

BLOCK_RACES = {
    "all write": ("st.global.f32 [%d20], 0f00000000;", "write (after a write of|at the same time as) block [012],0,0"),
    "one writes, another reads": (
        "@%p1 st.global.f32 [%d20], 0f00000000; @%p2 ld.global.f32 %f1, [%d20+-4];",
        "read after a write of block 0,0,0; block 1,0,0 thread 2 ",
    ),
    "one reads, another writes": (
        "@%p1 ld.global.f32 %f1, [%d20]; @%p2 st.global.f32 [%d20], 0f00000000;",
        "write after a read of block 0,0,0; block 1,0,0 thread 0 .*; byte 0 of a buffer of 256 bytes",
    ),
    "several read, the last of them writes": (
        "ld.global.f32 %f1, [%d20]; @%p3 st.global.f32 [%d20], 0f00000000;",
        "write after a read of several blocks; block 2,0,0",
    ),
    "neighbours of half a word": (
        "@%p1 st.global.b16 [%d20+2], %h1; @%p2 st.global.v2.b16 [%d20], {%h1, %h1};",
        "write after a write of block 0,0,0; block 1,0,0 thread 0 .*; byte 2 of a buffer",
    ),
}


@pytest.mark.parametrize("together", [8192, 64])
@pytest.mark.parametrize("name", BLOCK_RACES)
def test_races_between_blocks(memory, monkeypatch, name, together):
    """Blocks that run together and those that run one after another; again in a second launch of the kernel."""
    monkeypatch.setattr("tests.phantom.launch.THREADS_TOGETHER", together)
    body, message = BLOCK_RACES[name]
    guard = "setp.eq.u32 %p4, %r31, 0; @%p4 bra END;\n" if "+-4" in body else ""
    for _ in range(2):
        with pytest.raises(PhantomError, match=f"race between blocks: {message}"):
            run(memory, ADDRESS + BLOCKS + guard + body + "\nEND:\n", [ONES], threads=64, grid=(3, 1, 1))
    run(
        memory,
        ADDRESS + BLOCKS + guard + body + "\nEND:\n",
        [ONES],
        threads=64,
        grid=(3, 1, 1),
        options=Options(True, False),
    )


CLEAN_BLOCKS = {
    "all read": "ld.global.f32 %f1, [%d20];",
    "each its own": "ld.global.f32 %f1, [%d21]; st.global.f32 [%d21], %f1; ld.global.f32 %f1, [%d21];",
    "neighbours": "@%p1 st.global.b16 [%d20], %h1; @%p2 st.global.b16 [%d20+2], %h1;",
    "with a fence": "@%p1 st.global.f32 [%d20], 0f00000000; membar.gl; @%p2 ld.global.f32 %f1, [%d20];",
}


@pytest.mark.parametrize("together", [8192, 64])
@pytest.mark.parametrize("name", CLEAN_BLOCKS)
def test_clean_blocks(memory, monkeypatch, name, together):
    monkeypatch.setattr("tests.phantom.launch.THREADS_TOGETHER", together)
    own = "mul.wide.u32 %d21, %r20, 256; add.s64 %d21, %d20, %d21;"
    for _ in range(2):
        run(memory, ADDRESS + BLOCKS + own + CLEAN_BLOCKS[name], [np.tile(ONES, 3)], threads=64, grid=(3, 1, 1))


def test_races_are_not_looked_for_on_request(memory):
    body, _ = FAULTS["write, then another's read"]
    run(memory, ADDRESS + "st.shared.b32 [%r30], %r31; bar.sync 0;" + body, [ONES], threads=64, options=Options(False))


def test_what_others_fetch_ahead_is_let_pass_on_request(memory):
    body = "ld.shared.f32 %f1, [%r30]; ld.shared.f32 %f1, [%r30+1020];"
    run(memory, ADDRESS + body, [ONES], threads=64, options=Options(check_shared=False))


def test_the_place_is_named(memory):
    body = "setp.eq.u32 %p1, %r31, 37; @%p1 st.global.f32 [%d20+256], 0f00000000;"
    with pytest.raises(
        PhantomError, match=r"thread 37 \(warp 1 lane 5\); byte 404 of a buffer of 256 bytes; PTX line 2\d: @%p1"
    ):
        run(memory, ADDRESS + body, [ONES], threads=64)


def test_a_result_that_nobody_wrote(memory):
    body = "setp.lt.u32 %p1, %r31, 60; @%p1 st.global.f32 [%d20], 0f00000000;"
    with pytest.raises(PhantomError, match="copy to the host of 256 bytes, 16 of them never written"):
        run(memory, ADDRESS + body, [], [ONES], threads=64)


def test_an_endless_loop(memory, monkeypatch):
    monkeypatch.setattr("tests.phantom.scheduler.MOST_STEPS", 100)
    with pytest.raises(PhantomError, match="does not end"):
        run(memory, "L1:\n bra L1;")


@pytest.mark.parametrize(
    ("launched", "message"),
    [
        ({"block": (1025, 1, 1)}, "1025 threads in a block, at most 1024"),
        ({"grid": (0, 1, 1)}, "each must be at least 1"),
        ({"grid": (1, 70000, 1)}, "at most 65535 blocks in y and z"),
        ({"dynamic_shared": UNASKED + 1}, "at most 49152 and with dynamic 49152"),
        ({"dynamic_shared": 60_001, "most_dynamic": 60_000}, "at most 49152 and with dynamic 60000"),
        ({"dynamic_shared": MOST_SHARED + 1, "most_dynamic": MOST_SHARED + 1}, f"with dynamic {MOST_SHARED}"),
        ({"arguments": [b"1234"]}, r"arguments of \[4\] bytes, expected \[\]"),
    ],
)
def test_launches_that_a_driver_refuses(memory, launched, message):
    kernel = load_kernel(".version 8.0\n.target sm_80\n.visible .entry k()\n{\n ret;\n}")
    arguments = {"grid": (1, 1, 1), "block": (32, 1, 1), "arguments": [], **launched}
    with pytest.raises(PhantomError, match=message):
        launch(kernel, memory, **arguments)


def test_freed_memory(memory):
    address = memory.allocate(64)
    memory.write(address, np.zeros(64, np.uint8))
    memory.free(address)
    with pytest.raises(PhantomError, match="out of bounds"):
        memory.read(address, 64)
    with pytest.raises(PhantomError, match="no buffer begins there"):
        memory.free(address)


def test_shared_memory_that_must_be_asked_for(memory):
    """Half of what need not be asked for is not dynamic; the other half is free, a byte more is not."""
    text = f".version 8.0\n.target sm_80\n.visible .entry k()\n{{\n .shared .b8 tile[{UNASKED // 2}];\n ret;\n}}"
    driver, pointer = Driver(memory=memory), ctypes.c_uint64()
    image, name, to = ctypes.create_string_buffer(text.encode()), ctypes.create_string_buffer(b"k"), ctypes.addressof
    driver.cuModuleLoadData(to(pointer), to(image))
    driver.cuModuleGetFunction(to(pointer), pointer.value, to(name))
    function, start = pointer.value, (1, 1, 1, 32, 1, 1)
    driver.cuLaunchKernel(function, *start, UNASKED // 2, 0, 0)
    with pytest.raises(PhantomError, match="24576 \\+ 24577 bytes of shared memory"):
        driver.cuLaunchKernel(function, *start, UNASKED // 2 + 1, 0, 0)
    driver.cuFuncSetAttribute(function, MOST_DYNAMIC_SHARED, UNASKED)
    driver.cuLaunchKernel(function, *start, UNASKED, 0, 0)


@pytest.mark.parametrize(("kind", "register"), [("f16", "%h9"), ("bf16", "%h9"), ("f32", "%f9"), ("f64", "%e7")])
def test_sums_onto_what_nobody_set(memory, kind, register):
    """A register that nobody set is not a number: a sum that was never begun shows."""
    width = {"f32": "f32", "f64": "f64"}.get(kind, "b16")
    size = TYPES[kind].itemsize
    body = (
        f"add.rn.{kind} {register}, {register}, {register}; mul.wide.u32 %d19, %r31, {size}; add.s64 %d19, %d0, %d19;"
    )
    (sums,), _ = run(memory, f"{body} st.global.{width} [%d19], {register};", [], [np.empty(32, TYPES[kind])])
    assert np.isnan(from_bfloat16(sums) if kind == "bf16" else sums).all()

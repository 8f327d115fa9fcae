"""wgmma against NumPy, and what a kernel can do wrong with it."""

import numpy as np
import pytest

from tests.phantom.counters import Counters
from tests.phantom.errors import PhantomError, UnsupportedError
from tests.phantom.programs import run
from tests.phantom.types import from_bfloat16, to_bfloat16

F32 = np.float32
A, B = 0, 8192
"""Where the operands lie in shared memory: 64 rows of 128 bytes, then others."""

SWIZZLED = 1 << 62 | 64 << 32 | 1 << 16
"""A descriptor without its address."""

THREAD = np.arange(128)
ROW, COLUMN = 16 * (THREAD // 32) + THREAD % 32 // 4, 2 * (THREAD % 4)

COPY = """
    mul.lo.u32 %r1, %r31, 16;
    mov.u32 %r2, 0;
copying:
    add.u32 %r3, %r1, %r2;
    cvt.u64.u32 %d19, %r3;
    add.s64 %d20, %d0, %d19;
    ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%d20];
    mov.u32 %r8, tile;
    add.u32 %r8, %r8, %r3;
    st.shared.v4.b32 [%r8], {%r4, %r5, %r6, %r7};
    add.u32 %r2, %r2, 2048;
    setp.lt.u32 %p1, %r2, 16384;
    @%p1 bra copying;
"""
PUBLISH = "    fence.proxy.async.shared::cta;\n"
BARRIER = "    bar.sync 0;\n"
BEGIN, COMMIT, WAIT = (
    f"    wgmma.{w}.sync.aligned{n};\n" for w, n in [("fence", ""), ("commit_group", ""), ("wait_group", " 0")]
)


def encode(kind: str, x: np.ndarray) -> np.ndarray:
    """Bits of 16."""
    return to_bfloat16(x.astype(F32)) if kind == "bf16" else x.astype(np.float16).view(np.uint16)


def widen(kind: str, bits: np.ndarray) -> np.ndarray:
    return (from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16)).astype(np.float64)


def swizzled(rows: np.ndarray) -> np.ndarray:
    """Rows of 64 numbers as they lie in a tile: chunk c of row r at c XOR (r mod 8)."""
    chunks = rows.reshape(-1, 8, 8)
    places = np.arange(8) ^ np.arange(len(chunks))[:, None] % 8
    return np.take_along_axis(chunks, places[:, :, None], axis=1).reshape(rows.shape)


def product(kind: str, columns: int, k: int, a: str | None = None, transposed: int = 0, keeps: int = 1) -> str:
    """Adds a product of 16 terms to registers %f0 on; operands lie where `COPY` puts them."""
    sums = ", ".join(f"%f{i}" for i in range(columns // 2))
    step = 2048 if transposed else 32
    left = a or "%d10"
    trans = f"{transposed}" if a else f"0, {transposed}"
    return f"""
    mov.b64 %d10, {SWIZZLED | (A + 32 * k) >> 4};
    mov.b64 %d11, {SWIZZLED | (B + step * k) >> 4};
    setp.ne.b32 %p2, {keeps}, 0;
    wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {{{sums}}}, {left}, %d11, %p2, 1, 1, {trans};
    """


def store(columns: int) -> str:
    lines = f"    mul.wide.u32 %d19, %r31, {2 * columns};\n    add.s64 %d20, %d1, %d19;\n"
    return lines + "".join(f"    st.global.f32 [%d20+{4 * i}], %f{i};\n" for i in range(columns // 2))


def zero(columns: int) -> str:
    return "".join(f"    mov.f32 %f{i}, 0f00000000;\n" for i in range(columns // 2))


def execute(memory, tiles: np.ndarray, body: str, columns: int, **options) -> tuple[np.ndarray, Counters]:
    """Runs a body behind nothing; returns what threads hold as a matrix (64, columns)."""
    data = np.zeros(8192, np.uint16)
    data[: tiles.size] = tiles.ravel()
    (held,), counters = run(
        memory, body, [data], [np.empty((128, columns // 2), F32)], threads=128, shared=16384, **options
    )
    result = np.empty((64, columns))
    for i in range(columns // 2):
        result[ROW + i // 2 % 2 * 8, COLUMN + i // 4 * 8 + i % 2] = held[:, i]
    return result, counters


OVERWRITE = """
    mov.u32 %r8, tile;
    setp.eq.u32 %p4, %r31, 0;
    @%p4 st.shared.v4.b32 [%r8], {%r8, %r8, %r8, %r8};
"""
THERE = COPY + PUBLISH + BARRIER
ONE = BEGIN + product("f16", 8, 0) + COMMIT
NAMES_B = str(SWIZZLED | B >> 4)
FAULTS = {
    "not published": COPY + BARRIER + ONE + WAIT,
    "no barrier between": COPY + PUBLISH + ONE + WAIT,
    "nobody wrote": ONE + WAIT,
    "out of bounds": THERE + ONE.replace(NAMES_B, str(SWIZZLED | 2000)) + WAIT,
    "memory changed": THERE + ONE + BARRIER + OVERWRITE + WAIT,
    "fewer than the 128": THERE + "    setp.lt.u32 %p3, %r31, 96;\n    @!%p3 bra end;\n" + BEGIN + "end:\n",
}
"""Programs, by what is said of them."""


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("columns", [8, 16, 64])
def test_both_operands_in_shared_memory(memory, rng, kind, columns):
    a, b = (encode(kind, rng.standard_normal((rows, 64))) for rows in (64, columns))
    body = COPY + PUBLISH + BARRIER + zero(columns) + BEGIN
    body += "".join(product(kind, columns, k) for k in range(4)) + COMMIT + WAIT + store(columns)
    result, counters = execute(memory, swizzled(np.concatenate([a, b])), body, columns)
    np.testing.assert_allclose(result, widen(kind, a) @ widen(kind, b).T, rtol=1e-5, atol=1e-5)
    assert counters.tensor_core == 4 * 4 * columns // 8


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_one_operand_in_registers_the_other_transposed(memory, rng, kind):
    """A as threads hold it, B (64, 64) by rows; the first product forgets what the sums were."""
    a, b = encode(kind, rng.standard_normal((64, 16))), encode(kind, rng.standard_normal((16, 64)))
    pairs = [a[ROW + 8 * (i % 2)[None], COLUMN + 8 * (i // 2) + e] for i in np.arange(4)[:, None] for e in range(2)]
    words = np.stack(pairs, axis=-1).reshape(128, 4, 2).astype(np.uint16)
    tiles = np.concatenate([words.ravel(), swizzled(b).ravel()])  # 2 KB of fragments, which COPY moves as well
    data = np.zeros(8192, np.uint16)
    data[: words.size] = words.ravel()
    data[4096 : 4096 + b.size] = tiles[words.size :]
    body = (
        COPY
        + PUBLISH
        + BARRIER
        + """
    mul.wide.u32 %d19, %r31, 16;
    add.s64 %d20, %d0, %d19;
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%d20];
    """
    )
    body += BEGIN + product(kind, 64, 0, "{%r10, %r11, %r12, %r13}", transposed=1, keeps=0) + COMMIT + WAIT + store(64)
    result, _ = execute(memory, data, body, 64)
    np.testing.assert_allclose(result, widen(kind, a) @ widen(kind, b), rtol=1e-5, atol=1e-5)


def test_sums_arrive_at_the_wait(memory, rng):
    tiles = swizzled(encode("f16", rng.standard_normal((72, 64))))
    start = THERE + zero(8) + ONE
    early, _ = execute(memory, tiles, start + store(8) + WAIT, 8)
    assert not early.any()
    one_in_flight, _ = execute(memory, tiles, start + WAIT.replace("0;", "1;") + store(8) + WAIT, 8)
    assert not one_in_flight.any()


@pytest.mark.parametrize("message", FAULTS)
def test_faults(memory, rng, message):
    tiles = swizzled(encode("f16", rng.standard_normal((72, 64))))
    with pytest.raises(PhantomError, match=message):
        execute(memory, tiles, zero(8) + FAULTS[message] + store(8), 8)


@pytest.mark.parametrize("grid", [1, 4])
def test_blocks_of_less_than_a_warpgroup(memory, grid):
    """Four blocks of 96 threads are three times 128 threads, but no warpgroup."""
    with pytest.raises(PhantomError, match="fewer than the 128"):
        run(memory, BEGIN, threads=96, grid=(grid, 1, 1))


@pytest.mark.parametrize(
    "text", [product("f16", 8, 0).replace(str(SWIZZLED | B >> 4), str(B >> 4)), product("tf32", 8, 0)]
)
def test_what_is_not_supported(memory, rng, text):
    tiles = swizzled(encode("f16", rng.standard_normal((72, 64))))
    with pytest.raises(UnsupportedError):
        execute(memory, tiles, THERE + zero(8) + BEGIN + text + COMMIT + WAIT, 8)

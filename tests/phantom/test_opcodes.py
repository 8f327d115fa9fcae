"""Every opcode against NumPy, on random numbers and those that hurt."""

import math

import numpy as np
import pytest

from tests.phantom.errors import UnsupportedError
from tests.phantom.launch import load_kernel
from tests.phantom.programs import elementwise, run
from tests.phantom.types import from_bfloat16, join, to_bfloat16, to_tf32

U32, S32, F32, U64 = np.uint32, np.int32, np.float32, np.uint64


def u32(rng) -> np.ndarray:
    values = rng.integers(0, 2**32, 32, dtype=U32)
    values[:6] = 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 31
    return rng.permutation(values)


def f32(rng) -> np.ndarray:
    return (rng.standard_normal(32) * 10.0 ** rng.integers(-3, 4, 32)).astype(F32)


BINARY_INTEGER = {
    "add.s32": np.add,
    "sub.s32": np.subtract,
    "mul.lo.s32": np.multiply,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "min.u32": np.minimum,
    "max.u32": np.maximum,
    "min.s32": lambda a, b: np.minimum(a.view(S32), b.view(S32)),
    "max.s32": lambda a, b: np.maximum(a.view(S32), b.view(S32)),
    "mul.hi.u32": lambda a, b: ((a.astype(U64) * b) >> U64(32)).astype(U32),
    "mul.hi.s32": lambda a, b: ((a.view(S32).astype(np.int64) * b.view(S32)) >> 32).astype(S32),
}


@pytest.mark.parametrize("opcode", BINARY_INTEGER)
def test_integers(memory, rng, opcode):
    a, b = u32(rng), u32(rng)
    result = elementwise(memory, opcode + " {0}, {1}, {2};", [(a, "b32"), (b, "b32")], ("b32", U32))
    np.testing.assert_array_equal(result, BINARY_INTEGER[opcode](a, b).view(U32))


@pytest.mark.parametrize(("kind", "dtype"), [("u32", U32), ("s32", S32)])
def test_division(memory, rng, kind, dtype):
    a, b = u32(rng).view(dtype), u32(rng).view(dtype)
    b[b == 0] = 3
    a[(a == -(2**31)) & (b == -1)] = 5  # overflows
    for opcode, exact in (("div", lambda x, y: math.trunc(x / y) if abs(x) < 2**53 else x // y), ("rem", math.fmod)):
        result = elementwise(memory, opcode + f".{kind} {{0}}, {{1}}, {{2}};", [(a, "b32"), (b, "b32")], ("b32", dtype))
        expected = [int(exact(int(x), int(y))) for x, y in zip(a, b, strict=True)]
        np.testing.assert_array_equal(result, np.array(expected).astype(dtype))


@pytest.mark.parametrize(("opcode", "function"), [("add", np.add), ("sub", np.subtract)])
def test_carries(memory, rng, opcode, function):
    """Numbers of 64 bits in halves of 32."""
    a, b = (rng.integers(0, 2**64, 32, dtype=U64) for _ in range(2))
    halves = [(part.astype(U32), "b32") for x in (a, b) for part in (x & U64(0xFFFFFFFF), x >> U64(32))]
    for part, shift in (("%r1", 0), ("%r2", 32)):
        both = f"{opcode}.cc.u32 %r1, {{1}}, {{3}}; {opcode}c.u32 %r2, {{2}}, {{4}}; mov.b32 {{0}}, {part};"
        result = elementwise(memory, both, halves, ("b32", U32))
        np.testing.assert_array_equal(result, (function(a, b) >> U64(shift)).astype(U32))


def test_wide_products(memory, rng):
    a, b, c = u32(rng), u32(rng), rng.integers(0, 2**63, 32, dtype=U64)
    registers = [(a, "b32"), (b, "b32"), (c, "b64")]
    result = elementwise(memory, "mad.wide.u32 {0}, {1}, {2}, {3};", registers, ("b64", U64))
    np.testing.assert_array_equal(result, a.astype(U64) * b + c)
    result = elementwise(memory, "mul.wide.s32 {0}, {1}, {2};", registers[:2], ("b64", np.int64))
    np.testing.assert_array_equal(result, a.view(S32).astype(np.int64) * b.view(S32))
    result = elementwise(memory, "mad.lo.s32 {0}, {1}, {2}, {1};", registers[:2], ("b32", U32))
    np.testing.assert_array_equal(result, a * b + a)


def test_shifts(memory, rng):
    a, by = u32(rng), rng.integers(0, 40, 32, dtype=U32)
    inputs = [(a, "b32"), (by, "b32")]
    wide = a.astype(U64)
    expected = {
        "shl.b32": (wide << by).astype(U32) * (by < 32),
        "shr.u32": (wide >> by).astype(U32),
        "shr.s32": (a.view(S32).astype(np.int64) >> by.astype(np.int64)).astype(S32).view(U32),
    }
    for opcode, value in expected.items():
        result = elementwise(memory, opcode + " {0}, {1}, {2};", inputs, ("b32", U32))
        np.testing.assert_array_equal(result, value, err_msg=opcode)
    b = u32(rng)
    pair = b.astype(object) << 32 | a.astype(object)
    for direction in "lr":
        text = f"shf.{direction}.wrap.b32 {{0}}, {{1}}, {{2}}, {{3}};"
        result = elementwise(memory, text, [(a, "b32"), (b, "b32"), (by, "b32")], ("b32", U32))
        amounts = [int(n) & 31 for n in by]
        value = [
            (p << n >> 32 if direction == "l" else p >> n) & 0xFFFFFFFF for p, n in zip(pair, amounts, strict=True)
        ]
        np.testing.assert_array_equal(result, np.array(value, dtype=np.int64).astype(U32))


def test_bits(memory, rng):
    a = u32(rng)
    integers = [int(x) for x in a]
    expected = {
        "popc.b32": [x.bit_count() for x in integers],
        "clz.b32": [32 - x.bit_length() for x in integers],
        "brev.b32": [int(f"{x:032b}"[::-1], 2) for x in integers],
        "not.b32": [x ^ 0xFFFFFFFF for x in integers],
        "bfind.u32": [(x.bit_length() - 1) & 0xFFFFFFFF for x in integers],
    }
    for opcode, value in expected.items():
        result = elementwise(memory, opcode + " {0}, {1};", [(a, "b32")], ("b32", U32))
        np.testing.assert_array_equal(result, np.array(value).astype(U32), err_msg=opcode)


def test_fields(memory, rng):
    a, b = u32(rng), u32(rng)
    for position, length in ((0, 8), (5, 11), (31, 1), (4, 0), (0, 32)):
        field = [int(x) >> position & (1 << length) - 1 for x in a]
        result = elementwise(memory, f"bfe.u32 {{0}}, {{1}}, {position}, {length};", [(a, "b32")], ("b32", U32))
        np.testing.assert_array_equal(result, np.array(field).astype(U32))
        mask = ((1 << length) - 1) << position
        expected = [int(y) & ~mask | int(x) << position & mask for x, y in zip(a, b, strict=True)]
        text = f"bfi.b32 {{0}}, {{1}}, {{2}}, {position}, {length};"
        result = elementwise(memory, text, [(a, "b32"), (b, "b32")], ("b32", U32))
        np.testing.assert_array_equal(result, np.array(expected).astype(U32))
    result = elementwise(memory, "bfe.s32 {0}, {1}, 4, 8;", [(a, "b32")], ("b32", S32))
    np.testing.assert_array_equal(result, (a >> 4).astype(np.int8))


def test_permute_and_logic(memory, rng):
    a, b, c = u32(rng), u32(rng), u32(rng)
    inputs = [(a, "b32"), (b, "b32"), (c, "b32")]
    result = elementwise(memory, "prmt.b32 {0}, {1}, {2}, 0x5410;", inputs[:2], ("b32", U32))
    np.testing.assert_array_equal(result, a & 0xFFFF | b << 16)
    result = elementwise(memory, "lop3.b32 {0}, {1}, {2}, {3}, 0xE8;", inputs, ("b32", U32))
    np.testing.assert_array_equal(result, a & b | b & c | a & c)


FLOAT = {
    "add.rn.f32": np.add,
    "sub.rn.f32": np.subtract,
    "mul.rn.f32": np.multiply,
    "div.rn.f32": np.divide,
    "min.f32": np.fmin,
    "max.f32": np.fmax,
}


@pytest.mark.parametrize("opcode", FLOAT)
def test_float32(memory, rng, opcode):
    a, b = f32(rng), f32(rng)
    a[3] = np.nan
    result = elementwise(memory, opcode + " {0}, {1}, {2};", [(a, "f32"), (b, "f32")], ("f32", F32))
    np.testing.assert_array_equal(result, FLOAT[opcode](a, b))


def test_fused_multiply_add_rounds_once(memory, rng):
    a, b = f32(rng), f32(rng)
    c = (-a * b).astype(F32)
    result = elementwise(memory, "fma.rn.f32 {0}, {1}, {2}, {3};", [(a, "f32"), (b, "f32"), (c, "f32")], ("f32", F32))
    np.testing.assert_array_equal(result, (a.astype(np.float64) * b + c).astype(F32))
    assert result.any()  # the product's rounding error, which two roundings would lose


UNARY = {
    "ex2.approx.f32": np.exp2,
    "lg2.approx.f32": lambda x: np.log2(np.abs(x)),
    "rcp.approx.f32": np.reciprocal,
    "sqrt.rn.f32": lambda x: np.sqrt(np.abs(x)),
    "rsqrt.approx.f32": lambda x: 1 / np.sqrt(np.abs(x)),
    "neg.f32": np.negative,
    "abs.f32": np.abs,
    "sin.approx.f32": np.sin,
    "cos.approx.f32": np.cos,
    "tanh.approx.f32": np.tanh,
}


@pytest.mark.parametrize("opcode", UNARY)
def test_unary(memory, rng, opcode):
    a = rng.standard_normal(32).astype(F32)
    if opcode.startswith(("lg2", "sqrt", "rsqrt")):
        a = np.abs(a)
    result = elementwise(memory, opcode + " {0}, {1};", [(a, "f32")], ("f32", F32))
    np.testing.assert_allclose(result, UNARY[opcode](a), rtol=3e-7)


@pytest.mark.parametrize("kind", ["bf16x2", "f16x2"])
def test_pairs(memory, rng, kind):
    numbers = rng.standard_normal((3, 2, 32)).astype(F32)
    words = [join(pair, kind) for pair in numbers]
    widen = from_bfloat16 if kind == "bf16x2" else lambda bits: bits.view(np.float16).astype(F32)
    a, b, c = (np.stack([widen((w & 0xFFFF).astype(np.uint16)), widen((w >> 16).astype(np.uint16))]) for w in words)
    result = elementwise(
        memory, f"fma.rn.{kind} {{0}}, {{1}}, {{2}}, {{3}};", [(w, "b32") for w in words], ("b32", U32)
    )
    np.testing.assert_array_equal(result, join((a.astype(np.float64) * b + c).astype(F32), kind))
    result = elementwise(memory, f"add.{kind} {{0}}, {{1}}, {{2}};", [(w, "b32") for w in words[:2]], ("b32", U32))
    np.testing.assert_array_equal(result, join(a + b, kind))


def test_conversions(memory, rng):
    x = f32(rng) * F32(100)
    x[:4] = 2.5, -2.5, 1e20, np.nan
    integers = np.nan_to_num(np.clip(x.astype(np.float64), -(2**31), 2**31 - 1))
    for rounding, function in (("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)):
        result = elementwise(memory, f"cvt.{rounding}.s32.f32 {{0}}, {{1}};", [(x, "f32")], ("b32", S32))
        np.testing.assert_array_equal(result, function(integers).astype(np.int64).astype(S32), err_msg=rounding)
    x = f32(rng)
    bits = elementwise(memory, "cvt.rn.bf16.f32 {0}, {1};", [(x, "f32")], ("b16", np.uint16))
    np.testing.assert_array_equal(bits, to_bfloat16(x))
    assert (np.abs(from_bfloat16(bits) - x) <= np.abs(x) * 2.0**-8).all()
    half = elementwise(memory, "cvt.rn.f16.f32 {0}, {1};", [(x, "f32")], ("b16", np.float16))
    np.testing.assert_array_equal(half, x.astype(np.float16))
    np.testing.assert_array_equal(
        elementwise(memory, "cvt.f32.f16 {0}, {1};", [(half, "b16")], ("f32", F32)), half.astype(F32)
    )
    y = f32(rng)
    pair = elementwise(memory, "cvt.rn.bf16x2.f32 {0}, {1}, {2};", [(x, "f32"), (y, "f32")], ("b32", U32))
    np.testing.assert_array_equal(pair, join((y, x), "bf16x2"))
    narrow = u32(rng)
    result = elementwise(memory, "cvt.s64.s32 {0}, {1};", [(narrow, "b32")], ("b64", np.int64))
    np.testing.assert_array_equal(result, narrow.view(S32).astype(np.int64))
    result = elementwise(memory, "cvt.u64.u32 {0}, {1};", [(narrow, "b32")], ("b64", U64))
    np.testing.assert_array_equal(result, narrow.astype(U64))
    result = elementwise(memory, "cvt.rn.f32.s32 {0}, {1};", [(narrow, "b32")], ("f32", F32))
    np.testing.assert_array_equal(result, narrow.view(S32).astype(F32))


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(memory, rng, name):
    a, b = u32(rng), u32(rng)
    b[:9] = a[:9]
    select = "setp.{}.{} %p1, {{1}}, {{2}}; selp.b32 {{0}}, 1, 0, %p1;"
    for kind, dtype in (("u32", U32), ("s32", S32)):
        result = elementwise(memory, select.format(name, kind), [(a, "b32"), (b, "b32")], ("b32", U32))
        np.testing.assert_array_equal(result, COMPARISONS[name](a.view(dtype), b.view(dtype)))
    x, y = f32(rng), f32(rng)
    x[:9] = y[:9]
    x[0], y[1] = np.nan, np.nan
    nan = np.isnan(x) | np.isnan(y)
    inputs = [(x, "f32"), (y, "f32")]
    result = elementwise(memory, select.format(name, "f32"), inputs, ("b32", U32))
    np.testing.assert_array_equal(result, COMPARISONS[name](x, y) & ~nan)
    result = elementwise(memory, select.format(name + "u", "f32"), inputs, ("b32", U32))
    np.testing.assert_array_equal(result, COMPARISONS[name](x, y) | nan)


def test_predicates(memory, rng):
    a = u32(rng)
    text = (
        "setp.lt.u32 %p1, {1}, 1000; setp.gt.and.u32 %p2|%p3, {1}, 5, !%p1; @%p3 mov.b32 {0}, 7; @!%p3 mov.b32 {0}, 9;"
    )
    result = elementwise(memory, text, [(a, "b32")], ("b32", U32))
    np.testing.assert_array_equal(result, np.where((a > 5) & (a >= 1000), 9, 7))


def test_vectors_of_registers(memory, rng):
    a = rng.integers(0, 2**63, 32, dtype=U64)
    text = "mov.b64 {{%r1, %r2}}, {1}; mov.b64 {0}, {{%r2, %r1}};"
    np.testing.assert_array_equal(elementwise(memory, text, [(a, "b64")], ("b64", U64)), a >> U64(32) | a << U64(32))


SHUFFLES = {
    ("bfly", 5, 0x1F): lambda lane: lane ^ 5,
    ("down", 3, 0x1F): lambda lane: np.where(lane + 3 < 32, lane + 3, lane),
    ("up", 2, 0): lambda lane: np.where(lane >= 2, lane - 2, lane),
    ("idx", 9, 0x1F): lambda lane: np.full(32, 9),
    ("down", 1, 0x181F): lambda lane: np.where((lane + 1) % 8 != 0, lane + 1, lane),  # segments of 8
}


@pytest.mark.parametrize("shuffle", SHUFFLES, ids=str)
def test_shuffles(memory, rng, shuffle):
    mode, by, control = shuffle
    a = u32(rng)
    text = f"shfl.sync.{mode}.b32 {{0}}|%p1, {{1}}, {by}, {control}, 0xFFFFFFFF;"
    result = elementwise(memory, text, [(a, "b32")], ("b32", U32))
    np.testing.assert_array_equal(result, a[SHUFFLES[shuffle](np.arange(32))])


def test_votes_and_reductions(memory, rng):
    a = u32(rng)
    text = "setp.gt.u32 %p1, {1}, 0x80000000; vote.sync.ballot.b32 {0}, %p1, 0xFFFFFFFF;"
    ballot = sum(1 << i for i in range(32) if a[i] > 0x80000000)
    assert (elementwise(memory, text, [(a, "b32")], ("b32", U32)) == ballot).all()
    for opcode, function in (("add.u32", np.add), ("max.u32", np.maximum), ("xor.b32", np.bitwise_xor)):
        text = f"redux.sync.{opcode} {{0}}, {{1}}, 0xFFFFFFFF;"
        expected = function.reduce(a, dtype=U32)
        assert (elementwise(memory, text, [(a, "b32")], ("b32", U32)) == expected).all()


def test_atomics_and_constants(memory, rng):
    a = rng.integers(0, 100, 32, dtype=U32)
    body = """
    setp.eq.u32 %p1, %r31, 0;
    @%p1 st.shared.b32 [tile], 0;
    bar.sync 0;
    mul.wide.u32 %d19, %r31, 4;
    add.s64 %d20, %d0, %d19;
    ld.global.b32 %r1, [%d20];
    atom.shared.add.u32 %r2, [tile], %r1;
    bar.sync 0;
    ld.shared.b32 %r3, [tile];
    ld.const.b32 %r4, [table+4];
    add.s32 %r3, %r3, %r4;
    add.s64 %d20, %d1, %d19;
    st.global.b32 [%d20], %r3;
    """
    declarations = ".const .align 4 .b32 table[2] = {5, 1000};"
    (result,), _ = run(memory, body, [a], [np.empty(32, U32)], declarations=declarations)
    assert (result == a.sum() + 1000).all()


def test_asynchronous_copy_pads_with_zeros(memory, rng):
    a = u32(rng)
    body = """
    mul.wide.u32 %d19, %r31, 4;
    shl.b32 %r1, %r31, 2;
    mov.b32 %r2, tile;
    add.s32 %r2, %r2, %r1;
    add.s64 %d20, %d0, %d19;
    setp.lt.u32 %p1, %r31, 20;
    selp.b32 %r3, 4, 0, %p1;
    cp.async.ca.shared.global [%r2], [%d20], 4, %r3;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.b32 %r4, [%r2];
    add.s64 %d20, %d1, %d19;
    st.global.b32 [%d20], %r4;
    """
    (result,), _ = run(memory, body, [a], [np.empty(32, U32)])
    np.testing.assert_array_equal(result, np.where(np.arange(32) < 20, a, 0))


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_tensor_core(memory, rng, kind):
    """ldmatrix and mma as kernels use them: C (16 x 8) = A (16 x 16) B (16 x 8), B stored by columns."""
    encode = to_bfloat16 if kind == "bf16" else lambda x: x.astype(np.float16).view(np.uint16)
    widen = from_bfloat16 if kind == "bf16" else lambda bits: bits.view(np.float16).astype(F32)
    a, b = encode(rng.standard_normal((16, 16)).astype(F32)), encode(rng.standard_normal((8, 16)).astype(F32))
    body = f"""
    mul.wide.u32 %d19, %r31, 16;
    shl.b32 %r1, %r31, 4;
    mov.b32 %r2, tile;
    add.s32 %r2, %r2, %r1;
    add.s64 %d20, %d0, %d19;
    ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%d20];
    st.shared.v4.b32 [%r2], {{%r3, %r4, %r5, %r6}};
    setp.lt.u32 %p1, %r31, 16;
    add.s64 %d20, %d1, %d19;
    @%p1 ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%d20];
    @%p1 st.shared.v4.b32 [%r2+512], {{%r3, %r4, %r5, %r6}};
    bar.sync 0;
    and.b32 %r7, %r31, 15;
    shl.b32 %r7, %r7, 5;
    shr.u32 %r8, %r31, 4;
    shl.b32 %r8, %r8, 4;
    add.s32 %r7, %r7, %r8;
    mov.b32 %r2, tile;
    add.s32 %r7, %r7, %r2;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r7];
    and.b32 %r7, %r31, 7;
    shl.b32 %r7, %r7, 5;
    shr.u32 %r8, %r31, 3;
    and.b32 %r8, %r8, 1;
    shl.b32 %r8, %r8, 4;
    add.s32 %r7, %r7, %r8;
    add.s32 %r7, %r7, %r2;
    ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r14, %r15}}, [%r7+512];
    mov.f32 %f1, 0f3F800000;
    mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32
        {{%f2, %f3, %f4, %f5}}, {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, {{%f1, %f1, %f1, %f1}};
    mul.wide.u32 %d19, %r31, 16;
    add.s64 %d20, %d2, %d19;
    st.global.v4.f32 [%d20], {{%f2, %f3, %f4, %f5}};
    """
    (result,), counters = run(memory, body, [a, b], [np.empty((32, 4), F32)])
    expected = widen(a).astype(np.float64) @ widen(b).T + 1
    lane = np.arange(32)
    for i in range(4):
        np.testing.assert_allclose(
            result[:, i], expected[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2], rtol=1e-5, atol=1e-5
        )
    assert counters.tensor_core == 1


def test_tf32_rounding():
    assert to_tf32(np.array([1 + 2.0**-11], F32))[0] == 1 + 2.0**-10


def test_an_unknown_instruction_is_named():
    text = ".version 8.6\n.target sm_100a\n.visible .entry k()\n{\n tcgen05.wait::ld.sync.aligned;\n ret;\n}"
    with pytest.raises(UnsupportedError, match="k: instructions not supported: tcgen05"):
        load_kernel(text)


def test_parameters_are_an_array(memory):
    """A compiler may take the address of a parameter and choose between several at run time."""
    a, b = np.arange(4, dtype=U32), np.arange(10, 14, dtype=U32)
    body = """
    mov.b32 %r1, a1;
    and.b32 %r2, %r31, 1;
    mad.lo.s32 %r1, %r2, -8, %r1;
    ld.param.b64 %d9, [%r1];
    ld.global.b32 %r3, [%d9+8];
    mul.wide.u32 %d19, %r31, 4;
    add.s64 %d20, %d2, %d19;
    st.global.b32 [%d20], %r3;
    """
    (result,), _ = run(memory, body, [a, b], [np.empty(32, U32)])
    np.testing.assert_array_equal(result, np.tile([12, 2], 16))

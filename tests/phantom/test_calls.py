"""Functions of a kernel, addresses that name no space, and printing."""

import numpy as np
import pytest

from tests.phantom.errors import PhantomError, UnsupportedError
from tests.phantom.launch import Options
from tests.phantom.programs import run

TRIPLE = """
.func (.param .b32 result) add_one(.param .b32 a)
{
    .reg .b32 %r<3>;
    ld.param.b32 %r1, [a];
    add.s32 %r2, %r1, 1;
    st.param.b32 [result], %r2;
    ret;
}
.func (.param .b32 tripled) triple(.param .b32 x, .param .align 8 .b8 unused[16])
{
    .reg .pred %p<2>;
    .reg .b32 %r<4>;
    ld.param.b32 %r1, [x];
    setp.gt.u32 %p1, %r1, 100;
    @%p1 bra $BIG;
    mul.lo.u32 %r2, %r1, 3;
    { .param .b32 p; .param .b32 r; st.param.b32 [p], %r2; call.uni (r), add_one, (p); ld.param.b32 %r3, [r]; }
    sub.s32 %r3, %r3, 1;
    st.param.b32 [tripled], %r3;
    ret;
$BIG:
    st.param.b32 [tripled], 7;
    ret;
}
"""


def call(name: str, source: str, target: str) -> str:
    return f"""
    {{ .param .b32 param0; .param .align 8 .b8 param1[16]; .param .b32 retval0;
    st.param.b32 [param0], {source};
    call.uni (retval0), {name}, (param0, param1);
    ld.param.b32 {target}, [retval0]; }}
    """


def test_calls_from_two_places(memory):
    """Half of a warp calls from one branch, half from another; a function calls another one, and returns early for some."""
    body = f"""
    mov.b32 %r20, 555;
    mul.lo.u32 %r1, %r31, 5;
    setp.lt.u32 %p1, %r31, 16;
    @%p1 bra LOW;
    {call("triple", "%r1", "%r2")}
    add.u32 %r2, %r2, 1000;
    bra JOIN;
LOW:
    {call("triple", "%r1", "%r2")}
JOIN:
    mul.wide.u32 %d1, %r31, 4; add.s64 %d1, %d0, %d1; st.global.b32 [%d1], %r2;
    """
    x = 5 * np.arange(32)
    expected = np.where(x > 100, 7, 3 * x) + 1000 * (np.arange(32) >= 16)
    np.testing.assert_array_equal(run(memory, body, [], [np.empty(32, np.int32)], declarations=TRIPLE)[0][0], expected)


def test_what_is_not_understood(memory):
    with pytest.raises(UnsupportedError, match="a call of elsewhere"):
        run(memory, call("elsewhere", "%r31", "%r1"))
    recursive = ".func f()\n{\n call.uni f, ();\n ret;\n}\n"
    with pytest.raises(UnsupportedError, match="f calls itself"):
        run(memory, "call.uni f, ();", declarations=recursive)


def test_trap(memory):
    with pytest.raises(PhantomError, match="the kernel aborts; block 0,0,0 thread 5"):
        run(memory, "setp.eq.u32 %p1, %r31, 5; @%p1 trap;")


def test_addresses_of_no_space(memory):
    """Of three pointers each thread takes one: to global, shared or local memory."""
    body = """
    .local .align 4 .b8 here[16];
    mul.wide.u32 %d1, %r31, 4; add.s64 %d2, %d0, %d1;
    mov.b64 %d4, tile; add.s64 %d4, %d4, %d1; cvta.shared.u64 %d5, %d4;
    mov.b64 %d6, here; cvta.local.u64 %d6, %d6;
    rem.u32 %r1, %r31, 3;
    setp.eq.u32 %p1, %r1, 0; selp.b64 %d7, %d5, %d2, %p1;
    setp.eq.u32 %p2, %r1, 1; selp.b64 %d7, %d6, %d7, %p2;
    add.u32 %r2, %r31, 100; st.b32 [%d7], %r2;
    ld.b32 %r3, [%d7];
    @%p1 ld.shared.b32 %r3, [%d4];
    cvta.to.local.u64 %d8, %d6; @%p2 ld.local.b32 %r3, [%d8];
    st.global.b32 [%d2], %r3;
    """
    np.testing.assert_array_equal(run(memory, body, [], [np.empty(32, np.int32)])[0][0], np.arange(100, 132))


def text(name: str, value: str) -> str:
    data = value.encode() + b"\0"
    return f".global .align 1 .b8 {name}[{len(data)}] = {{{', '.join(map(str, data))}}};\n"


@pytest.mark.parametrize("block", [None, 1])
def test_print(memory, capsys, block):
    strings = text("name", "title") + text("format", "%s: %d %llu %.2f %x %%\n")
    body = """
    .local .align 8 .b8 values[40];
    mov.b64 %d1, name; cvta.global.u64 %d1, %d1; st.local.b64 [values], %d1;
    neg.s32 %r1, %r31; st.local.b32 [values+8], %r1;
    mov.b64 %d2, 1099511627776; st.local.b64 [values+16], %d2;
    mov.f64 %e1, 0d3FF4000000000000; st.local.f64 [values+24], %e1;
    st.local.b32 [values+32], 255;
    mov.b64 %d3, format; mov.b64 %d4, values; cvta.local.u64 %d4, %d4;
    setp.gt.u32 %p1, %r31, 29; @!%p1 bra END;
    { .param .b64 p0; .param .b64 p1; .param .b32 r; st.param.b64 [p0], %d3; st.param.b64 [p1], %d4;
    call.uni (r), vprintf, (p0, p1); ld.param.b32 %r2, [r]; }
END:
    """
    run(memory, body, grid=(2, 1, 1), declarations=strings, options=Options(only_block=block))
    lines = [
        f"[block {n},0,0 thread {t}] title: {-t} 1099511627776 1.25 ff %"
        for n in ([0, 1] if block is None else [block])
        for t in (30, 31)
    ]
    assert capsys.readouterr().out.splitlines() == lines


def test_trace(memory, capsys):
    body = "add.u32 %r1, %r31, 7; cvt.rn.f32.u32 %f1, %r1; setp.lt.u32 %p1, %r31, 3; @%p1 bra L1; mov.u32 %r2, 1; L1:\n"
    run(memory, body, grid=(3, 1, 1), options=Options(only_block=2, trace=5))
    shown = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    assert [" ".join(line.split()) for line in shown] == [
        "mov.u32 %r31, %tid.x %r31=5",
        "add.u32 %r1, %r31, 7 %r1=12 %r31=5",
        "cvt.rn.f32.u32 %f1, %r1 %f1=12.0 %r1=12",
        "setp.lt.u32 %p1, %r31, 3 %p1=False %r31=5",
        "mov.u32 %r2, 1 %r2=1",
        "ret",
    ]


def test_no_such_block(memory):
    with pytest.raises(PhantomError, match=r"no block 3 or thread None in \(3, 1, 1\) blocks"):
        run(memory, "", grid=(3, 1, 1), options=Options(only_block=3))

"""Hopper's tensor cores (sm_90a): D = A @ B + D for 64 rows by the 128 threads of a warpgroup, which need not wait for it.

A (64, 16) and B (N, 16)^T are float16 or bfloat16 in shared memory, or A in registers; D (64, N) is float32 in registers. Warp w of
the four has rows 16w to 16w + 15, in which a lane holds what `tensor_core.mojo` draws for 16 x 8 of D, N / 8 times side by side.

A matrix in shared memory is named by a descriptor: where it starts, how far it is from 8 rows to the next 8, and how chunks of
16 bytes are swizzled. Rows of 128 bytes swizzled as in `memory.mojo` (chunk c of row r at c XOR (r mod 8)) are what the hardware
calls a swizzle of 128 bytes, so tiles lie as for `ldmatrix`; only they must start at a multiple of 1024 bytes. Of 128 bytes of k a
product takes 32; the next product's descriptor starts 32 bytes further.

    order of events        who must care
    copies land            every thread: wait for its own, `publish_copies`, then a barrier: the tensor cores read past the caches
    begin_products         before the first product on registers that were written otherwise
    add_product ...        starts products; until they are awaited nobody reads D or writes A and B
    commit_products        closes them into a group
    wait_products[n]       until at most the n latest groups are in flight

NVIDIA, "PTX ISA", 9.7.15 (wgmma).
"""

from max.gpu.compute.mma import (
    WGMMADescriptor,
    wgmma_async,
    wgmma_commit_group_sync,
    wgmma_fence_aligned,
    wgmma_wait_group_sync,
)
from max.gpu.host import DeviceContext
from std.memory import bitcast
from std.sys import _RegisterPackType, inlined_assembly
from std.utils import StaticTuple

from .memory import Shared


def has_warpgroups() -> Bool:
    """Whether kernels are compiled for a GPU that has these tensor cores: Hopper alone, later ones have others."""
    comptime gpu = DeviceContext.default_device_info
    return gpu.api == "cuda" and gpu.compute == 9.0


comptime GROUP = 128
"""Threads of a warpgroup."""

comptime GROUP_M = 64
"""Rows of its product."""

comptime PRODUCT_K = 16
"""Products that an instruction adds to each sum."""

comptime SWIZZLE_ROWS = 1024
"""Bytes of 8 rows of a tile, and the alignment of tiles."""

comptime Sums[columns: Int] = StaticTuple[Float32, columns // 2]
"""What a thread has of (64, columns) sums: of each 8 columns two of row l/4, then two of row l/4 + 8."""


@always_inline
def describe[dtype: DType](tile: Shared[dtype]) -> UInt64:
    """The descriptor of rows of 128 bytes, swizzled; 32 bytes of k further is 2 more."""
    comptime SWIZZLE_128 = UInt64(1) << 62
    comptime DISTANCE = UInt64(SWIZZLE_ROWS // 16) << 32
    return SWIZZLE_128 | DISTANCE | UInt64(1) << 16 | UInt64((Int(tile) & 0x3FFFF) >> 4)


@always_inline
def publish_copies():
    """Lets tensor cores see what this thread has written or copied to shared memory; a barrier must follow."""
    inlined_assembly["fence.proxy.async.shared::cta;", NoneType, constraints="~{memory}"]()


@always_inline
def begin_products():
    """Before the first product on registers that were written otherwise than by products."""
    wgmma_fence_aligned()


@always_inline
def add_product[dtype: DType, columns: Int, *, keep: Bool = True](mut sums: Sums[columns], a: UInt64, b: UInt64):
    """Starts to add a product of 16 terms.

    Parameters:
        dtype: Of A and B.
        columns: N, a multiple of 8.
        keep: Whether what the sums are is added to, not forgotten.

    Args:
        sums: D.
        a: Describes A.
        b: Describes B.
    """
    sums = wgmma_async[
        64, columns, PRODUCT_K, DType.float32, columns // 2, a_type=dtype, b_type=dtype, scale_d=1 if keep else 0
    ](WGMMADescriptor[dtype](Int64(a)), WGMMADescriptor[dtype](Int64(b)), sums)


@always_inline
def add_product_of_registers[dtype: DType](mut sums: Sums[64], a: SIMD[dtype, 8], b: UInt64):
    """Starts to add a product of 16 terms with A in registers and B (16, 64) by rows: `add_product` has them by columns.

    Parameters:
        dtype: Of A and B.

    Args:
        sums: D.
        a: What this lane has of A, in the order of `tensor_core.mojo`; leave it alone until the product is awaited.
        b: Describes B: 16 rows of 128 bytes. The next 16 are 128 further.
    """
    comptime kind = "f16" if dtype == DType.float16 else "bf16"
    comptime text = (
        "{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32."
        + kind
        + "."
        + kind
        + " {"
        + _list[32, "$"]()
        + "}, {$32,$33,$34,$35}, $36, p, 1, 1, 1; }"
    )
    comptime constraints = "=f," * 32 + "r,r,r,r,l," + _list[32, ""]()
    var words = bitcast[DType.uint32, 4](a)
    var s = sums
    # fmt: off
    var d = inlined_assembly[text, _Registers, constraints=constraints](
        words[0], words[1], words[2], words[3], b,
        s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15],
        s[16], s[17], s[18], s[19], s[20], s[21], s[22], s[23], s[24], s[25], s[26], s[27], s[28], s[29], s[30], s[31],
    )
    # fmt: on
    comptime for i in range(32):
        sums[i] = d[i]


comptime _F = Float32
# fmt: off
comptime _Registers = _RegisterPackType[
    _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F, _F
]
# fmt: on


def _list[count: Int, prefix: StaticString]() -> String:
    """Numbers from 0 on, each behind a prefix, with commas in between."""
    var text = String()
    for i in range(count):
        text += ("," if i else "") + String(prefix) + String(i)
    return text


@always_inline
def commit_products():
    """Closes the products that were started into a group."""
    wgmma_commit_group_sync()


@always_inline
def wait_products[in_flight: Int = 0]():
    """Waits until at most so many groups are in flight."""
    wgmma_wait_group_sync[in_flight]()


@always_inline
def compute_now[dtype: DType, //](x: Float32, place: Shared[dtype]):
    """Keeps compilers from moving the wait that follows ahead of what x is made of, by a store that never happens.

    Args:
        x: Not negative, which they do not know.
        place: Where it would be stored otherwise.
    """
    inlined_assembly[
        "{ .reg .pred p; setp.lt.f32 p, $0, 0f00000000; @p st.volatile.shared.f32 [$1], $0; }",
        NoneType,
        constraints="f,r,~{memory}",
    ](x, Int32(Int(place)))


@always_inline
def settle[columns: Int](mut sums: Sums[columns]):
    """Keeps the compiler from reading sums ahead of the wait: it does not know that they arrive later."""
    comptime for i in range(columns // 2):
        sums[i] = inlined_assembly["", Float32, constraints="=f,0"](sums[i])

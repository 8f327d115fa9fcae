"""The register tile of float32: where CPUs differ, beside `operand.mojo` (dot products of narrow numbers) and `amx.mojo`.

Every product of float32 (linear layers, convolutions as matrices, both products of attention) is cut into
tiles of `rows x (panels * PANEL)` float32 sums that stay in registers while k runs:

              PANEL = 16 columns            b: a panel; each of its rows holds 16 columns
             +------------------+              of G neighbouring k: G = 1 in float32 and
        k -> | b[k, 0 .. 15]    |              float16, 2 in bfloat16, 4 in int8
             +------------------+
      a[i,k]  acc[i, 0 .. 15] += a[i, k] * b[k, 0 .. 15]        for the `rows` rows i of the tile

A panel is 16 columns on every CPU, so weights are packed once and a cache of packed weights serves any of them: 16
columns are one AVX-512 register, two of AVX2, four of NEON or SSE, and the width of an AMX tile; the G values of k that
lie together are what the dot product instructions of AVX-512 and AMX take. A row is one cache line, in float16 half of one.

    element (k, column) of a panel lies at  row k / G, place column * G + k % G;  what pads the last row is 0
    int8: one more row in front, the scales of the 16 columns in float32: b[k, n] = scale[n] * int8[k, n]

The narrow types are widened to float32 in registers (a bfloat16 is the upper half of a float32; for float16 there is an
instruction): they save memory traffic, not precision of the sums. Whisper was published in float16: its weights in that
type are the float32 weights, and so are all sums.

Cost per k and tile: `rows * panels * 16` fused multiply-adds, `panels / G` cache lines of b, `rows` broadcasts of a.

| registers             | rows x panels | sums | loads per multiply-add |
| --------------------- | ------------- | ---- | ---------------------- |
| AVX-512, 32 of 16     | 12 x 2        | 24   | 14 / 24                |
| AVX2, 16 of 8         | 6 x 1         | 12   | 8 / 12                 |
| NEON, 32 of 4         | 6 x 1         | 24   | 10 / 24                |
| SSE, 16 of 4          | 3 x 1         | 12   | 7 / 12                 |

Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.
"""

from std.collections import Array
from std.math import ceildiv
from std.memory import bitcast
from std.sys import CompilationTarget, simd_width_of, size_of

from ..data import Data
from ..math import multiply_add
from .prefetch import ask_for

comptime PANEL = 16
"""Columns of a packed panel, on every CPU."""

comptime WIDTH = min(PANEL, simd_width_of[DType.float32]())
"""Float32 lanes of one register."""

comptime VECTORS = PANEL // WIDTH
"""Registers that hold one row of a panel."""


comptime group[dtype: DType]: Int = 1 if dtype == DType.float16 else size_of[DType.float32]() // size_of[dtype]()
"""G: values of k that lie together in a panel."""

comptime is_rounded[dtype: DType]: Bool = dtype == DType.bfloat16 or dtype == DType.int8
"""Whether weights of this type are less exact than those that Whisper was published with."""

comptime row_size[dtype: DType]: Int = PANEL * group[dtype]
"""Elements in a row of a panel."""

comptime scale_rows[dtype: DType]: Int = 1 if dtype == DType.int8 else 0
"""Rows of scales in front of a panel."""


def panel_rows[dtype: DType](depth: Int) -> Int:
    """Rows of a panel that holds `depth` values of k, its scales included."""
    return scale_rows[dtype] + ceildiv(depth, group[dtype])


def panel_scales[dtype: DType, //](panel: Data[dtype]) -> Data[DType.float32]:
    """The scales in front of a panel of int8."""
    return panel.unsafe_bitcast[Float32]()


comptime _Row[dtype: DType] = SIMD[dtype if group[dtype] == 1 else DType.int32, WIDTH]
"""What a register of b holds: WIDTH columns, G values of k in each."""


@always_inline
def _load_row[dtype: DType, //](row: Data[dtype], vector: Int) -> _Row[dtype]:
    """Loads one of the VECTORS registers of a panel's row."""
    return row.unsafe_bitcast[Scalar[_Row[dtype].dtype]]().unsafe_load[width=WIDTH](vector * WIDTH)


@always_inline
def _widen[dtype: DType, which: Int](row: _Row[dtype]) -> SIMD[DType.float32, WIDTH]:
    """Value `which` of the G that each column holds, as float32."""
    comptime if dtype == DType.float32:
        return rebind[SIMD[DType.float32, WIDTH]](row)
    elif dtype == DType.float16:
        return _widen_half(rebind[SIMD[DType.float16, WIDTH]](row))
    else:
        var words = rebind[SIMD[DType.int32, WIDTH]](row)
        comptime if dtype == DType.bfloat16:
            return bitcast[DType.float32, WIDTH](words << 16 if which == 0 else words & Int32(-65536))
        else:
            comptime assert dtype == DType.int8, "weights are float32, float16, bfloat16 or int8"
            return ((words << Int32(24 - 8 * which)) >> 24).cast[DType.float32]()


@always_inline
def _widen_half(x: SIMD[DType.float16, WIDTH]) -> SIMD[DType.float32, WIDTH]:
    """Finite float16 as float32. Where no instruction does it, the bits move into place and the exponent is corrected.
    """
    comptime if CompilationTarget.is_x86() and not CompilationTarget._has_feature["f16c"]():
        var bits = bitcast[DType.uint16, WIDTH](x).cast[DType.uint32]()
        comptime bias_difference = Float32(2.0**112)
        var magnitude = bitcast[DType.float32, WIDTH]((bits & 0x7FFF) << 13) * bias_difference
        return bitcast[DType.float32, WIDTH](bitcast[DType.uint32, WIDTH](magnitude) | (bits & 0x8000) << 16)
    else:
        return x.cast[DType.float32]()


@always_inline
def widened[dtype: DType, //](x: Data[dtype], at: Int) -> SIMD[DType.float32, WIDTH]:
    """WIDTH neighbouring numbers as float32."""
    var values = x.unsafe_load[width=WIDTH](at)
    comptime if dtype == DType.float16:
        return _widen_half(rebind[SIMD[DType.float16, WIDTH]](values))
    else:
        return values.cast[DType.float32]()


def widen_panel[dtype: DType, //](panel: Data[dtype], depth: Int, output: Data[DType.float32]):
    """Writes a panel of a narrow type as one of float32.

    Worth it when many tiles read the panel: the widening is then done once for all of them.

    Args:
        panel: A packed panel.
        depth: Values of k.
        output: Receives `depth` rows of 16, and up to G - 1 rows of zeros behind them.
    """
    comptime G = group[dtype]
    var rows = panel.unsafe_offset(scale_rows[dtype] * row_size[dtype])
    comptime for v in range(VECTORS):
        var scale = SIMD[DType.float32, WIDTH](1)
        comptime if scale_rows[dtype] > 0:
            scale = panel_scales(panel).unsafe_load[width=WIDTH](v * WIDTH)
        for row in range(ceildiv(depth, G)):
            var values = _load_row(rows.unsafe_offset(row * row_size[dtype]), v)
            comptime for which in range(G):
                output.unsafe_store((row * G + which) * PANEL + v * WIDTH, _widen[dtype, which](values) * scale)


comptime MOST_PANELS = 4
"""Panels that a tile has at most."""


def tile_rows() -> Int:
    """Rows of a full tile: as many as the register file holds next to one row of b."""
    comptime if CompilationTarget.has_avx512f():
        return 12
    elif CompilationTarget.has_avx2() or CompilationTarget.has_neon():
        return 6
    else:
        return 3


def tile_panels(rows: Int) -> Int:
    """Panels side by side in a tile of `rows` rows: few rows leave registers for more columns."""
    var registers = 24 if CompilationTarget.has_avx512f() or CompilationTarget.has_neon() else 12
    return max(1, min(MOST_PANELS, registers // (rows * VECTORS)))


comptime ROWS = tile_rows()
"""Rows of a full tile on the CPU being compiled for."""


comptime _ROWS_AHEAD = 64
"""Rows of a matrix that lies row by row, 8 KB of values in float16, between the one that is multiplied and the one asked for."""


comptime UNROLLED = 4
"""Rows of a panel that a full tile takes from one look at its counter to the next: a core that another thread shares starts
instructions half as often, and those that only count would be a fifth of a tile's (docs/kernels/linear.md)."""


@no_inline
def _multiply_tile[
    a_type: DType, b_type: DType, //, rows: Int, panels: Int
](
    a: Data[a_type],
    a_stride: Int,
    b: Data[b_type],
    b_panel_stride: Int,
    b_row_stride: Int,
    depth: Int,
    c: Data[DType.float32],
    c_stride: Int,
    add: Bool,
    ahead: Int,
):
    comptime G = group[b_type]
    comptime columns = panels * VECTORS
    var sums = Array[SIMD[DType.float32, WIDTH], rows * columns](fill=SIMD[DType.float32, WIDTH](0))
    if add:
        comptime for i in range(rows):
            comptime for j in range(columns):
                sums[i * columns + j] = c.unsafe_load[width=WIDTH](i * c_stride + j * WIDTH)
    var first = b.unsafe_offset(scale_rows[b_type] * row_size[b_type])

    @always_inline
    def add_row[count: Int](k: Int) {imm a, imm a_stride, imm b_panel_stride, imm b_row_stride, imm first, mut sums}:
        """Adds the first `count` values of the row that begins with k."""

        @always_inline
        def load_row(j: Int) {imm} -> _Row[b_type]:
            return _load_row(first.unsafe_offset(j // VECTORS * b_panel_stride + k // G * b_row_stride), j % VECTORS)

        @always_inline
        def load_a(i: Int, which: Int) {imm} -> SIMD[DType.float32, WIDTH]:
            return SIMD[DType.float32, WIDTH](a[unsafe_offset=i * a_stride + k + which].cast[DType.float32]())

        comptime if G == 1:  # a row of b stays in registers, the elements of a pass by
            var b_k = Array[SIMD[DType.float32, WIDTH], columns](uninitialized=True)
            comptime for j in range(columns):
                b_k[j] = _widen[b_type, 0](load_row(j))
            comptime for i in range(rows):
                var a_ik = load_a(i, 0)
                comptime for j in range(columns):
                    sums[i * columns + j] = multiply_add(a_ik, b_k[j], sums[i * columns + j])
        else:  # one register of b after the other is widened and used up
            comptime for j in range(columns):
                var b_row = load_row(j)
                comptime for which in range(count):
                    var b_k = _widen[b_type, which](b_row)
                    comptime for i in range(rows):
                        sums[i * columns + j] = multiply_add(load_a(i, which), b_k, sums[i * columns + j])

    var whole = depth // G * G
    comptime step = G * (UNROLLED if rows == ROWS else 1)
    var together = whole // step * step
    for begin in range(0, together, step):
        comptime for k in range(0, step, G):
            comptime if rows == 1 and b_type == DType.float16:
                comptime for panel in range(panels):
                    ask_for(first.unsafe_offset(panel * b_panel_stride + (begin + k) // G * b_row_stride + ahead))
            add_row[G](begin + k)
    comptime if step > G:
        for k in range(together, whole, G):
            add_row[G](k)
    comptime for rest in range(1, G):
        if depth - whole == rest:
            add_row[rest](whole)

    comptime for j in range(columns):
        var scale = SIMD[DType.float32, WIDTH](1)
        comptime if scale_rows[b_type] > 0:
            var panel = b.unsafe_offset(j // VECTORS * b_panel_stride)
            scale = panel_scales(panel).unsafe_load[width=WIDTH](j % VECTORS * WIDTH)
        comptime for i in range(rows):
            c.unsafe_store(i * c_stride + j * WIDTH, sums[i * columns + j] * scale)


def multiply_tile[
    a_type: DType, b_type: DType, //
](
    rows: Int,
    panels: Int,
    a: Data[a_type],
    a_stride: Int,
    b: Data[b_type],
    b_panel_stride: Int,
    b_row_stride: Int,
    depth: Int,
    c: Data[DType.float32],
    c_stride: Int,
    add: Bool = False,
):
    """Stores `a @ b` of one tile, summed over k in order in float32, times the scales.

    The registers' tile is a function of its own for every number of rows, not inlined: an op then holds a dozen small
    loops instead of hundreds, and compiles in a second. What a caller does with the sums costs it one trip through the
    first-level cache, little beside the `depth` steps of the sum.

    Parameters:
        a_type: Element type of a.
        b_type: Element type of b.

    Args:
        rows: Rows of the tile, 1 to ROWS.
        panels: Panels of the tile; `tile_panels(rows)` at a time fill the registers.
        a: First element of the tile's first row; `rows` rows of `depth` elements.
        a_stride: Elements from one row of a to the next.
        b: First element of the tile's first panel.
        b_panel_stride: Elements from one panel to the next.
        b_row_stride: Elements from one row of a panel to the next (`row_size` when packed).
        depth: Length of the sum over k.
        c: Receives `rows` rows of `panels * PANEL` sums.
        c_stride: Elements from one row of c to the next.
        add: Whether the sums go on from those in c; not for int8, whose sums are scaled at the end.
    """
    comptime for r in range(1, ROWS + 1):
        if rows == r:
            comptime together = tile_panels(r)
            # One row asks for the next tile; where panels are neighbouring columns of rows, as in values, for rows further on.
            var ahead = together * b_panel_stride if b_row_stride == row_size[b_type] else _ROWS_AHEAD * b_row_stride
            var panel = 0
            while panel + together <= panels:
                _multiply_tile[r, together](
                    a,
                    a_stride,
                    b.unsafe_offset(panel * b_panel_stride),
                    b_panel_stride,
                    b_row_stride,
                    depth,
                    c.unsafe_offset(panel * PANEL),
                    c_stride,
                    add,
                    ahead,
                )
                panel += together
            comptime if together > 1:
                while panel < panels:
                    _multiply_tile[r, 1](
                        a,
                        a_stride,
                        b.unsafe_offset(panel * b_panel_stride),
                        b_panel_stride,
                        b_row_stride,
                        depth,
                        c.unsafe_offset(panel * PANEL),
                        c_stride,
                        add,
                        ahead,
                    )
                    panel += 1

"""The register tile: the one place where CPUs differ.

Every matrix product of the package (linear layers, convolutions as matrices, both products of attention, the
vocabulary) is cut into tiles of `rows x (panels * PANEL)` float32 sums that stay in registers while k runs:

              PANEL = 16 columns            b: a panel, k rows of 16 consecutive columns
             +------------------+              (one cache line per k in float32)
        k -> | b[k, 0 .. 15]    |
             +------------------+
      a[i,k]  acc[i, 0 .. 15] += a[i, k] * b[k, 0 .. 15]        for the `rows` rows i of the tile

A panel is 16 columns on every CPU, so weights are packed once and a cache of packed weights serves any of them: 16
columns are one AVX-512 register, two of AVX2, four of NEON or SSE, and the width of an AMX tile.

Cost per k and tile: `rows * panels * 16` fused multiply-adds, `panels` cache lines of b, `rows` broadcasts of a.

| registers             | rows x panels | sums | loads per multiply-add |
| --------------------- | ------------- | ---- | ---------------------- |
| AVX-512, 32 of 16     | 12 x 2        | 24   | 14 / 24                |
| AVX2, 16 of 8         | 6 x 1         | 12   | 8 / 12                 |
| NEON, 32 of 4         | 6 x 1         | 24   | 10 / 24                |
| SSE, 16 of 4          | 3 x 1         | 12   | 7 / 12                 |

Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.
"""

from std.collections import Array
from std.sys import CompilationTarget, simd_width_of

from ..data import Data

comptime PANEL = 16
"""Columns of a packed panel, on every CPU."""

comptime WIDTH = min(PANEL, simd_width_of[DType.float32]())
"""Float32 lanes of one register."""

comptime VECTORS = PANEL // WIDTH
"""Registers that hold one row of a panel."""


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
):
    comptime columns = panels * VECTORS
    var sums = Array[SIMD[DType.float32, WIDTH], rows * columns](fill=SIMD[DType.float32, WIDTH](0))
    for k in range(depth):
        var b_row = Array[SIMD[DType.float32, WIDTH], columns](uninitialized=True)
        comptime for p in range(panels):
            comptime for v in range(VECTORS):
                b_row[p * VECTORS + v] = b.unsafe_load[width=WIDTH](
                    p * b_panel_stride + k * b_row_stride + v * WIDTH
                ).cast[DType.float32]()
        comptime for i in range(rows):
            var a_ik = SIMD[DType.float32, WIDTH](a[unsafe_offset=i * a_stride + k].cast[DType.float32]())
            comptime for j in range(columns):
                sums[i * columns + j] = a_ik.fma(b_row[j], sums[i * columns + j])
    comptime for i in range(rows):
        comptime for j in range(columns):
            c.unsafe_store(i * c_stride + j * WIDTH, sums[i * columns + j])


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
):
    """Stores `a @ b` of one tile, summed over k in order in float32.

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
        b_row_stride: Elements from one k to the next within a panel (PANEL when packed).
        depth: Length of the sum over k.
        c: Receives `rows` rows of `panels * PANEL` sums.
        c_stride: Elements from one row of c to the next.
    """
    comptime for r in range(1, ROWS + 1):
        if rows == r:
            comptime together = tile_panels(r)
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
                    )
                    panel += 1

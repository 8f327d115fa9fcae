"""The products of the CPU being compiled for, on their own: `test_bodies.py` runs this program for CPUs that are not here.

Activations are integers that every operand holds exactly, so the products are exact: what a body leaves out or adds
shows, however small. Shapes lie around the tiles' 3, 6, 12, 16 and 32 rows, 16 and 32 columns, and 2, 4, 32 and 64 k.
"""

from std.math import ceildiv
from std.memory.alloc import unsafe_alloc
from std.random import random_si64, seed

from kernels.cpu.epilogue import Epilogue
from kernels.cpu.matmul import multiply_block
from kernels.cpu.operand import operand_type
from kernels.cpu.tile import PANEL, ROWS, group, panel_rows, panel_scales, row_size, scale_rows
from kernels.data import Data


@fieldwise_init
struct Store(Epilogue):
    """Stores the sums."""

    var output: Data[DType.float32]
    var columns: Int

    def store[width: Int](self, row: Int, column: Int, sums: SIMD[DType.float32, width]):
        """Stores one piece of a row."""
        self.output.unsafe_store(row * self.columns + column, sums)


def panel_element[dtype: DType, //](panel: Data[dtype], k: Int, column: Int) -> Float32:
    """Element (k, column) of a panel."""
    comptime G = group[dtype]
    var place = (scale_rows[dtype] + k // G) * row_size[dtype] + column * G + k % G
    var value = panel[unsafe_offset=place].cast[DType.float32]()
    comptime if scale_rows[dtype] > 0:
        return value * panel_scales(panel)[unsafe_offset=column]
    return value


def random_panels[dtype: DType](columns: Int, depth: Int) -> Data[dtype]:
    """Packed columns of integers; zeros pad the last row of a panel, no panel follows the last one."""
    comptime G = group[dtype]
    var size = panel_rows[dtype](depth) * row_size[dtype]
    var panels = unsafe_alloc[Scalar[dtype]](ceildiv(columns, PANEL) * size, alignment=64)
    for p in range(ceildiv(columns, PANEL)):
        var panel = panels.unsafe_offset(p * size)
        comptime if dtype == DType.int8:
            for j in range(PANEL):
                panel_scales(panel)[unsafe_offset=j] = Float32(1 + j) / 16
        var values = panel.unsafe_offset(scale_rows[dtype] * row_size[dtype])
        for i in range(ceildiv(depth, G) * row_size[dtype]):
            var k = i // row_size[dtype] * G + i % G
            values[unsafe_offset=i] = random_si64(-127, 127).cast[dtype]() if k < depth else 0
    return panels


def check[dtype: DType](rows: Int, columns: Int, depth: Int) raises:
    """Raises unless the product of random integers is right."""
    var operand = operand_type(dtype, many=rows > ROWS)
    var largest = 2047 if operand == DType.int16 else 127
    var stride = depth + 3
    var x = unsafe_alloc[Float32](rows * stride)
    for i in range(rows * stride):  # what lies between the rows must not count, nor be a number
        x[unsafe_offset=i] = Float32(0) / 0
    for row in range(rows):
        for k in range(depth):
            x[unsafe_offset=row * stride + k] = Float32(random_si64(Int64(-largest), Int64(largest)))
        x[unsafe_offset=row * stride + depth // 2] = Float32(-largest)  # makes a step of the row's integers 1
    var panels = random_panels[dtype](columns, depth)
    var y = unsafe_alloc[Float32](rows * columns)
    for i in range(rows * columns):
        y[unsafe_offset=i] = Float32(0) / 0
    multiply_block(x, stride, panels, depth, 0, rows, 0, ceildiv(columns, PANEL), columns, Store(y, columns))
    for row in range(rows):
        for column in range(columns):
            var panel = panels.unsafe_offset(column // PANEL * panel_rows[dtype](depth) * row_size[dtype])
            var expected = Float64(0)
            for k in range(depth):
                expected += Float64(x[unsafe_offset=row * stride + k]) * Float64(
                    panel_element(panel, k, column % PANEL)
                )
            var found = Float64(y[unsafe_offset=row * columns + column])
            if not abs(found - expected) <= 1e-6 * abs(expected) + 1e-2:
                raise Error(
                    dtype,
                    " ",
                    rows,
                    "x",
                    depth,
                    "x",
                    columns,
                    ": [",
                    row,
                    ", ",
                    column,
                    "] is ",
                    found,
                    ", not ",
                    expected,
                )
    x.unsafe_free()
    y.unsafe_free()
    panels.unsafe_free()


def main() raises:
    """Checks all shapes."""
    seed()
    print(operand_type(DType.bfloat16, many=True), operand_type(DType.int8, many=True))
    for rows in [1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 31, 32, 33, 49, 65]:
        for columns, depth in [
            (16, 32),
            (17, 33),
            (48, 1),
            (33, 65),
            (31, 130),
            (65, 64),
            (1, 63),
            (15, 127),
            (32, 240),
        ]:
            check[DType.float16](rows, columns, depth)
            check[DType.bfloat16](rows, columns, depth)
            check[DType.int8](rows, columns, depth)
    check[DType.float16](700, 20, 300)
    check[DType.bfloat16](700, 20, 300)
    check[DType.int8](700, 20, 300)

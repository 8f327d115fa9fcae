"""The products of the CPU being compiled for, and attention on its products of bfloat16: `test_bodies.py` runs this program
for CPUs that are not here.

Activations are integers that every operand holds exactly, so the products are exact: what a body leaves out or adds
shows, however small. Shapes lie around the tiles' 3, 6, 12, 16 and 32 rows, 16 and 32 columns, and 2, 4, 32 and 64 k.
"""

from std.ffi import external_call
from std.math import ceildiv, exp, sqrt
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.random import random_float64, random_si64, seed

from kernels.attention.cpu import Attention
from kernels.attention.pairs import KEY_GROUP, pair_cache_of_group, pair_rows_of_group
from kernels.attention.strip import HEAD, StripSoftmax
from kernels.attention.strip_bfloat16 import Bfloat16Strips
from kernels.attention.strip_split import SplitStrips
from kernels.cpu.epilogue import Epilogue
from kernels.cpu.matmul import multiply_block
from kernels.cpu.operand import AMX, HARDWARE_AMX, operand_type
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


def check_rounding[dtype: DType](rows: Int, columns: Int, depth: Int) raises:
    """Raises unless a product of float32 with weights of float32, float16 or bfloat16 is exact but for float32's rounding of
    sums, and for what the tile unit leaves out of products (`cpu/split_amx.mojo`): 3 * 2^-16 of their magnitudes, 2^-15 for
    float16, whose weights are split exactly."""
    var left_out = 0
    comptime if AMX and dtype != DType.bfloat16:
        if rows > ROWS:
            left_out = 2 * 256 if dtype == DType.float16 else 3 * 256
    var x = unsafe_alloc[Float32](rows * depth)
    for i in range(rows * depth):
        x[unsafe_offset=i] = Float32(random_float64(-1, 1))
    var size = panel_rows[dtype](depth) * row_size[dtype]
    var panels = unsafe_alloc[Scalar[dtype]](ceildiv(columns, PANEL) * size, alignment=64)
    for i in range(ceildiv(columns, PANEL) * size):
        panels[unsafe_offset=i] = random_float64(-1, 1).cast[dtype]()
    var y = unsafe_alloc[Float32](rows * columns)
    for i in range(rows * columns):
        y[unsafe_offset=i] = Float32(0) / 0
    multiply_block(x, depth, panels, depth, 0, rows, 0, ceildiv(columns, PANEL), columns, Store(y, columns))
    var mean_square = Float64(0)
    for row in range(rows):
        for column in range(columns):
            var expected = Float64(0)
            var magnitude = Float64(0)
            var squares = Float64(0)
            for k in range(depth):
                var product = Float64(x[unsafe_offset=row * depth + k]) * Float64(
                    panel_element(panels.unsafe_offset(column // PANEL * size), k, column % PANEL)
                )
                expected += product
                magnitude += abs(product)
                squares += product * product
            var error = abs(Float64(y[unsafe_offset=row * columns + column]) - expected)
            if not error <= Float64(depth + 2 + left_out) * 2.0**-24 * magnitude:
                raise Error(dtype, " ", rows, "x", depth, "x", columns, ": off by ", error, " of ", magnitude)
            mean_square += error * error / squares / Float64(rows * columns)
    # What is left out is as often more as less: of a sum's root mean square it is no more than of a product's.
    if rows * columns > 1000 and not sqrt(mean_square) <= 2.0**-17:
        raise Error(dtype, " ", rows, "x", depth, "x", columns, ": off by ", sqrt(mean_square), " in the mean square")
    x.unsafe_free()
    y.unsafe_free()
    panels.unsafe_free()


def as_multiplied[terms: Int](x: Float32) -> Float64:
    """The nearest bfloat16, ties to even; or x itself, which two terms come close to."""
    comptime if terms > 1:
        return Float64(x)
    var bits = bitcast[DType.uint32](x)
    return Float64(bitcast[DType.float32]((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))


def check_pairs(length: Int) raises:
    """Raises unless keys and values of float16 give the pairs that rows of the same numbers give."""
    comptime heads = 2
    comptime stride = 2 * heads * HEAD
    var panels = ceildiv(length, 16)
    var groups = ceildiv(length, KEY_GROUP)
    var rows = unsafe_alloc[Float32](length * stride)
    var k = unsafe_alloc[Float16](heads * panels * 16 * HEAD)
    var v = unsafe_alloc[Float16](heads * length * HEAD)
    for i in range(heads * panels * 16 * HEAD):
        k[unsafe_offset=i] = 0
    for t in range(length):
        for i in range(heads * HEAD):
            var key = random_float64(-2, 2).cast[DType.float16]()
            var value = random_float64(-2, 2).cast[DType.float16]()
            rows[unsafe_offset=t * stride + i] = key.cast[DType.float32]()
            rows[unsafe_offset=t * stride + heads * HEAD + i] = value.cast[DType.float32]()
            k[unsafe_offset=((i // HEAD * panels + t // 16) * HEAD + i % HEAD) * 16 + t % 16] = key
            v[unsafe_offset=(i // HEAD * length + t) * HEAD + i % HEAD] = value
    var size = heads * groups * KEY_GROUP * HEAD
    var pairs = unsafe_alloc[UInt16](4 * size, alignment=64)
    for i in range(4 * size):
        pairs[unsafe_offset=i] = UInt16(0xFFFF) if i < 2 * size else UInt16(0xFFFE)
    var found = pairs.unsafe_bitcast[BFloat16]()
    for head in range(heads):
        for group in range(groups):
            pair_cache_of_group(found, found.unsafe_offset(size), k, v, length, head, group)
            pair_rows_of_group(
                found.unsafe_offset(2 * size), found.unsafe_offset(3 * size), rows, stride, heads, length, head, group
            )
    for i in range(size):
        if i < heads * panels * 16 * HEAD and pairs[unsafe_offset=i] != pairs[unsafe_offset=2 * size + i]:
            raise Error("pairs of ", length, " keys: number ", i)
        if pairs[unsafe_offset=size + i] != pairs[unsafe_offset=3 * size + i]:
            raise Error("pairs of ", length, " values: number ", i)
    rows.unsafe_free()
    k.unsafe_free()
    v.unsafe_free()
    pairs.unsafe_free()


def check_attention[Strips: StripSoftmax](queries: Int, keys: Int, step: Float64) raises:
    """Raises unless attention in bfloat16 is that of rounded queries, keys and values, or in two terms that of float32, but for
    the error of its weights and products.

    A weighted mean o of values v is within the mean of e |v - o|, where weights are within e of a multiple of 2^x: in
    bfloat16 0.73 % (`cpu/exp2.mojo`), in two terms twice what a score is off, 3 * 2^-16 of the products in it
    (`cpu/split_amx.mojo`); those with values are off by as much; and float32 rounds sums.

    Parameters:
        Strips: The step.

    Args:
        queries: How many, of one head.
        keys: How many; there are as many rows as the larger number.
        step: By how much scores grow from key to key, about: the largest comes last.
    """
    comptime heads = 2
    comptime stride = 3 * heads * HEAD
    var length = max(queries, keys)
    var rows = unsafe_alloc[Float32](length * stride)
    for i in range(length * stride):
        rows[unsafe_offset=i] = Float32(random_float64(-2, 2))
    for row in range(length):
        for head in range(heads):
            rows[unsafe_offset=row * stride + head * HEAD] = 4
            rows[unsafe_offset=row * stride + (heads + head) * HEAD] = Float32(2 * step * Float64(row))
    var panels = ceildiv(keys, 16)
    var groups = ceildiv(keys, KEY_GROUP)
    comptime terms = Strips.panel_size // (16 * HEAD)
    var k = unsafe_alloc[BFloat16](terms * heads * panels * 16 * HEAD, alignment=64)
    var v = unsafe_alloc[BFloat16](terms * heads * groups * KEY_GROUP * HEAD, alignment=64)
    for head in range(heads):
        for group in range(groups):
            pair_rows_of_group[terms](k, v, rows, stride, heads, keys, head, group)
    var output = unsafe_alloc[Float32](queries * heads * HEAD)
    for i in range(queries * heads * HEAD):
        output[unsafe_offset=i] = Float32(0) / 0
    var attention = Attention[Strips](
        output.unsafe_bitcast[Scalar[Strips.dtype]](),
        rows.unsafe_bitcast[Scalar[Strips.dtype]](),
        stride,
        k.unsafe_bitcast[Scalar[Strips.cache_type]](),
        v.unsafe_bitcast[Scalar[Strips.cache_type]](),
        keys,
        None,
        1,
        heads,
        queries,
    )
    var strips = Strips()
    for head in range(heads):
        strips.meet(attention.head_keys(head), keys)
        for first in range(0, queries, Strips.query_block):
            attention.block[causal=False](strips, 0, head, first, min(Strips.query_block, queries - first))
    strips.end()
    var p = unsafe_alloc[Float64](keys)
    for head in range(heads):
        for i in range(0, queries, 1 if queries * keys < 10000 else 61):
            var largest = Float64.MIN
            var weight_error = 0.0074 if terms == 1 else 0.0
            for j in range(keys):
                var score = Float64(0)
                var magnitude = Float64(0)
                for d in range(HEAD):
                    var product = as_multiplied[terms](
                        rows[unsafe_offset=i * stride + head * HEAD + d]
                    ) * as_multiplied[terms](rows[unsafe_offset=j * stride + (heads + head) * HEAD + d])
                    score += product
                    magnitude += abs(product)
                comptime if terms > 1:
                    weight_error = max(weight_error, 2 * 3 * 2.0**-16 * magnitude / 8)
                p[unsafe_offset=j] = score / 8
                largest = max(largest, p[unsafe_offset=j])
            var total = Float64(0)
            for j in range(keys):
                p[unsafe_offset=j] = exp(p[unsafe_offset=j] - largest)
                total += p[unsafe_offset=j]
            for d in range(HEAD):
                var value = rows.unsafe_offset((2 * heads + head) * HEAD + d)
                var expected = Float64(0)
                for j in range(keys):
                    expected += p[unsafe_offset=j] / total * as_multiplied[terms](value[unsafe_offset=j * stride])
                var bound = Float64(2e-5)
                for j in range(keys):
                    var v_j = as_multiplied[terms](value[unsafe_offset=j * stride])
                    bound += weight_error * p[unsafe_offset=j] / total * abs(v_j - expected)
                    comptime if terms > 1:
                        bound += 3 * 2.0**-16 * p[unsafe_offset=j] / total * abs(v_j)
                var found = Float64(output[unsafe_offset=(i * heads + head) * HEAD + d])
                if not abs(found - expected) <= bound:
                    raise Error(
                        "attention of ",
                        queries,
                        " queries over ",
                        keys,
                        " keys: [",
                        i,
                        ", ",
                        head,
                        ", ",
                        d,
                        "] is ",
                        found,
                        ", not ",
                        expected,
                        " within ",
                        bound,
                    )
    rows.unsafe_free()
    k.unsafe_free()
    v.unsafe_free()
    output.unsafe_free()
    p.unsafe_free()


def require_amx() raises:
    """Asks the operating system for the tile registers, as `max_whisper.target` does."""
    if external_call["syscall", Int](158, 0x1023, 18) != 0:
        raise Error("the operating system refuses AMX")


def main() raises:
    """Checks all shapes."""
    seed()
    comptime if HARDWARE_AMX:
        require_amx()
    print(operand_type(DType.bfloat16, many=True), operand_type(DType.int8, many=True))
    for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 31, 32, 33, 49, 65]:
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
            check[DType.float32](rows, columns, depth)
            check_rounding[DType.float32](rows, columns, depth)
            check_rounding[DType.float16](rows, columns, depth)
            if rows <= ROWS:  # of few rows nothing is rounded
                check_rounding[DType.bfloat16](rows, columns, depth)
            check[DType.float16](rows, columns, depth)
            check[DType.bfloat16](rows, columns, depth)
            check[DType.int8](rows, columns, depth)
    check[DType.float32](700, 20, 300)
    check[DType.float16](700, 20, 300)
    check[DType.bfloat16](700, 20, 300)
    check[DType.int8](700, 20, 300)
    check_rounding[DType.float32](700, 20, 300)
    check_rounding[DType.float16](700, 20, 300)
    comptime for split in range(2):
        comptime Strips = SplitStrips if split == 1 else Bfloat16Strips
        for queries in [1, 15, 16, 17, 31, 33]:
            for keys in [1, 15, 16, 17, 31, 33, 64, 127, 129, 300]:
                check_attention[Strips](queries, keys, 0)
        check_attention[Strips](64, 600, 0.5)
        check_attention[Strips](1500, 1500, 0)
    for length in [1, 15, 16, 17, 31, 32, 33, 100]:
        check_pairs(length)

"""Layer normalisation of the last dimension, with an optional residual added first.

    s = x [+ r]        mean = sum(s) / D        variance = sum((s - mean)^2) / D

    y = (s - mean) / sqrt(variance + epsilon) * gamma + beta          (Ba, Kiros and Hinton, arXiv:1607.06450)

Shapes: x, r, s and y (M, D) row-major, gamma and beta (D). Statistics are float32 for every element type.

A row is at most a few KB, so it comes from memory once and the later two passes over it find it in the first-level
cache. That is why the variance can be the mean of squared deviations, which does not cancel the way E[s^2] - mean^2
does when a row lies far from zero:

      memory            L1                              registers
    +---------+      +-------+  pass 1: sum          -> LANES partial sums, added up at the end -> mean
    | x   [r] | ---> | a row |  pass 2: squares      -> LANES partial sums                      -> variance
    +---------+      |       |  pass 3: scale, shift -> y (to memory)
                     +-------+
    M rows shared by the threads

Cost: about 8*M*D operations; 2*M*D elements moved (with the residual 4*M*D, where the sum, when it is wanted, costs a
pass of its own in a graph of separate ops: 5*M*D). Memory-bound.
"""

from std.math import sqrt
from std.sys import simd_width_of, size_of

from ..cpu.threads import Workers, grain
from ..data import Data
from ..math import multiply_add

comptime LANES = 4 * simd_width_of[DType.float32]()
"""Floats taken at once: four registers, so that one addition need not wait for the one before it."""


@always_inline
def _load[width: Int](x: Data, at: Int) -> SIMD[DType.float32, width]:
    return x.unsafe_load[width=width](at).cast[DType.float32]()


@always_inline
def _sum(x: Data, size: Int) -> Float32:
    """Sum of the elements."""
    var whole = size // LANES * LANES
    var sums = SIMD[DType.float32, LANES](0)
    for at in range(0, whole, LANES):
        sums += _load[LANES](x, at)
    var sum = sums.reduce_add()
    for at in range(whole, size):
        sum += _load[1](x, at)
    return sum


@always_inline
def _sum_of_squares(x: Data, size: Int, mean: Float32) -> Float32:
    """Sum of the squared distances from the mean."""
    var whole = size // LANES * LANES
    var sums = SIMD[DType.float32, LANES](0)
    for at in range(0, whole, LANES):
        var distance = _load[LANES](x, at) - mean
        sums = multiply_add(distance, distance, sums)
    var sum = sums.reduce_add()
    for at in range(whole, size):
        var distance = _load[1](x, at) - mean
        sum = multiply_add(distance, distance, sum)
    return sum


@always_inline
def normalise[
    dtype: DType, //
](output: Data[dtype], x: Data[dtype], gamma: Data[dtype], beta: Data[dtype], size: Int, epsilon: Float32):
    """Normalises one row.

    Parameters:
        dtype: Of the elements.

    Args:
        output: `size` elements.
        x: `size` elements.
        gamma: Scale of each.
        beta: Shift of each.
        size: D.
        epsilon: Added to the variance.
    """
    var mean = _sum(x, size) / Float32(size)
    var scale = 1 / sqrt(_sum_of_squares(x, size, mean) / Float32(size) + epsilon)

    @always_inline
    def scale_and_shift[width: Int](at: Int) {imm}:
        var y = multiply_add((_load[width](x, at) - mean) * scale, _load[width](gamma, at), _load[width](beta, at))
        output.unsafe_store(at, y.cast[dtype]())

    var whole = size // LANES * LANES
    for at in range(0, whole, LANES):
        scale_and_shift[LANES](at)
    for at in range(whole, size):
        scale_and_shift[1](at)


@always_inline
def _add[dtype: DType, //](output: Data[dtype], x: Data[dtype], y: Data[dtype], size: Int):
    """One row of x + y."""
    var whole = size // LANES * LANES
    for at in range(0, whole, LANES):
        output.unsafe_store(at, (_load[LANES](x, at) + _load[LANES](y, at)).cast[dtype]())
    for at in range(whole, size):
        output.unsafe_store(at, (_load[1](x, at) + _load[1](y, at)).cast[dtype]())


def layer_norm[
    dtype: DType, W: Workers, //
](
    output: Data[dtype],
    x: Data[dtype],
    gamma: Data[dtype],
    beta: Data[dtype],
    rows: Int,
    columns: Int,
    epsilon: Float32,
    workers: W,
):
    """Normalises every row.

    Args:
        output: `rows x columns`.
        x: `rows x columns`.
        gamma: Scale of each column.
        beta: Shift of each column.
        rows: M.
        columns: D.
        epsilon: Added to the variance.
        workers: The threads.
    """

    @always_inline
    def some_rows(begin: Int, end: Int) {imm}:
        for row in range(begin, end):
            var at = row * columns
            normalise(output.unsafe_offset(at), x.unsafe_offset(at), gamma, beta, columns, epsilon)

    workers.share(some_rows, rows, grain(2 * columns * size_of[dtype]()))


def add_layer_norm[
    dtype: DType, W: Workers, //
](
    total: Data[dtype],
    output: Data[dtype],
    x: Data[dtype],
    residual: Data[dtype],
    gamma: Data[dtype],
    beta: Data[dtype],
    rows: Int,
    columns: Int,
    epsilon: Float32,
    workers: W,
):
    """Adds the residual and normalises every row of the sum, as rounded to the element type.

    Args:
        total: `rows x columns`, x + residual.
        output: `rows x columns`.
        x: `rows x columns`.
        residual: `rows x columns`.
        gamma: Scale of each column.
        beta: Shift of each column.
        rows: M.
        columns: D.
        epsilon: Added to the variance.
        workers: The threads.
    """

    @always_inline
    def some_rows(begin: Int, end: Int) {imm}:
        for row in range(begin, end):
            var at = row * columns
            _add(total.unsafe_offset(at), x.unsafe_offset(at), residual.unsafe_offset(at), columns)
            normalise(output.unsafe_offset(at), total.unsafe_offset(at), gamma, beta, columns, epsilon)

    workers.share(some_rows, rows, grain(4 * columns * size_of[dtype]()))

"""The power spectrum of a block's frames, in place in shared memory: see `../dft.mojo`, and `slots.mojo` for what lies where.

Every function does one column or row of one frame; the 32 threads of a team do the same one of 32 frames.
"""

from std.collections import Array

from ...gpu.memory import Shared
from ..dft import Complex, dft5, real_dft, real_dft5
from .slots import ROW, slot_place

comptime Number = Complex[1]


@always_inline
def _load(x: Shared[DType.float32], slot: Int) -> Float32:
    return x.unsafe_load(slot_place(slot))


@always_inline
def _store(x: Shared[DType.float32], slot: Int, y: Float32):
    x.unsafe_store(slot_place(slot), y)


@always_inline
def _reals(x: Shared[DType.float32], first: Int, step: Int) -> Array[Float32, 5]:
    var five = Array[Float32, 5](uninitialized=True)
    comptime for i in range(5):
        five[i] = _load(x, first + i * step)
    return five^


@always_inline
def _numbers(x: Shared[DType.float32], re: Int, im: Int, step: Int) -> Array[Number, 5]:
    var five = Array[Number, 5](uninitialized=True)
    comptime for i in range(5):
        five[i] = Number(_load(x, re + i * step), _load(x, im + i * step))
    return five^


@always_inline
def transform_column(x: Shared[DType.float32]):
    """DFT of the 16 samples of one column of one frame, in place."""
    var samples = Array[Float32, 16](uninitialized=True)
    comptime for n1 in range(16):
        samples[n1] = _load(x, 25 * n1)
    real_dft(samples, x, ROW)


@always_inline
def transform_real_row(x: Shared[DType.float32]):
    """Powers of the DFT of 25 real numbers of one frame, in place; see `../dft.mojo`."""
    comptime for b in range(5):
        var z = real_dft5(_reals(x, b, 5))
        _store(x, b, z[0].re)
        comptime for c in range(1, 3):
            var turned = z[c].turned[b * c, 25]()
            _store(x, 10 * c - 5 + b, turned.re)
            _store(x, 10 * c + b, turned.im)
    var z = real_dft5(_reals(x, 0, 1))
    comptime for d in range(3):
        _store(x, d, z[d].power())
    comptime for c in range(1, 3):
        var z = dft5(_numbers(x, 10 * c - 5, 10 * c, 1))
        comptime for d in range(5):
            _store(x, 10 * c - 5 + d, z[d].power())


@always_inline
def transform_complex_row(x: Shared[DType.float32]):
    """Powers of the DFT of 25 complex numbers of one frame, in place of their real parts; see `../dft.mojo`."""
    comptime for b in range(5):
        var z = dft5(_numbers(x, b, 25 + b, 5))
        comptime for c in range(5):
            var turned = z[c].turned[b * c, 25]()
            _store(x, 5 * c + b, turned.re)
            _store(x, 25 + 5 * c + b, turned.im)
    comptime for c in range(5):
        var z = dft5(_numbers(x, 5 * c, 25 + 5 * c, 1))
        comptime for d in range(5):
            _store(x, 5 * c + d, z[d].power())

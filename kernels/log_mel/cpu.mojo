"""Log-mel spectrogram: speech at 16 kHz -> 100 columns per second of what Whisper's encoder hears.

    s:        n_samples samples, then `padding` zeros, mirrored at both ends: s[-i] = s[i]
    frame f:  v[n] = hann[n] * s[160 f - 200 + n],  n = 0 .. 399,  hann[n] = (1 - cos(2 pi n / 400)) / 2
    mel m:    e[m, f] = sum over k of filter[m, k] * |DFT(v)[k]|^2,  k = 0 .. 200
    result:   y[m, f] = (max(log10(max(e[m, f], 1e-10)), top - 8) + 4) / 4,  top the highest log10 of all m and f

Shapes: samples (B, n_samples); y (B, n_mels, frames), frames = (n_samples + padding) / 160 rounded down. The filters
are triangles, each a short run of bins: runs (n_mels, 2) holds first bin and number of bins, weights the runs one after
another (391 numbers for 80 mels).

One vector lane per frame. Between samples and result, WIDTH neighbouring frames live in the first-level cache; neither
frames nor spectrum ever exist in memory:

      samples                       x: 400 vectors          power: 201 vectors        y
    lane 0 |-- 400 --|             +----------------+       +-----------+           m |   f ..
    lane 1   |-- 400 --|  window,  | sample n of    |  DFT  | bin k of  |  mel, log   |  +----+
      ..       ..       transpose  | WIDTH frames,  | ----> | WIDTH     | ----------> |  |    | <- one vector
    160 apart           ---------> | in slot n      |       | frames    |             |  +----+    per mel
                                   +----------------+       +-----------+
                                   12.8 KB with AVX2, 25.6 KB with AVX-512; the powers half of that

Threads share the blocks of WIDTH frames. `top` is known when all are done, so the result is clamped in a second, short
pass, while it is in cache. Frames that hear nothing but padding are not computed: that pass fills them in.

Cost per frame: 400 multiplications for the window, 5100 operations for the DFT and the powers (`dft.mojo`), 391 for the
filters, 18 per mel for the logarithm and the maximum: 7300, where a fused multiply-add is one. 30 s are 3000 frames and
22 million operations: at two vectors per cycle, 3 GHz and two cores 0.23 ms with AVX2, 0.12 ms with AVX-512. Bytes:
1.9 MB read, 0.96 MB written and clamped in place: 0.12 ms at 24 GB/s. docs/kernels/log_mel.md has the measured times.

Davis and Mermelstein, "Comparison of Parametric Representations for Monosyllabic Word Recognition", IEEE Trans. ASSP
28, 1980. Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356, section 2.2.
"""

from std.algorithm import vectorize
from std.builtin.globals import global_constant
from std.collections import Array
from std.math import ceildiv, cos, iota, log10, pi
from std.memory import bitcast, stack_allocation
from std.sys import size_of

from ..cpu.threads import ForkJoin, grain
from ..cpu.tile import WIDTH
from ..cpu.transpose import transpose
from ..data import Data
from ..math import horner, multiply_add
from .dft import BINS, POINTS, SLOTS, Real, Vector, power_spectrum

comptime HOP = 160
"""Samples from one frame to the next."""

comptime REACH = POINTS // 2
"""Samples that a frame reaches beyond its centre."""

comptime SPAN = (WIDTH - 1) * HOP + POINTS
"""Samples under WIDTH neighbouring frames."""

comptime GRAIN_BLOCKS = 8
"""Blocks of WIDTH frames worth a thread: about 15 us."""

comptime FLOOR = Float32(1e-10)
"""The least energy of a mel."""

comptime SILENCE = Float32(-1.5)
"""The result where all is silent: (log10(FLOOR) + 4) / 4."""

comptime RANGE = Float32(2)
"""The result's range: 8 decades, a quarter each."""


def _hann() -> Array[Float32, POINTS]:
    var window = Array[Float32, POINTS](uninitialized=True)
    for n in range(POINTS):
        window[n] = Float32(0.5 - 0.5 * cos(2 * pi * Float64(n) / Float64(POINTS)))
    return window^


comptime _WINDOW = _hann()
"""The Hann window with period 400."""

comptime _LOG: Array[Float32, 7] = [
    0.10857397317886353,
    -0.054288942366838455,
    0.036158595234155655,
    -0.02701457031071186,
    0.022371239960193634,
    -0.02052256651222706,
    0.012841527350246906,
]
"""The q of degree 6 that brings t * q(t) nearest to log10(1 + t) / 4 on [sqrt(1/2) - 1, sqrt(2) - 1]: within 2.3e-8."""


@always_inline
def scaled_log[width: SIMDLength, //](x: Vector[width]) -> Vector[width]:
    """Computes (log10(x) + 4) / 4 of positive normal numbers, within 4e-7.

    x = 2^e * (1 + t), sqrt(1/2) <= 1 + t < sqrt(2): less the bits of sqrt(1/2), the exponent field of x is e.
    """
    var bits = bitcast[DType.int32, width](x)
    var e = (bits - 0x3F3504F3) >> 23
    var t = bitcast[DType.float32, width](bits - (e << 23)) - 1
    return multiply_add(horner[_LOG](t), t, multiply_add(e.cast[DType.float32](), Float32(log10(2.0) / 4), 1))


@always_inline
def _load_frames[dtype: DType, //](samples: Data[dtype], x: Real[]):
    """Windows WIDTH frames and transposes them: sample n of all frames becomes the vector in its slot of x.

    Args:
        samples: The first frame's first sample; SPAN samples are read.
        x: 400 vectors.
    """
    ref slots = global_constant[SLOTS]()
    var window = global_constant[_WINDOW]().unsafe_ptr()
    for n in range(0, POINTS, WIDTH):
        var weight = window.unsafe_load[width=WIDTH](n)
        var rows = Array[Vector[WIDTH], WIDTH](uninitialized=True)
        comptime for lane in range(WIDTH):
            rows[lane] = samples.unsafe_load[width=WIDTH](lane * HOP + n).cast[DType.float32]() * weight
        transpose[DType.float32, WIDTH](rows)
        comptime for lane in range(WIDTH):
            x.unsafe_store(Int(slots[n + lane]) * WIDTH, rows[lane])


def _copy_border[dtype: DType, //](samples: Data[dtype], count: Int, length: Int, first: Int, copy: Data[dtype]):
    """Copies SPAN samples from position `first` on: zeros behind `count` samples, mirrors at the ends of `length`."""
    for i in range(SPAN):
        var at = abs(first + i)
        if at >= length:
            at = 2 * (length - 1) - at
        copy[unsafe_offset=i] = samples[unsafe_offset=at] if 0 <= at < count else 0


@fieldwise_init
struct Filters(TrivialRegisterPassable):
    """A bank of filters, each a run of neighbouring bins."""

    var runs: Data[DType.int16]
    """First bin and number of bins of each filter."""

    var weights: Data[DType.float32]
    """The runs, one after another."""

    var count: Int
    """Number of filters."""


@always_inline
def _filter_log[
    dtype: DType, //
](power: Real[], filters: Filters, output: Data[dtype], stride: Int, frames: Int) -> Float32:
    """Stores the scaled logarithm of every filter's energy in WIDTH frames.

    Args:
        power: 201 vectors.
        filters: The filters.
        output: Element of the first filter and first frame.
        stride: Elements from one filter to the next.
        frames: How many of the WIDTH frames exist; the lanes behind them are not stored.

    Returns:
        The highest value stored.
    """
    var highest = Vector[WIDTH](SILENCE)
    var weight = filters.weights
    for m in range(filters.count):
        var bin = power.unsafe_offset(Int(filters.runs[unsafe_offset=2 * m]) * WIDTH)
        var count = Int(filters.runs[unsafe_offset=2 * m + 1])
        var energy = Vector[WIDTH](0)
        for i in range(count):
            energy = multiply_add(bin.unsafe_load[width=WIDTH](i * WIDTH), weight[unsafe_offset=i], energy)
        weight = weight.unsafe_offset(count)
        var y = scaled_log(max(energy, FLOOR))
        highest = max(highest, y)
        var row = output.unsafe_offset(m * stride)
        if frames == WIDTH:
            row.unsafe_store(0, y.cast[dtype]())
        else:
            for lane in range(frames):
                row[unsafe_offset=lane] = y[lane].cast[dtype]()
    return iota[DType.int32, WIDTH]().lt(Int32(frames)).select(highest, SILENCE).reduce_max()


def log_mel[dtype: DType, //](samples: Data[dtype], count: Int, padding: Int, filters: Filters, output: Data[dtype]):
    """Computes the spectrogram of one recording on all threads.

    Args:
        samples: The samples, finite.
        count: Number of samples; with the padding at least 201.
        padding: Number of zeros behind them.
        filters: The mel filters.
        output: `filters.count` rows of `(count + padding) // 160`.
    """
    var length = count + padding
    var frames = length // HOP
    var blocks = ceildiv(min(frames, ceildiv(count + REACH, HOP)), WIDTH)
    var heard = min(frames, blocks * WIDTH)
    var highest = List[Float32](length=blocks, fill=SILENCE)
    var highest_of = highest.unsafe_ptr()

    @always_inline
    def some_blocks(begin: Int, end: Int) {imm}:
        var x = stack_allocation[POINTS * WIDTH, DType.float32, alignment=64]()
        var power = stack_allocation[BINS * WIDTH, DType.float32, alignment=64]()
        var border = stack_allocation[SPAN, dtype]()
        for block in range(begin, end):
            var frame = block * WIDTH
            var first = frame * HOP - REACH
            if first >= 0 and first + SPAN <= count:
                _load_frames(samples.unsafe_offset(first), x)
            else:
                _copy_border(samples, count, length, first, border)
                _load_frames(border, x)
            power_spectrum[WIDTH](x, power)
            highest_of[unsafe_offset=block] = _filter_log(
                power, filters, output.unsafe_offset(frame), frames, min(WIDTH, frames - frame)
            )

    ForkJoin().share(some_blocks, blocks, GRAIN_BLOCKS)

    var top = SILENCE
    for value in highest:
        top = max(top, value)
    var lowest = (top - RANGE).cast[dtype]()
    var silence = max(SILENCE.cast[dtype](), lowest)

    @always_inline
    def some_rows(begin: Int, end: Int) {imm}:
        for m in range(begin, end):
            var row = output.unsafe_offset(m * frames)

            @always_inline
            def clamp[width: Int](f: Int) {imm}:
                row.unsafe_store(f, max(row.unsafe_load[width=width](f), lowest))

            @always_inline
            def fill[width: Int](f: Int) {imm}:
                row.unsafe_store(heard + f, SIMD[dtype, width](silence))

            vectorize[WIDTH](heard, clamp)
            vectorize[WIDTH](frames - heard, fill)

    ForkJoin().share(some_rows, filters.count, grain(2 * frames * size_of[dtype]()))

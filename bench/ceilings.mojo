"""What this machine can do at most, with all threads: the ceilings that kernels are measured against.

    mojo run bench/ceilings.mojo

Prints two kinds of lines:

    flops N            float32 operations per second: multiply-adds on registers, nothing loaded
    read BYTES N       bytes per second when BYTES are read over and over: caches deliver more than memory does

The best of several tries counts: a ceiling is what the machine can do, not what it does beside other work.
"""

from std.sys import simd_width_of
from std.time import perf_counter_ns

from max.algorithm import sync_parallelize
from max.runtime.asyncrt import parallelism_level

comptime WIDTH = simd_width_of[DType.float32]()
comptime Vector = SIMD[DType.float32, WIDTH]
comptime CHAINS = 12
"""Independent sums: two units with a latency of four or five cycles each need ten; 16 registers hold twelve and a factor."""

comptime TRIES = 20
comptime STEPS = 20_000_000
comptime READ_BYTES = 1 << 28
"""Bytes read in one try, whatever the size of the array."""


@no_inline
def multiply_add(seed: Float32) -> Float32:
    """STEPS multiply-adds, CHAINS vectors side by side."""
    var factor = Vector(seed)
    var sums = Array[Vector, CHAINS](fill=Vector(seed))
    for _ in range(STEPS // CHAINS):
        comptime for i in range(CHAINS):
            sums[i] = sums[i].fma(factor, factor)
    var total = Vector(0)
    comptime for i in range(CHAINS):
        total += sums[i]
    return total.reduce_add()


@no_inline
def read[origin: Origin](data: Pointer[Float32, origin], count: Int, before: Float32) -> Float32:
    """`before` plus the sum of `count` elements, a multiple of 8 vectors."""
    var sums = Array[Vector, 8](fill=Vector(0))
    sums[0][0] = before
    for start in range(0, count, 8 * WIDTH):
        comptime for i in range(8):
            sums[i] += data.unsafe_load[width=WIDTH](start + i * WIDTH)
    var total = Vector(0)
    comptime for i in range(8):
        total += sums[i]
    return total.reduce_add()


def main():
    var threads = max(1, parallelism_level(None))
    var results = List[Float32](length=threads, fill=0)
    var sums = results.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
    var best = Float64(0)
    for _ in range(TRIES):

        def compute(thread: Int) {imm sums}:
            sums[unsafe_offset=thread] = multiply_add(1e-9)

        var start = perf_counter_ns()
        sync_parallelize(compute, threads)
        var seconds = Float64(perf_counter_ns() - start) * 1e-9
        best = max(best, Float64(2 * WIDTH * (STEPS // CHAINS * CHAINS) * threads) / seconds)
    print("flops", best)

    for shift in range(16, 29, 2):
        var size = 1 << shift
        var count = size // 4 // threads // (8 * WIDTH) * (8 * WIDTH)
        var array = List[Float32](length=count * threads, fill=1)
        var data = array.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var rounds = READ_BYTES // size
        best = 0
        for _ in range(TRIES):

            def sum(thread: Int) {imm sums, imm data, imm count, imm rounds}:
                var total = Float32(0)
                for _ in range(rounds):
                    total = read(data.unsafe_offset(thread * count), count, total)
                sums[unsafe_offset=thread] = total

            var start = perf_counter_ns()
            sync_parallelize(sum, threads)
            var seconds = Float64(perf_counter_ns() - start) * 1e-9
            best = max(best, Float64(4 * count * threads * rounds) / seconds)
        print("read", size, best)
        _ = array^
    var anything = Float32(0)
    for thread in range(threads):
        anything += results[thread]
    if anything == 0.5:
        print("# unlikely")

"""What this machine can do at most, with all threads: the ceilings that kernels are measured against.

    mojo run -I . bench/ceilings.mojo

Prints two kinds of lines:

    flops DTYPE N      operations per second: multiply-adds on registers, nothing loaded; beside float32's those of a tile unit
    read BYTES N       bytes per second when BYTES are read over and over: caches deliver more than memory does

The best of several tries counts: a ceiling is what the machine can do, not what it does beside other work.
"""

from std.ffi import external_call
from std.memory.alloc import unsafe_alloc
from std.random import random_ui64
from std.sys import simd_width_of
from std.time import perf_counter_ns

from max.algorithm import sync_parallelize
from max.runtime.asyncrt import parallelism_level

from kernels.cpu.amx import REGISTERS, TILE_BYTES, TILE_ROWS, HardwareTiles
from kernels.cpu.operand import HARDWARE_AMX

comptime WIDTH = simd_width_of[DType.float32]()
comptime Vector = SIMD[DType.float32, WIDTH]
comptime CHAINS = 12
"""Independent sums: two units with a latency of four or five cycles each need ten; 16 registers hold twelve and a factor."""

comptime TRIES = 20
comptime STEPS = 20_000_000
comptime TILE_STEPS = 1_000_000
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
def multiply_tiles[operand: DType](tiles: HardwareTiles):
    """TILE_STEPS products of two registers by two."""
    for _ in range(TILE_STEPS // 4):
        comptime for a in range(2):
            comptime for b in range(2):
                tiles.multiply[operand, 2 * a + b, 4 + a, 6 + b]()


def tile_rate[operand: DType](threads: Int) -> Float64:
    """Operations per second of the tile units, whose clock depends on the numbers they multiply: bits are random, but finite.
    """
    var words = unsafe_alloc[Int32](REGISTERS * TILE_BYTES // 4, alignment=64)
    for i in range(REGISTERS * TILE_BYTES // 4):
        words[unsafe_offset=i] = Int32(random_ui64(0, 0x7FFFFFFF) & 0x3F7F3F7F)
    var registers = words.unsafe_origin_cast[MutUntrackedOrigin]()
    var best = Float64(0)
    for _ in range(TRIES):

        def compute(thread: Int) {imm registers}:
            var tiles = HardwareTiles(registers)
            tiles.begin()
            comptime for t in range(REGISTERS):
                tiles.load[t](registers.unsafe_offset(t * TILE_BYTES // 4))
            multiply_tiles[operand](tiles)
            tiles.end()

        var start = perf_counter_ns()
        sync_parallelize(compute, threads)
        var seconds = Float64(perf_counter_ns() - start) * 1e-9
        comptime depth = 32 if operand == DType.bfloat16 else 64
        best = max(best, Float64(2 * TILE_ROWS * 16 * depth * TILE_STEPS * threads) / seconds)
    words.unsafe_free()
    return best


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
    print("flops float32", best)
    comptime if HARDWARE_AMX:
        if external_call["syscall", Int](158, 0x1023, 18) == 0:  # as `max_whisper.target` asks
            print("flops bfloat16", tile_rate[DType.bfloat16](threads))
            print("flops int8", tile_rate[DType.int8](threads))

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

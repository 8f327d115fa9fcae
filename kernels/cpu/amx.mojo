"""The tile unit of a CPU with AMX: eight registers of 16 rows x 64 bytes, and one instruction that multiplies two of them.

    C (16 x 16) += A (16 x K) B (K x 16)        K = 32 in bfloat16 with float32 sums, 64 in int8 with int32 sums

            64 bytes              64 bytes               64 bytes
          +----------+          +----------+           +----------+
       16 | A[i, k]  |       16 | B: row r | holds     | C[i, n]  | 16       4 bytes of B hold G = 2 or 4 neighbouring k of
          +----------+          |  16 n's  | k = G*r.. +----------+          one column: a row of a packed panel is a row of B,
                                +----------+                                 and 16 of them, 1 KB, are a register

Two implementations of the same few operations: the instructions, and a picture of them in plain memory, with which the
blocking, packing, tails and epilogues around them are tested on any CPU.

A block of 2 x 2 registers of C needs 4 loads for 4 products: 4 * 16*16*K multiply-adds per 4 KB from the first cache. Where
4 registers hold all of A, 2 loads do. What vector units have to do goes between the instructions (`beside.mojo`).

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from std.memory import bitcast, stack_allocation
from std.sys import llvm_intrinsic

from ..data import Data
from ..math import multiply_add
from .beside import Beside, keep_apart
from .operand import HARDWARE_AMX

comptime TILE_ROWS = 16
"""Rows of a register."""

comptime TILE_BYTES = 1024
"""Bytes of a register."""

comptime REGISTERS = 8


trait TileUnit(TrivialRegisterPassable):
    """Eight tile registers, named by number."""

    def __init__(out self, memory: Data[DType.int32]):
        """Takes memory for what the CPU has no registers for.

        Args:
            memory: `REGISTERS * TILE_BYTES` bytes, aligned to 64.
        """
        ...

    def begin(self):
        """Gives all registers 16 rows of 64 bytes. To be called by every thread before its first product."""
        ...

    def end(self):
        """Gives the registers back: a thread that holds none is cheaper to switch."""
        ...

    def clear[c: Int](self):
        """Fills register c with zeros."""
        ...

    def load[t: Int](self, x: Data[DType.int32], stride: Int = 16):
        """Fills register t from 16 rows of 64 bytes, `stride` elements apart."""
        ...

    def stream[t: Int](self, x: Data[DType.int32], stride: Int = 16):
        """Fills register t as `load` does, from rows that the first cache need not keep: they would push out what it should.
        """
        ...

    def multiply[operand: DType, c: Int, a: Int, b: Int](self):
        """Adds the product of registers a and b to register c.

        Parameters:
            operand: DType.bfloat16 or DType.int8.
            c: A register of float32 or int32.
            a: The left factor.
            b: The right factor.
        """
        ...

    def store[c: Int](self, y: Data[DType.int32], stride: Int):
        """Writes the 16 rows of register c, `stride` elements apart."""
        ...


struct HardwareTiles(TileUnit):
    """The instructions of a CPU with AMX. The process must have the kernel's permission, see `max_whisper.target`."""

    def __init__(out self, memory: Data[DType.int32]):
        """Needs no memory."""
        pass

    @always_inline
    def begin(self):
        """Loads the configuration: palette 1, and for each register 64 bytes a row, 16 rows."""
        var configuration = stack_allocation[64, DType.uint8, alignment=64]()
        for i in range(64):
            configuration[unsafe_offset=i] = 0
        configuration[unsafe_offset=0] = 1
        for t in range(REGISTERS):
            configuration[unsafe_offset=16 + 2 * t] = 64
            configuration[unsafe_offset=48 + t] = UInt8(TILE_ROWS)
        llvm_intrinsic["llvm.x86.ldtilecfg", NoneType](configuration)

    @always_inline
    def end(self):
        """Releases the registers."""
        llvm_intrinsic["llvm.x86.tilerelease", NoneType]()

    @always_inline
    def clear[c: Int](self):
        """Clears a register."""
        llvm_intrinsic["llvm.x86.tilezero", NoneType](Int8(c))

    @always_inline
    def load[t: Int](self, x: Data[DType.int32], stride: Int = 16):
        """Loads a register."""
        llvm_intrinsic["llvm.x86.tileloadd64", NoneType](Int8(t), x, Int64(4 * stride))

    @always_inline
    def stream[t: Int](self, x: Data[DType.int32], stride: Int = 16):
        """Loads a register with the hint T1."""
        llvm_intrinsic["llvm.x86.tileloaddt164", NoneType](Int8(t), x, Int64(4 * stride))

    @always_inline
    def multiply[operand: DType, c: Int, a: Int, b: Int](self):
        """Multiplies and adds."""
        comptime if operand == DType.bfloat16:
            llvm_intrinsic["llvm.x86.tdpbf16ps", NoneType](Int8(c), Int8(a), Int8(b))
        else:
            comptime assert operand == DType.int8, "AMX multiplies bfloat16 and int8"
            llvm_intrinsic["llvm.x86.tdpbssd", NoneType](Int8(c), Int8(a), Int8(b))

    @always_inline
    def store[c: Int](self, y: Data[DType.int32], stride: Int):
        """Stores a register."""
        llvm_intrinsic["llvm.x86.tilestored64", NoneType](Int8(c), y, Int64(4 * stride))


struct EmulatedTiles(TileUnit):
    """The same in plain memory, for tests on a CPU without AMX."""

    var registers: Data[DType.int32]

    def __init__(out self, memory: Data[DType.int32]):
        """Keeps the registers in the memory given."""
        self.registers = memory

    @always_inline
    def _row[t: Int](self, row: Int) -> Data[DType.int32]:
        return self.registers.unsafe_offset(t * TILE_BYTES // 4 + row * 16)

    def begin(self):
        """Fills the registers with what no result may depend on."""
        for i in range(REGISTERS * TILE_BYTES // 4):
            self.registers[unsafe_offset=i] = -1  # NaN in float32 and in bfloat16

    def end(self):
        """Nothing is to be given back."""
        pass

    def clear[c: Int](self):
        """Clears a register."""
        for row in range(TILE_ROWS):
            self._row[c](row).unsafe_store(0, SIMD[DType.int32, 16](0))

    def load[t: Int](self, x: Data[DType.int32], stride: Int = 16):
        """Loads a register."""
        for row in range(TILE_ROWS):
            self._row[t](row).unsafe_store(0, x.unsafe_load[width=16](row * stride))

    def stream[t: Int](self, x: Data[DType.int32], stride: Int = 16):
        """Loads a register."""
        self.load[t](x, stride)

    def multiply[operand: DType, c: Int, a: Int, b: Int](self):
        """Multiplies and adds, 4 bytes of k at a time; the even and the odd products of bfloat16 are sums of their own, which
        C receives at the end, rounded once."""
        for row in range(TILE_ROWS):
            var sums = self._row[c](row).unsafe_load[width=16](0)
            var even = SIMD[DType.float32, 16](0)
            var odd = SIMD[DType.float32, 16](0)
            for k in range(16):
                var a_k = SIMD[DType.int32, 16](self._row[a](row)[unsafe_offset=k])
                var b_k = self._row[b](k).unsafe_load[width=16](0)
                comptime if operand == DType.bfloat16:
                    even = multiply_add(
                        bitcast[DType.float32, 16](a_k << 16), bitcast[DType.float32, 16](b_k << 16), even
                    )
                    odd = multiply_add(
                        bitcast[DType.float32, 16](a_k & -65536), bitcast[DType.float32, 16](b_k & -65536), odd
                    )
                else:
                    comptime for byte in range(4):
                        sums += (a_k << Int32(24 - 8 * byte) >> 24) * (b_k << Int32(24 - 8 * byte) >> 24)
            comptime if operand == DType.bfloat16:
                sums = bitcast[DType.int32, 16](bitcast[DType.float32, 16](sums) + (even + odd))
            self._row[c](row).unsafe_store(0, sums)

    def store[c: Int](self, y: Data[DType.int32], stride: Int):
        """Stores a register."""
        for row in range(TILE_ROWS):
            y.unsafe_store(row * stride, self._row[c](row).unsafe_load[width=16](0))


comptime Tiles = HardwareTiles if HARDWARE_AMX else EmulatedTiles
"""The tile unit of this CPU, or its picture."""


@no_inline
def multiply_tiles[
    T: TileUnit, B: Beside, //, operand: DType, strips: Int, panels: Int, keep_a: Bool = False
](
    tiles: T,
    a: Data[DType.int32],
    a_strip_stride: Int,
    b: Data[DType.int32],
    b_panel_stride: Int,
    tails: Data[DType.int32],
    whole: Int,
    sums: Data[DType.int32],
    sums_stride: Int,
    mut beside: B,
):
    """Stores `a @ b` for one or two strips of 16 rows and one or two panels. Strides count 4 bytes.

    Parameters:
        T: The tile unit.
        B: Kind of the work beside.
        operand: DType.bfloat16 or DType.int8.
        strips: Strips of a.
        panels: Panels of b.
        keep_a: Which factor the first cache is to keep: a, that all panels meet, or b, that some more strips meet.

    Args:
        tiles: The tile unit, after `begin`.
        a: The strips as registers take them, 1 KB after another; the last one padded with zeros.
        a_strip_stride: From one strip to the next.
        b: First row of values of the first panel.
        b_panel_stride: From one panel to the next.
        tails: For each panel what is left behind `whole` KB of it, padded to 1 KB; not read if `a` ends there too.
        whole: KB of a panel that are read where they lie.
        sums: Receives float32 or int32.
        sums_stride: From one row of the sums to the next.
        beside: What vector units do meanwhile: a piece behind each instruction, if all kinds of them fit into a step.
    """
    comptime size = TILE_BYTES // 4
    comptime registers = strips * panels
    comptime instructions = strips + panels + registers  # of a step
    var work = beside  # in registers

    @always_inline
    def then[instruction: Int]() {mut work}:
        comptime if registers % B.phases == 0 and instructions % B.phases == 0:
            work.piece[instruction % B.phases]()
        else:
            keep_apart()

    comptime for c in range(registers):
        tiles.clear[c]()
        then[c]()

    @always_inline
    def add(i: Int, b_i: Data[DType.int32], stride: Int) {imm tiles, imm a, imm a_strip_stride, mut then}:
        comptime for s in range(strips):
            comptime if keep_a:
                tiles.load[4 + s](a.unsafe_offset(s * a_strip_stride + i * size))
            else:
                tiles.stream[4 + s](a.unsafe_offset(s * a_strip_stride + i * size))
            then[s]()
        comptime for p in range(panels):
            comptime if keep_a:
                tiles.stream[6 + p](b_i.unsafe_offset(p * stride))
            else:
                tiles.load[6 + p](b_i.unsafe_offset(p * stride))
            then[strips + p]()
        comptime for s in range(strips):
            comptime for p in range(panels):
                tiles.multiply[operand, s * panels + p, 4 + s, 6 + p]()
                then[strips + panels + s * panels + p]()

    for i in range(whole):
        add(i, b.unsafe_offset(i * size), b_panel_stride)
    if a_strip_stride > whole * size:
        add(whole, tails, size)

    comptime for s in range(strips):
        comptime for p in range(panels):
            comptime c = s * panels + p
            tiles.store[c](sums.unsafe_offset(s * TILE_ROWS * sums_stride + p * 16), sums_stride)
            then[c]()
    beside = work


@no_inline
def multiply_resident[
    T: TileUnit, B: Beside, //, operand: DType, strips: Int, steps: Int, accumulate: Bool
](
    tiles: T,
    a: Data[DType.int32],
    b: Data[DType.int32],
    b_panel_stride: Int,
    panels: Int,
    sums: Data[DType.int32],
    sums_stride: Int,
    mut beside: B,
):
    """Stores `a @ b`, or adds it, for an `a` that four registers hold. Strides count 4 bytes.

    A panel takes `steps` loads for `strips * steps` products, half of what `multiply_tiles` takes, and two registers of sums.

    Parameters:
        T: The tile unit.
        B: Kind of the work beside.
        operand: DType.bfloat16 or DType.int8.
        strips: Strips of a, one or two.
        steps: KB of each strip and panel, one or two.
        accumulate: Whether to add to the sums that are there.

    Args:
        tiles: The tile unit, after `begin`.
        a: The strips as registers take them, one after another.
        b: First row of values of the first panel.
        b_panel_stride: From one panel to the next.
        panels: Panels of b.
        sums: Receives float32 or int32.
        sums_stride: From one row of the sums to the next.
        beside: What vector units do meanwhile: pieces behind four of five instructions.
    """
    comptime size = TILE_BYTES // 4
    comptime instructions = 2 * strips + steps + strips * steps  # for a panel
    comptime pieces = instructions * 4 // 5 // B.phases * B.phases
    var work = beside  # in registers

    comptime for i in range(strips * steps):
        tiles.load[4 + i](a.unsafe_offset(i * size))

    @always_inline
    def then[instruction: Int]() {mut work}:
        comptime begin = instruction * pieces // instructions
        comptime for piece in range(begin, (instruction + 1) * pieces // instructions):
            work.piece[piece % B.phases]()

    for panel in range(panels):
        var place = sums.unsafe_offset(panel * 16)
        comptime for s in range(strips):
            comptime if accumulate:
                tiles.load[s](place.unsafe_offset(s * TILE_ROWS * sums_stride), sums_stride)
            else:
                tiles.clear[s]()
            then[s]()
        comptime for i in range(steps):
            tiles.stream[2 + i](b.unsafe_offset(panel * b_panel_stride + i * size))
            then[strips + i]()
        comptime for i in range(steps):
            comptime for s in range(strips):
                tiles.multiply[operand, s, 4 + s * steps + i, 2 + i]()
                then[strips + steps + i * strips + s]()
        comptime for s in range(strips):
            tiles.store[s](place.unsafe_offset(s * TILE_ROWS * sums_stride), sums_stride)
            then[strips + steps + strips * steps + s]()
    beside = work

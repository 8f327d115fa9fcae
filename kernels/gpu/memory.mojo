"""How GPU bodies move memory: 16 bytes a thread and request, copies in flight, shared tiles without bank conflicts.

Global memory is read in sectors of 32 bytes. A warp whose lanes read 16 consecutive bytes each uses every byte of every
sector it asks for; all bodies therefore move CHUNK bytes a lane, and rows must be a multiple of CHUNK long.

Shared tiles. A row of a tile is 128 bytes: 8 chunks, one for each group of 4 banks. Stored as they come, chunk c of all
rows would lie in the same banks, and the 8 lanes that read one chunk of 8 rows (a phase of `ldmatrix`) would queue. So
chunk c of row r is stored at place c XOR (r mod 8):

    row 0:  0 1 2 3 4 5 6 7
    row 1:  1 0 3 2 5 4 7 6       a column of chunks meets every place, hence every bank, once;
    row 2:  2 3 0 1 6 7 4 5       a row of chunks (how the tile is filled) does too
    ...

Copies in flight. On NVIDIA GPUs `cp.async` (sm_80 and later) writes to shared memory without passing registers and without
waiting; the copies of a thread are closed into groups (`commit_copies`) and awaited by how many groups may still be in
flight (`wait_copies`). After the wait a barrier makes the other threads' copies visible. Elsewhere `copy_chunk` is a load
and a store, and the other two do nothing.

NVIDIA, "PTX ISA", 9.7.9.25 (cp.async).
"""

from max.gpu.memory import AddressSpace
from std.memory import stack_allocation
from std.sys import inlined_assembly, is_nvidia_gpu, size_of

from ..data import Data

comptime CHUNK = 16
"""Bytes that a thread moves at once."""

comptime TILE_ROW = 128
"""Bytes of a row of a shared tile: all banks once."""

comptime MOST_BLOCKS = 65535
"""Blocks of a grid along its second and third dimension."""

comptime CHUNKS = TILE_ROW // CHUNK
"""Chunks of a row of a shared tile."""

comptime Shared[dtype: DType] = Pointer[Scalar[dtype], MutUntrackedOrigin, address_space=AddressSpace.SHARED]
"""Address in a block's shared memory."""


@always_inline
def chunk[dtype: DType]() -> Int:
    """Elements in a chunk."""
    return CHUNK // size_of[dtype]()


@always_inline
def shared_memory[dtype: DType, size: Int]() -> Shared[dtype]:
    """Shared memory of the block for `size` elements, aligned for tiles."""
    return stack_allocation[size, dtype, address_space=AddressSpace.SHARED, alignment=TILE_ROW]().unsafe_origin_cast[
        MutUntrackedOrigin
    ]()


@always_inline
def swizzled[dtype: DType](row: Int, place: Int) -> Int:
    """Where a chunk of a shared tile lies.

    Args:
        row: Row of the tile.
        place: Number of the chunk in its row, 0 to 7.

    Returns:
        Its offset in elements from the start of the tile.
    """
    return row * (TILE_ROW // size_of[dtype]()) + (place ^ (row & 7)) * chunk[dtype]()


@always_inline
def load_chunk[dtype: DType](x: Data[dtype], at: Int) -> SIMD[dtype, chunk[dtype]()]:
    """Loads 16 aligned bytes of global memory."""
    return x.unsafe_load[width=chunk[dtype](), alignment=CHUNK](at)


@always_inline
def store_chunk[dtype: DType](x: Data[dtype], at: Int, y: SIMD[dtype, chunk[dtype]()]):
    """Stores 16 aligned bytes to global memory."""
    x.unsafe_store[alignment=CHUNK](at, y)


@always_inline
def copy_chunk[dtype: DType, //, shift: Int = 0](source: Data[dtype], target: Shared[dtype], valid: Bool):
    """Starts to copy a chunk from global to shared memory.

    Parameters:
        dtype: Of the elements.
        shift: How many bytes behind the target they go: part of the instruction, where an addition would be another.

    Args:
        source: 16 aligned bytes; where invalid it may point anywhere, as it is not read.
        target: Where they go.
        valid: Whether to copy; otherwise the target becomes zero.
    """
    comptime if is_nvidia_gpu():
        inlined_assembly["cp.async.cg.shared.global [$0+$3], [$1], 16, $2;", NoneType, constraints="r,l,r,n,~{memory}"](
            Int32(Int(target)), Int(source), Int32(CHUNK) if valid else Int32(0), Int32(shift)
        )
    else:
        var y = SIMD[dtype, chunk[dtype]()](0)
        if valid:
            y = load_chunk(source, 0)
        target.unsafe_store[alignment=CHUNK](shift // size_of[dtype](), y)


@always_inline
def commit_copies():
    """Closes the copies that this thread started since the last call into a group."""
    comptime if is_nvidia_gpu():
        inlined_assembly["cp.async.commit_group;", NoneType, constraints="~{memory}"]()


@always_inline
def wait_copies[in_flight: Int = 0]():
    """Waits for this thread's groups of copies, all but the `in_flight` latest; a barrier must follow."""
    comptime if is_nvidia_gpu():
        inlined_assembly["cp.async.wait_group $0;", NoneType, constraints="n,~{memory}"](Int32(in_flight))

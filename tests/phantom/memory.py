"""Global memory: one arena at a fixed address, in which every buffer stands between red zones.

    BASE  | red | buffer 0 | red | buffer 1 | red | ...

Two maps beside the bytes say what may be touched and what was written, so that a read beyond a buffer or of memory that
nobody wrote is an error and not a number. The arena is mapped at its address, so a device pointer is also one of the host.
"""

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np

from tests.phantom.errors import PhantomError

BASE = 0x7000_0000_0000
"""Address of the arena: far from everything that the process maps by itself."""

SHARED_WINDOW, LOCAL_WINDOW = 0x5000_0000_0000, 0x6000_0000_0000
"""Where shared and local memory begin for instructions that name no space; both spaces have their own addresses from 0."""

ALIGNMENT = 256
RED_ZONE = 256
FREED_BYTE = 0xA5

_MAP_FIXED_NOREPLACE, _MAP_NORESERVE = 0x100000, 0x4000


@dataclass(frozen=True)
class Buffer:
    """An allocation: offset from BASE, and size."""

    offset: int
    size: int


class Memory:
    """Global memory of the phantom GPU.

    Args:
        size: Bytes of the arena. Pages that are never touched cost nothing.

    Attributes:
        bytes: The arena.
        allowed: Which bytes belong to a buffer.
        written: Which bytes were written since their allocation.
    """

    def __init__(self, size: int = 1 << 30) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE
        if libc.mmap(BASE, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != BASE:
            raise PhantomError(f"{size} bytes cannot be mapped at {BASE:#x}: has this process a second phantom GPU?")
        self.size = size
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(BASE))
        self.allowed = np.zeros(size, bool)
        self.written = np.zeros(size, bool)
        self._buffers: dict[int, Buffer] = {}
        self._free: dict[int, list[int]] = {}
        self._top = RED_ZONE

    def allocate(self, size: int) -> int:
        """Returns the address of a new buffer whose bytes count as never written.

        Raises:
            PhantomError: The arena is full.
        """
        room = -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        if free := self._free.get(room):
            offset = free.pop()
        else:
            offset = self._top
            if offset + room + RED_ZONE > self.size:
                raise PhantomError(
                    f"out of memory: {size} bytes asked for, {self.size - self._top} left of {self.size}"
                )
            self._top += room + RED_ZONE
        self._buffers[offset] = Buffer(offset, size)
        self.allowed[offset : offset + size] = True
        self.written[offset : offset + size] = False
        return BASE + offset

    def free(self, address: int) -> None:
        """Gives a buffer back; its bytes are overwritten."""
        buffer = self._buffers.pop(address - BASE, None)
        if buffer is None:
            raise PhantomError(f"{address:#x} is freed, but no buffer begins there")
        span = slice(buffer.offset, buffer.offset + buffer.size)
        self.bytes[span], self.allowed[span], self.written[span] = FREED_BYTE, False, False
        self._free.setdefault(-(-max(buffer.size, 1) // ALIGNMENT) * ALIGNMENT, []).append(buffer.offset)

    def write(self, address: int, data: bytes | np.ndarray) -> None:
        """Copies from the host."""
        array = np.frombuffer(np.ascontiguousarray(data).tobytes() if isinstance(data, np.ndarray) else data, np.uint8)
        self.bytes[self._span(address, array.size, "copy from the host")] = array
        self.mark_written(address, array.size)

    def read(self, address: int, size: int) -> np.ndarray:
        """Copies to the host, as bytes.

        Raises:
            PhantomError: Some of the bytes were never written.
        """
        self.check_written(address, size)
        return self.bytes[self._span(address, size, "copy to the host")].copy()

    def mark_written(self, address: int, size: int) -> None:
        """Notes that the host wrote these bytes."""
        self.written[self._span(address, size, "copy from the host")] = True

    def check_written(self, address: int, size: int) -> None:
        """Raises unless all of these bytes were written."""
        missing = size - int(np.count_nonzero(self.written[self._span(address, size, "copy to the host")]))
        if missing:
            raise PhantomError(f"copy to the host of {size} bytes, {missing} of them never written")

    def contains(self, address: int) -> bool:
        """Whether an address lies in the arena."""
        return BASE <= address < BASE + self.size

    def describe(self, address: int) -> str:
        """Names the buffer nearest to an address, for messages."""
        offset = address - BASE
        before = [b for b in self._buffers.values() if b.offset <= offset]
        if not before:
            return f"{address:#x}, in no buffer"
        buffer = max(before, key=lambda b: b.offset)
        return f"byte {offset - buffer.offset} of a buffer of {buffer.size} bytes"

    def _span(self, address: int, size: int, what: str) -> slice:
        begin = address - BASE
        if size and not (begin >= 0 and begin + size <= self.size and self.allowed[begin : begin + size].all()):
            raise PhantomError(f"{what} of {size} bytes at {self.describe(address)}: out of bounds")
        return slice(begin, begin + size)

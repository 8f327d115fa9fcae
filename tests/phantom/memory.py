"""Global memory: one arena at a fixed address, in which every buffer stands between red zones.

    BASE  | red | buffer 0 | red | buffer 1 | red | ...

Two maps beside the bytes say what may be touched and what was written, so that a read beyond a buffer or of memory that
nobody wrote is an error and not a number. The arena is mapped at its address, so a device pointer is also one of the host.
"""

import ctypes
import mmap
from bisect import bisect_right, insort
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

_ELEMENTS = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8"), 16: np.dtype("c16")}
_ALL_TRUE = {size: np.ones(size, bool).view(dtype)[0] for size, dtype in _ELEMENTS.items()}

_MAP_FIXED_NOREPLACE, _MAP_NORESERVE = 0x100000, 0x4000


def elements(array: np.ndarray, size: int) -> np.ndarray:
    """Bytes or flags of bytes as elements of 1 to 16 bytes, which are taken and put several times faster."""
    return array.view(_ELEMENTS[size])


def all_true(flags: np.ndarray) -> bool:
    """Whether all flags are set, of some `elements` of flags."""
    return bool((flags.view(_ELEMENTS[min(8, flags.itemsize)]) == _ALL_TRUE[min(8, flags.itemsize)]).all())


def set_true(flags: np.ndarray, size: int, at: np.ndarray) -> None:
    """Sets the flags of the bytes of some elements."""
    elements(flags, size)[at] = _ALL_TRUE[size]


def by_thread(flags: np.ndarray) -> np.ndarray:
    """Of some `elements` of flags, whether all of each are set."""
    return np.logical_and.reduce(flags.view(bool).reshape(len(flags), -1), axis=1)


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

    def __init__(self, size: int = 4 << 30) -> None:
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
        self._begins: list[int] = []
        self._history: tuple[np.ndarray, np.ndarray] | None = None
        self._stamp = 0
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
        insort(self._begins, offset)
        self.allowed[offset : offset + size] = True
        self.written[offset : offset + size] = False
        return BASE + offset

    def reserve(self, size: int, alignment: int) -> int:
        """Returns the address of a range that is no buffer yet, see `back`."""
        offset = -(-self._top // alignment) * alignment
        if offset + size + RED_ZONE > self.size:
            raise PhantomError(f"out of memory: {size} bytes asked for, {self.size - self._top} left of {self.size}")
        self._top = offset + size + RED_ZONE
        return BASE + offset

    def back(self, address: int, size: int) -> None:
        """Makes a buffer of a part of a range that was reserved."""
        offset = address - BASE
        self._buffers[offset] = Buffer(offset, size)
        insort(self._begins, offset)
        self.allowed[offset : offset + size] = True

    def free(self, address: int) -> None:
        """Gives a buffer back; its bytes are overwritten."""
        buffer = self._buffers.pop(address - BASE, None)
        if buffer is None:
            raise PhantomError(f"{address:#x} is freed, but no buffer begins there")
        self._begins.remove(buffer.offset)
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

    def copy(self, target: int, source: int, size: int) -> None:
        """Copies from buffer to buffer; what was never written stays so."""
        to, of = self._span(target, size, "copy"), self._span(source, size, "copy")
        self.bytes[to], self.written[to] = self.bytes[of], self.written[of]

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

    def buffer_at(self, offset: int) -> int:
        """Where the buffer begins that an offset from BASE lies in."""
        return self._begins[bisect_right(self._begins, offset) - 1]

    @staticmethod
    def address(offset: np.ndarray) -> np.ndarray:
        """The addresses of offsets from BASE."""
        return offset + BASE

    def history(self, numbers: int) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
        """Notes at each byte, of who wrote and who read it.

        Args:
            numbers: How many different notes a launch may make.

        Returns:
            A number above which its notes begin, as all others were made by earlier launches; two arrays of notes.
        """
        if self._history is None or self._stamp + numbers >= 2**31:
            self._history = np.zeros(self.size, np.int32), np.zeros(self.size, np.int32)
            self._stamp = 0
        base, self._stamp = self._stamp, self._stamp + numbers
        return base, self._history

    def describe(self, address: int) -> str:
        """Names the buffer nearest to an address, for messages."""
        offset = address - BASE
        if not self._begins or offset < self._begins[0]:
            return f"{address:#x}, in no buffer"
        buffer = self._buffers[self.buffer_at(offset)]
        return f"byte {offset - buffer.offset} of a buffer of {buffer.size} bytes"

    def _span(self, address: int, size: int, what: str) -> slice:
        begin = address - BASE
        if size and not (begin >= 0 and begin + size <= self.size and self.allowed[begin : begin + size].all()):
            raise PhantomError(f"{what} of {size} bytes at {self.describe(address)}: out of bounds")
        return slice(begin, begin + size)

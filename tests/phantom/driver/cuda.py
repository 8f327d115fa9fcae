"""CUDA's driver functions, as far as MAX's runtime calls them: one GPU.

Everything happens at once and in order, so streams and events have nothing to do. Functions are named as in the driver and
found by their names; those that are not here succeed and do nothing. A kernel's fault ends its launch with an error code;
the fault itself is kept in `faults`, for whoever started the work.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from tests.phantom import lines
from tests.phantom.architecture import CURRENT
from tests.phantom.counters import Counters
from tests.phantom.driver.graphs import Graphs
from tests.phantom.errors import PhantomError
from tests.phantom.launch import Options, launch, load_kernel
from tests.phantom.memory import BASE, Memory
from tests.phantom.ptx import Kernel

Grid = tuple[int, int, int]

NAME = f"Phantom GPU ({CURRENT.name})".encode()
PCI_ADDRESS = b"0000:01:00.0"
OUT_OF_MEMORY, NOT_FOUND, LAUNCH_FAILED = 2, 500, 719
MOST_DYNAMIC_SHARED = 8  # an attribute of a function

LARGEST_BUFFER = 256 << 20
"""Larger requests are refused: MAX would take them as pools, and the bounds of single buffers would be unknown."""

TOTAL, GRANULARITY = 1 << 30, 2 << 20
"""The GPU's memory, and the unit in which it is mapped. What is allocated while a graph is captured, and from then on, lies
in one range of TOTAL addresses: buffers in it have no bounds of their own."""

ATTRIBUTES = CURRENT.attributes()


def _set(pointer: int, value: int, kind: type = ctypes.c_uint64) -> None:
    if pointer:
        kind.from_address(pointer).value = value


def _set_text(pointer: int, size: int, text: bytes) -> None:
    ctypes.memmove(pointer, text[: size - 1] + b"\0", min(size, len(text) + 1))


@dataclass(kw_only=True)
class Driver(Graphs):
    """The state of the driver.

    Attributes:
        memory: The GPU's memory.
        options: How launches run; may be changed between them.
        launches: Counts of all launches so far; clear it before what is to be counted.
        faults: What went wrong so far.
        alter: Changes every kernel and grid before its launch; for planting faults.
        unknown: Functions that were called and are not here.
        most_dynamic: Bytes of dynamic shared memory that were asked for, by the handles of the kernels.
    """

    memory: Memory
    options: Options = field(default_factory=Options)
    launches: list[Counters] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    alter: Callable[[Kernel, Grid], tuple[Kernel, Grid]] | None = None
    unknown: set[str] = field(default_factory=set)
    most_dynamic: dict[int, int] = field(default_factory=dict)
    _handles: count = field(default_factory=lambda: count(0x1000))
    _modules: dict[int, str] = field(default_factory=dict)
    _functions: dict[int, tuple[str, str]] = field(default_factory=dict)
    _texts: list[ctypes.Array] = field(default_factory=list)
    _host: dict[int, ctypes.Array] = field(default_factory=dict)

    def function(self, name: str) -> Callable[..., int]:
        """The function that a trampoline calls."""
        method = getattr(self, name, None)

        def call(*arguments: int) -> int:
            if method is None:
                self.unknown.add(name)
                return 0
            try:
                return method(*arguments[: method.__func__.__code__.co_argcount - 1]) or 0
            except Exception as error:
                self.faults.append(str(error) if isinstance(error, PhantomError) else f"{name}: {error!r}")
                return LAUNCH_FAILED

        return call

    def modules(self) -> list[str]:
        """The PTX of all modules that were loaded."""
        return list(self._modules.values())

    # --- device and context -----------------------------------------------------------------------------------------

    def cuDriverGetVersion(self, version: int) -> None:
        _set(version, 13000, ctypes.c_int)

    def cuDeviceGetCount(self, n: int) -> None:
        _set(n, 1, ctypes.c_int)

    def cuDeviceGet(self, device: int, ordinal: int) -> None:
        _set(device, ordinal, ctypes.c_int)

    def cuDeviceGetName(self, text: int, size: int, device: int) -> None:
        _set_text(text, size & 0xFFFFFFFF, NAME)

    def cuDeviceGetAttribute(self, value: int, attribute: int, device: int) -> None:
        _set(value, ATTRIBUTES.get(attribute & 0xFFFFFFFF, 0), ctypes.c_int)

    def cuDeviceTotalMem_v2(self, size: int, device: int) -> None:
        _set(size, TOTAL)

    def cuDeviceGetUuid_v2(self, uuid: int, device: int) -> None:
        ctypes.memset(uuid, 1, 16)

    cuDeviceGetUuid = cuDeviceGetUuid_v2

    def cuDeviceCanAccessPeer(self, can: int, device: int, other: int) -> None:
        _set(can, 0, ctypes.c_int)

    def cuDevicePrimaryCtxRetain(self, context: int, device: int) -> None:
        _set(context, 0x1001)

    def cuCtxCreate_v2(self, context: int, flags: int, device: int) -> None:
        _set(context, 0x1001)

    def cuCtxGetCurrent(self, context: int) -> None:
        _set(context, 0x1001)

    cuCtxPopCurrent_v2 = cuCtxPopCurrent = cuCtxGetCurrent

    def cuCtxGetDevice(self, device: int) -> None:
        _set(device, 0, ctypes.c_int)

    def cuCtxGetStreamPriorityRange(self, least: int, greatest: int) -> None:
        _set(least, 0, ctypes.c_int)
        _set(greatest, 0, ctypes.c_int)

    # --- streams and events -----------------------------------------------------------------------------------------

    def cuStreamCreate(self, stream: int, flags: int) -> None:
        _set(stream, next(self._handles))

    def cuStreamCreateWithPriority(self, stream: int, flags: int, priority: int) -> None:
        _set(stream, next(self._handles))

    def cuEventCreate(self, event: int, flags: int) -> None:
        _set(event, next(self._handles))

    def cuEventElapsedTime(self, milliseconds: int, begin: int, end: int) -> None:
        _set(milliseconds, 0, ctypes.c_int)

    cuEventElapsedTime_v2 = cuEventElapsedTime

    def cuLaunchHostFunc(self, stream: int, function: int, data: int) -> None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)

    # --- memory -----------------------------------------------------------------------------------------------------

    def cuMemGetInfo_v2(self, free: int, total: int) -> None:
        _set(free, TOTAL)
        _set(total, TOTAL)

    def cuMemAlloc_v2(self, pointer: int, size: int) -> int:
        if size > LARGEST_BUFFER:
            return OUT_OF_MEMORY
        _set(pointer, self.memory.allocate(size))
        return 0

    def cuMemAllocAsync(self, pointer: int, size: int, stream: int) -> int:
        return self.cuMemAlloc_v2(pointer, size)

    def cuMemFree_v2(self, pointer: int) -> None:
        self.memory.free(pointer)

    def cuMemFreeAsync(self, pointer: int, stream: int) -> None:
        self.memory.free(pointer)

    def cuMemAllocHost_v2(self, pointer: int, size: int) -> None:
        block = ctypes.create_string_buffer(size + 4096)
        address = -(-ctypes.addressof(block) // 4096) * 4096
        self._host[address] = block
        _set(pointer, address)

    def cuMemHostAlloc(self, pointer: int, size: int, flags: int) -> None:
        self.cuMemAllocHost_v2(pointer, size)

    def cuMemFreeHost(self, pointer: int) -> None:
        self._host.pop(pointer, None)

    def cuMemHostGetDevicePointer_v2(self, device: int, host: int, flags: int) -> None:
        _set(device, host)

    def cuMemGetAddressRange_v2(self, base: int, size: int, pointer: int) -> None:
        _set(base, pointer)
        _set(size, 0)

    def cuMemGetAllocationGranularity(self, size: int, properties: int, option: int) -> None:
        _set(size, GRANULARITY)

    def cuMemAddressReserve(self, pointer: int, size: int, alignment: int) -> int:
        if not self.is_capturing or size > TOTAL:
            return OUT_OF_MEMORY
        _set(pointer, self.memory.reserve(size, max(alignment, GRANULARITY)))
        return 0

    def cuMemMap(self, pointer: int, size: int) -> None:
        self.memory.back(pointer, size)

    def cuDeviceGetMemPool(self, pool: int, device: int) -> None:
        _set(pool, next(self._handles))

    def cuMemcpy(self, target: int, source: int, size: int) -> None:
        partial = self.options.only_block is not None
        if self.memory.contains(source) and self.memory.contains(target):
            self.memory.copy(target, source, size)
            return
        if self.memory.contains(source) and not partial:
            self.memory.check_written(source, size)
        if self.memory.contains(target):
            self.memory.mark_written(target, size)
        ctypes.memmove(target, source, size)
        if partial and self.memory.contains(source):  # what the other blocks would have written: NaN
            begin = source - BASE
            copied = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(target)) if size else np.empty(0)
            copied[~self.memory.written[begin : begin + size]] = 0xFF

    def cuMemcpyAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self.enqueue(lambda: self.cuMemcpy(target, source, size))

    cuMemcpyHtoD_v2 = cuMemcpyDtoH_v2 = cuMemcpyDtoD_v2 = cuMemcpy
    cuMemcpyHtoDAsync_v2 = cuMemcpyDtoHAsync_v2 = cuMemcpyDtoDAsync_v2 = cuMemcpyAsync

    def cuMemsetD8_v2(self, target: int, value: int, size: int) -> None:
        self._fill(target, (value & 0xFF).to_bytes(1, "little"), size)

    def cuMemsetD8Async(self, target: int, value: int, size: int, stream: int) -> None:
        self.enqueue(lambda: self.cuMemsetD8_v2(target, value, size))

    def cuMemsetD16_v2(self, target: int, value: int, size: int) -> None:
        self._fill(target, (value & 0xFFFF).to_bytes(2, "little"), size)

    def cuMemsetD16Async(self, target: int, value: int, size: int, stream: int) -> None:
        self.enqueue(lambda: self.cuMemsetD16_v2(target, value, size))

    def cuMemsetD32_v2(self, target: int, value: int, size: int) -> None:
        self._fill(target, (value & 0xFFFFFFFF).to_bytes(4, "little"), size)

    def cuMemsetD32Async(self, target: int, value: int, size: int, stream: int) -> None:
        self.enqueue(lambda: self.cuMemsetD32_v2(target, value, size))

    def _fill(self, target: int, unit: bytes, size: int) -> None:
        self.memory.write(target, unit * size)

    # --- kernels ----------------------------------------------------------------------------------------------------

    def cuModuleLoadDataEx(self, module: int, image: int) -> None:
        handle = next(self._handles)
        self._modules[handle] = ctypes.string_at(image).decode()
        _set(module, handle)

    def cuModuleLoadData(self, module: int, image: int) -> None:
        self.cuModuleLoadDataEx(module, image)

    def cuModuleGetFunction(self, function: int, module: int, name: int) -> int:
        text, entry = self._modules[module], ctypes.string_at(name).decode()
        if not text.lstrip().startswith(("//", ".version")):
            raise PhantomError(
                f"{entry} comes as machine code, not as PTX: was it compiled before the phantom was there?"
            )
        load_kernel(text, entry)
        handle = next(self._handles)
        self._functions[handle] = text, entry
        _set(function, handle)
        return 0

    def cuFuncGetAttribute(self, value: int, attribute: int, function: int) -> None:
        _set(value, 1024 if attribute & 0xFFFFFFFF == 0 else 0, ctypes.c_int)

    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> None:
        if attribute & 0xFFFFFFFF == MOST_DYNAMIC_SHARED:
            self.most_dynamic[function] = value & 0xFFFFFFFF

    def cuFuncGetParamInfo(self, function: int, index: int, offset: int, size: int) -> int:
        parameters = load_kernel(*self._functions[function]).parameters
        if index >= len(parameters):
            return 1
        _set(offset, parameters[index].offset)
        _set(size, parameters[index].size)
        return 0

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, n: int, function: int, threads: int, shared: int) -> None:
        _set(n, 2, ctypes.c_int)

    def cuLaunchKernel(
        self,
        function: int,
        gx: int,
        gy: int,
        gz: int,
        bx: int,
        by: int,
        bz: int,
        shared: int,
        stream: int,
        arguments: int,
    ) -> None:
        gx, gy, gz, bx, by, bz, shared = (value & 0xFFFFFFFF for value in (gx, gy, gz, bx, by, bz, shared))
        text, entry = self._functions[function]
        kernel = load_kernel(lines.with_lines(text, entry), entry)
        data = [
            ctypes.string_at(ctypes.c_uint64.from_address(arguments + 8 * i).value, parameter.size)
            for i, parameter in enumerate(kernel.parameters)
        ]
        most = self.most_dynamic.get(function)
        self.enqueue(lambda: self._launch(kernel, (gx, gy, gz), (bx, by, bz), data, shared, most))

    def _launch(
        self, kernel: Kernel, grid: Grid, block: Grid, data: list[bytes], shared: int, most: int | None
    ) -> None:
        if self.alter:
            kernel, grid = self.alter(kernel, grid)
        options = self.options
        if options.only_block is not None and len(self.launches) != options.only_launch:
            if len(self.launches) > options.only_launch:
                return
            options = replace(options, only_block=None, trace=None)
        self.launches.append(launch(kernel, self.memory, grid, block, data, shared, options, most))

    def cuLaunchKernelEx(self, configuration: int, function: int, arguments: int, extra: int) -> None:
        gx, gy, gz, bx, by, bz, shared = (ctypes.c_uint32 * 7).from_address(configuration)
        self.cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, 0, arguments)

    def cuGetErrorName(self, error: int, text: int) -> None:
        self._set_string(text, f"CUDA error {error & 0xFFFFFFFF}")

    def cuGetErrorString(self, error: int, text: int) -> None:
        self._set_string(text, self.faults[-1] if self.faults else "no error")

    def _set_string(self, pointer: int, text: str) -> None:
        self._texts.append(ctypes.create_string_buffer(text.encode()))
        _set(pointer, ctypes.addressof(self._texts[-1]))

    # --- management library -----------------------------------------------------------------------------------------

    def nvmlDeviceGetCount_v2(self, n: int) -> None:
        _set(n, 1, ctypes.c_uint)

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: int) -> None:
        _set(handle, 0x2001)

    nvmlDeviceGetHandleByIndex = nvmlDeviceGetHandleByIndex_v2

    def nvmlDeviceGetCudaComputeCapability(self, handle: int, major: int, minor: int) -> None:
        _set(major, ATTRIBUTES[75], ctypes.c_int)
        _set(minor, ATTRIBUTES[76], ctypes.c_int)

    def nvmlDeviceGetName(self, handle: int, text: int, size: int) -> None:
        _set_text(text, size & 0xFFFFFFFF, NAME)

    def nvmlDeviceGetMemoryInfo(self, handle: int, info: int) -> None:
        for i, value in enumerate((TOTAL, TOTAL, 0)):
            _set(info + 8 * i, value)

    def nvmlDeviceGetMigMode(self, handle: int, current: int, pending: int) -> None:
        _set(current, 0, ctypes.c_uint)
        _set(pending, 0, ctypes.c_uint)

    def nvmlSystemGetDriverVersion(self, text: int, size: int) -> None:
        _set_text(text, size & 0xFFFFFFFF, b"580.65.06")

    def nvmlDeviceGetPciInfo_v3(self, handle: int, info: int) -> None:
        ctypes.memset(info, 0, 68)
        ctypes.memmove(info, PCI_ADDRESS, len(PCI_ADDRESS))

    def cuDeviceGetPCIBusId(self, text: int, size: int, device: int) -> None:
        _set_text(text, size & 0xFFFFFFFF, PCI_ADDRESS)

    def nvmlDeviceGetHandleByPciBusId_v2(self, address: int, handle: int) -> None:
        _set(handle, 0x2001)

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int, n: int) -> None:
        _set(n, 0)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int, reasons: int) -> None:
        _set(reasons, 0)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: int, n: int, processes: int) -> None:
        _set(n, 0, ctypes.c_uint)

    def nvmlDeviceGetUUID(self, handle: int, text: int, size: int) -> None:
        _set_text(text, size & 0xFFFFFFFF, b"GPU-00000000-0000-0000-0000-000000000000")

    def nvmlErrorString(self, error: int) -> int:
        self._texts.append(ctypes.create_string_buffer(b"error of the phantom GPU" if error else b"no error"))
        return ctypes.addressof(self._texts[-1])

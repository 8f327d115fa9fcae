"""Launches of the attention kernels: which kernel serves which shape."""

from max.gpu.host import DeviceAttribute, DeviceContext, FuncAttribute
from max.gpu.host.launch_attribute import LaunchAttribute
from std.math import ceildiv

from ...data import Data, require
from ...gpu.memory import CHUNK, MOST_BLOCKS, chunk
from ...gpu.overlap import overlapping
from ...gpu.warpgroup import has_warpgroups
from ..strip import HEAD
from .flash import Body, flash_kernel
from .heads import PACK_THREADS, pack_heads_kernel
from .split import SPLIT_THREADS, combine_kernel, split_kernel

comptime UNSPLIT = 512
"""Up to so many keys, one block of threads serves a head: a second launch would take longer than it saves."""

comptime SPLIT = 256
"""Keys of one block of threads, where a head has more: half of them are in flight at once."""

comptime FROM_PAST = Int32(-1)
"""In place of the number of stored keys: each batch row has its own, `past[b]`."""

comptime MOST_MATRICES = MOST_BLOCKS
"""Batch rows times heads: the second dimension of a grid takes no more."""


@fieldwise_init
struct AttentionOnGPU[dtype: DType]:
    """The operands of one attention op, in device memory: keys and values (B, H, capacity, 64) and, behind those which a
    batch row holds there, the `added` ones in `rows` (B, added, row_stride), which begin with the first key column."""

    var output: Data[Self.dtype]
    var queries: Data[Self.dtype]
    var query_stride: Int
    var keys: Data[Self.dtype]
    var values: Data[Self.dtype]
    var capacity: Int
    var rows: Data[Self.dtype]
    var row_stride: Int
    var added: Int
    var past: Optional[Data[DType.int32]]
    var batch: Int
    var heads: Int
    var length: Int

    def enqueue(self, ctx: DeviceContext) raises:
        """Launches the kernels. With `past`, attention is causal and the added keys and values go to the cache as well;
        without, every query sees all keys.

        Args:
            ctx: The device.

        Raises:
            The shapes exceed a grid or 32-bit offsets, or the launch fails.
        """
        if self.batch * self.heads * self.length == 0:
            return
        self._check()
        if self.length == 1 and self.capacity > 0:
            self._enqueue_split(ctx)
        else:
            self._enqueue_flash(ctx)

    def _check(self) raises:
        require(
            self.batch * self.heads <= MOST_MATRICES,
            "attention",
            String("B * H is ", self.batch * self.heads, ", at most ", MOST_MATRICES, " fit into a launch"),
        )
        var elements = max(
            self.length * max(self.query_stride, self.heads * HEAD), self.capacity * HEAD, self.added * self.row_stride
        )
        require(
            elements < 1 << 31,
            "attention",
            String("one batch row has ", elements, " elements, expected less than 2**31"),
        )
        _require_chunks(self.output, self.heads * HEAD, "attention", "rows of the output")
        _require_chunks(self.queries, self.query_stride, "attention", "rows of the queries")
        _require_chunks(self.keys, HEAD, "attention", "the keys")
        _require_chunks(self.values, HEAD, "attention", "the values")
        _require_chunks(self.rows, self.row_stride, "attention", "the rows of new keys")

    def _enqueue_flash(self, ctx: DeviceContext) raises:
        comptime if DeviceContext.default_device_info.api == "cuda" and Self.dtype.is_half_float():
            comptime many = Body.WARPGROUP[1] if has_warpgroups() else Body.TENSOR_CORE[1]
            comptime few = Body.WARPGROUP[2] if has_warpgroups() else Body.TENSOR_CORE[2]
            # Warpgroups have smaller blocks: a window of tiny.en has 144 for 132 multiprocessors.
            comptime crowded = 2 if has_warpgroups() else 1
            var blocks = ceildiv(self.length, many.queries()) * self.batch * self.heads
            if blocks <= crowded * ctx.get_attribute(DeviceAttribute.MULTIPROCESSOR_COUNT):
                self._launch_flash[few](ctx)
            else:
                self._launch_flash[many](ctx)
        else:
            self._launch_flash[Body.PLAIN](ctx)

    def _launch_flash[body: Body](self, ctx: DeviceContext) raises:
        comptime BYTES = body.shared_bytes()
        var past = self.past.or_else(self.output.unsafe_bitcast[Int32]())
        ctx.enqueue_function[flash_kernel[Self.dtype, body]](
            self.output,
            self.queries,
            Int32(self.query_stride),
            self.keys,
            self.values,
            Int32(self.capacity),
            self.rows,
            Int32(self.row_stride),
            Int32(self.added),
            past,
            FROM_PAST if self.past else Int32(self.capacity),
            Int32(self.heads),
            Int32(self.length),
            grid_dim=(ceildiv(self.length, body.queries()), self.batch * self.heads),
            block_dim=body.threads(),
            shared_mem_bytes=BYTES,
            func_attribute=FuncAttribute.MAX_DYNAMIC_SHARED_SIZE_BYTES(UInt32(BYTES)),
            attributes=overlapping() if body.overlaps() else List[LaunchAttribute](),
        )

    def _enqueue_split(self, ctx: DeviceContext) raises:
        var matrices = self.batch * self.heads
        var split = self.capacity if self.capacity <= UNSPLIT else SPLIT
        var splits = ceildiv(self.capacity, split)
        var past = self.past.or_else(self.output.unsafe_bitcast[Int32]())
        var stored = FROM_PAST if self.past else Int32(self.capacity)
        var parts = ctx.enqueue_create_buffer[DType.float32](matrices * splits * (HEAD + 2) if splits > 1 else 1)
        ctx.enqueue_function[split_kernel[Self.dtype]](
            self.output,
            self.queries,
            Int32(self.query_stride),
            self.keys,
            self.values,
            Int32(self.capacity),
            self.rows,
            Int32(self.row_stride),
            Int32(self.added),
            past,
            stored,
            Int32(self.heads),
            Int32(split),
            parts,
            grid_dim=(splits, matrices),
            block_dim=SPLIT_THREADS,
            attributes=overlapping(),
        )
        if splits > 1:
            ctx.enqueue_function[combine_kernel[Self.dtype]](
                self.output,
                parts,
                Int32(self.capacity),
                Int32(self.added),
                past,
                stored,
                Int32(self.heads),
                Int32(split),
                Int32(splits),
                grid_dim=matrices,
                block_dim=HEAD,
                attributes=overlapping(),
            )


def enqueue_pack_heads[
    dtype: DType, //
](
    keys: Data[dtype],
    values: Data[dtype],
    rows: Data[dtype],
    row_stride: Int,
    batch: Int,
    heads: Int,
    length: Int,
    ctx: DeviceContext,
) raises:
    """Launches the copy of keys and values into one piece per head.

    Args:
        keys: (batch, heads, length, 64).
        values: (batch, heads, length, 64).
        rows: (batch, length, row_stride), from the first key column on.
        row_stride: N.
        batch: B.
        heads: H.
        length: T.
        ctx: The device.
    """
    var chunks = batch * heads * length * (HEAD // chunk[dtype]())
    require(chunks < 1 << 31, "pack_heads", String(chunks, " pieces of 16 bytes are more than a launch can number"))
    _require_chunks(keys, HEAD, "pack_heads", "the keys")
    _require_chunks(values, HEAD, "pack_heads", "the values")
    _require_chunks(rows, row_stride, "pack_heads", "the rows")
    if chunks == 0:
        return
    ctx.enqueue_function[pack_heads_kernel[dtype]](
        keys,
        values,
        rows,
        Int32(row_stride),
        Int32(heads),
        Int32(length),
        Int32(chunks),
        grid_dim=ceildiv(chunks, PACK_THREADS),
        block_dim=PACK_THREADS,
    )


def _require_chunks[dtype: DType, //](address: Data[dtype], columns: Int, op: StaticString, name: StaticString) raises:
    """Raises unless every row begins at a multiple of 16 bytes: kernels move pieces of that size.

    Args:
        address: The first row.
        columns: Elements from one row to the next.
        op: The op that asks.
        name: The tensor.
    """
    comptime width = chunk[dtype]()
    require(
        columns % width == 0,
        op,
        String(name, " have ", columns, " columns, on a GPU a multiple of ", width, " is expected"),
    )
    require(Int(address) % CHUNK == 0, op, String(name, " begin at ", Int(address), ", expected a multiple of ", CHUNK))

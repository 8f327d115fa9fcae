"""A block's logits for up to 16 rows of states, in shared memory; and the kernel that stores all logits.

| body            | for                              | a warp                                                                        |
| --------------- | -------------------------------- | ----------------------------------------------------------------------------- |
| tensor cores    | NVIDIA, sm_80; float16, bfloat16 | 16 tokens by 8 or 16 rows of h: 2 or 4 mma for 32 k, E on the left             |
| multiply-adds   | any GPU, any dtype               | groups of 8 lanes: 4 tokens each, lane l the chunks l, l + 8, ... of each      |

E goes straight to registers, 16 bytes a lane, h through shared memory, which then takes the logits. Registers and cost: see `pick.mojo`.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, barrier, block_idx, lane_id, thread_idx, warp_id
from max.gpu.primitives import warp
from std.collections import Array
from std.memory import bitcast
from std.sys import is_nvidia_gpu, size_of
from std.utils import StaticTuple

from ...data import Data
from ...gpu.memory import Shared, chunk, commit_copies, copy_chunk, load_chunk, shared_memory, wait_copies
from ...gpu.overlap import start_next, wait_for_previous
from ...gpu.tensor_core import MMA_M, multiply_add_chunks

comptime THREADS = 512
"""Threads of a block."""

comptime BOUND[dtype: DType, most: Int] = 2 * THREADS if dtype.is_half_float() or most == 1 else THREADS
"""What registers are for: threads of two blocks a multiprocessor, or of one where multiply-adds hold many sums."""

comptime TOKENS = 256
"""Tokens of a block: 16 a warp."""

comptime SLICE = 32
"""Elements of k for which a warp loads 16 tokens at once."""

comptime GROUP = 8
"""Lanes that share a token where there are no tensor cores."""

comptime GROUPS = THREADS // GROUP

comptime OWN = TOKENS // GROUPS
"""Tokens of such a group: what it reads of h serves them all."""


@always_inline
def asked_position(at: Data[DType.int32], rows: Int32) -> Int32:
    """What row `lane` asks for, -1 if there is none."""
    var lane = Int32(lane_id())
    return at[unsafe_offset=lane] if lane < rows else -1


@always_inline
def place(row: Int, token: Int) -> Int:
    """Where a block's logit lies in shared memory: neither the lanes that store an mma's sums collide nor those that load
    neighbouring tokens."""
    return row * TOKENS + (token ^ (row // 2 % 4 * 8))


@fieldwise_init
struct States[dtype: DType](TrivialRegisterPassable):
    """States and vocabulary of a launch."""

    var hidden: Data[Self.dtype]
    """(rows, length, depth)."""
    var vocabulary: Data[Self.dtype]
    """(tokens, depth)."""
    var rows: Int32
    var length: Int32
    var depth: Int32
    """Whole chunks."""
    var tokens: Int32

    @always_inline
    def compute_logits[most: Int, depth_limit: Int](self, position: Int32, first: Int32) -> Shared[DType.float32]:
        """Computes the logits of a block's tokens; a barrier has to follow.

        Parameters:
            most: Rows that shared memory and registers are for, at least `rows`.
            depth_limit: Depth that shared memory is for.

        Args:
            position: What `asked_position` gave.
            first: The block's first token.

        Returns:
            (most, TOKENS), see `place`.
        """
        comptime tensor_cores = is_nvidia_gpu() and Self.dtype.is_half_float()
        comptime ROWS = max(8, most) if tensor_cores else most
        comptime BYTES = ROWS * max(depth_limit * size_of[Self.dtype](), TOKENS * 4)
        var shared = shared_memory[DType.uint8, BYTES]()
        var h = shared.unsafe_bitcast[Scalar[Self.dtype]]()
        var logits = shared.unsafe_bitcast[Float32]()
        var within = min(max(position, 0), self.length - 1)
        wait_for_previous()
        comptime if tensor_cores:
            self._on_tensor_cores[ROWS](h, logits, within, first)
        else:
            self._by_multiply_adds[most, depth_limit](h, logits, within, first)
        return logits

    @always_inline
    def _on_tensor_cores[
        ROWS: Int
    ](self, h: Shared[Self.dtype], logits: Shared[DType.float32], position: Int32, first: Int32):
        self._start_copy[ROWS](h, position)
        var lane = Int32(lane_id())
        var token = first + Int32(warp_id()) * MMA_M + lane // 4
        var low = SIMD[DType.float32, 4](0)
        var high = SIMD[DType.float32, 4](0)
        comptime IN_FLIGHT = 4 if ROWS <= 8 else 3  # slices whose loads are started before the first is used
        for k in range(Int32(0), self.depth, Int32(IN_FLIGHT * SLICE)):
            var e = Array[SIMD[Self.dtype, chunk[Self.dtype]()], 2 * IN_FLIGHT](fill=0)
            comptime for i in range(2 * IN_FLIGHT):
                e[i] = self._load(token + Int32(i % 2 * 8), k + Int32(i // 2 * SLICE) + lane % 4 * 8)
            if k == 0:
                wait_copies()
                barrier()
            comptime for i in range(IN_FLIGHT):
                if k + Int32(i * SLICE) < self.depth:
                    var at = (Int(k) // SLICE + i) * ROWS * SLICE + Int(lane) * 8
                    multiply_add_chunks(low, e[2 * i], e[2 * i + 1], _load_words(h, at))
                    comptime if ROWS > 8:
                        multiply_add_chunks(high, e[2 * i], e[2 * i + 1], _load_words(h, at + 8 * SLICE))
        barrier()  # all have used h
        comptime for i in range(4):
            var row = Int(lane) % 4 * 2 + i % 2
            var local = Int(warp_id()) * MMA_M + Int(lane) // 4 + i // 2 * 8
            logits.unsafe_store(place(row, local), low[i])
            comptime if ROWS > 8:
                logits.unsafe_store(place(row + 8, local), high[i])

    @always_inline
    def _start_copy[ROWS: Int](self, target: Shared[Self.dtype], position: Int32):
        """Starts to copy the states to shared memory, zeros for rows and columns that are none: (slices, ROWS, SLICE).
        """
        comptime width = chunk[Self.dtype]()
        comptime in_slice = SLICE // width
        var chunks = (Int(self.depth) + SLICE - 1) // SLICE * ROWS * in_slice
        for some in range(0, chunks, THREADS):
            var i = some + Int(thread_idx.x)
            var row = i // in_slice % ROWS
            var k = i // (in_slice * ROWS) * SLICE + i % in_slice * width
            var t = warp.shuffle_idx(position, UInt32(row))
            if i < chunks:
                var source = (row * Int(self.length) + Int(t)) * Int(self.depth) + k
                var valid = Int32(row) < self.rows and Int32(k) < self.depth
                copy_chunk(self.hidden.unsafe_offset(source), target.unsafe_offset(i * width), valid)
        commit_copies()

    @always_inline
    def _by_multiply_adds[
        most: Int, depth_limit: Int
    ](self, h: Shared[Self.dtype], logits: Shared[DType.float32], position: Int32, first: Int32):
        comptime width = chunk[Self.dtype]()
        var thread = Int32(thread_idx.x)
        comptime for b in range(most):
            if Int32(b) < self.rows:
                var t = warp.shuffle_idx(position, UInt32(b))
                var source = (b * Int(self.length) + Int(t)) * Int(self.depth)
                var k = thread * Int32(width)
                while k < self.depth:
                    h.unsafe_store[alignment=16](b * depth_limit + Int(k), load_chunk(self.hidden, source + Int(k)))
                    k += Int32(THREADS * width)
        barrier()

        var lane = thread % GROUP
        var local = thread // GROUP
        var sums = Array[SIMD[DType.float32, OWN], most](fill=0)
        var begin = lane * Int32(width)
        while begin < self.depth:
            var e = Array[SIMD[Self.dtype, width], OWN](fill=0)
            comptime for j in range(OWN):
                e[j] = self._load(first + local + Int32(j * GROUPS), begin)
            comptime for b in range(most):
                if Int32(b) < self.rows:
                    var x = h.unsafe_load[width=width, alignment=16](b * depth_limit + Int(begin))
                    var y = x.cast[DType.float32]()
                    comptime for j in range(OWN):
                        var w = e[j].cast[DType.float32]()
                        comptime for n in range(width):
                            sums[b][j] = y[n].fma(w[n], sums[b][j])
            begin += Int32(GROUP * width)
        barrier()  # all have used h
        comptime for b in range(most):
            comptime for j in range(OWN):
                var sum = sums[b][j]
                comptime for bit in range(3):
                    sum += warp.shuffle_xor(sum, UInt32(1 << bit))
                if lane == 0:
                    logits.unsafe_store(place(b, Int(local) + j * GROUPS), sum)

    @always_inline
    def _load(self, token: Int32, k: Int32) -> SIMD[Self.dtype, chunk[Self.dtype]()]:
        """Loads a chunk of the vocabulary, zero where there is none."""
        if k < self.depth and token < self.tokens:
            return load_chunk(self.vocabulary, Int(token) * Int(self.depth) + Int(k))
        return 0


@always_inline
def _load_words[dtype: DType, //](x: Shared[dtype], at: Int) -> SIMD[dtype, chunk[dtype]()]:
    """A chunk of shared memory, as words: elements of bfloat16 would be loaded by halves, whose lanes collide."""
    return bitcast[dtype, chunk[dtype]()](
        x.unsafe_bitcast[UInt32]().unsafe_load[width=4, alignment=16, volatile=True](at // 2)
    )


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(BOUND[dtype, most])))
def logits_kernel[
    dtype: DType, most: Int, depth_limit: Int
](
    output: Data[DType.float32],
    hidden: Data[dtype],
    at: Data[DType.int32],
    vocabulary: Data[dtype],
    rows: Int32,
    length: Int32,
    depth: Int32,
    tokens: Int32,
):
    """Stores the logits of 256 tokens: (rows, tokens)."""
    start_next()
    var first = Int32(block_idx.x) * TOKENS
    var states = States[dtype](hidden, vocabulary, rows, length, depth, tokens)
    var logits = states.compute_logits[most, depth_limit](asked_position(at, rows), first)
    barrier()
    var local = Int(thread_idx.x) % TOKENS
    var row = Int(thread_idx.x) // TOKENS
    if first + Int32(local) < tokens:
        while Int32(row) < rows:
            output[unsafe_offset=row * Int(tokens) + Int(first) + local] = logits.unsafe_load(place(row, local))
            row += THREADS // TOKENS

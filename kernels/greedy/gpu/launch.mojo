"""Launches the vocabulary's kernels: rows go in groups that the kernels have shared memory for."""

from max.gpu.host import DeviceBuffer, DeviceContext
from std.math import ceildiv

from ...data import Data
from ...gpu.overlap import overlapping
from ..said import Grammar
from .logits import THREADS, TOKENS, logits_kernel
from .pick import pick_kernel, probability_kernel, softmax_kernel
from .softmax import MERGING_THREADS, Question
from .step import Rows, step_kernel

comptime MAX_DEPTH = 1280
"""Largest D: that of Whisper's largest models."""

comptime MAX_ROWS = 16
"""Most rows that one reading of the vocabulary serves."""

comptime FEW_ROWS = 8
"""Rows of one tensor-core instruction; so many there is shared memory for, whatever the depth and dtype."""


@fieldwise_init
struct VocabularyOnGPU[dtype: DType](TrivialRegisterPassable):
    """States and vocabulary of a launch; rows go in groups that the kernels have shared memory for."""

    var hidden: Data[Self.dtype]
    """(batch, length, depth)."""
    var at: Data[DType.int32]
    """(batch), the position of each row that counts."""
    var vocabulary: Data[Self.dtype]
    """(tokens, depth)."""
    var batch: Int
    var length: Int
    var depth: Int
    """Whole chunks, at most MAX_DEPTH."""
    var tokens: Int

    def enqueue_pick(
        self,
        picked: Data[DType.int32],
        log_probs: Data[DType.float32],
        mask: Data[DType.uint8],
        rules: Data[DType.int32],
        timestamp_begin: Int,
        ctx: DeviceContext,
    ) raises:
        """Launches the greedy pick: tokens (batch) and the logs of their probabilities (batch)."""
        var blocks = ceildiv(self.tokens, TOKENS)
        var parts = ctx.enqueue_create_buffer[DType.float32](MAX_ROWS * 2 * blocks * 4)
        for row in range(0, self.batch, self._group()):
            var rows = min(self.batch - row, self._group())
            var asked = Question(rules.unsafe_offset(4 * row), mask, Int32(timestamp_begin), -1)
            self._enqueue_softmaxes(parts, asked, row, rows, ctx)
            ctx.enqueue_function[pick_kernel](
                picked.unsafe_offset(row),
                log_probs.unsafe_offset(row),
                parts,
                asked.rules,
                Int32(blocks),
                grid_dim=rows,
                block_dim=MERGING_THREADS,
                attributes=overlapping(),
            )

    def enqueue_step(
        self,
        state: Rows,
        picked: Data[DType.int32],
        log_probs: Data[DType.float32],
        steps: Int,
        mask: Data[DType.uint8],
        grammar: Grammar,
        ctx: DeviceContext,
    ) raises:
        """Launches the greedy pick, which goes to a column of (batch, steps), and what follows from it."""
        var blocks = ceildiv(self.tokens, TOKENS)
        var parts = ctx.enqueue_create_buffer[DType.float32](MAX_ROWS * 2 * blocks * 4)
        for row in range(0, self.batch, self._group()):
            var rows = min(self.batch - row, self._group())
            var group = state.behind(row)
            self._enqueue_softmaxes(parts, Question(group.rules, mask, grammar.timestamp_begin, -1), row, rows, ctx)
            ctx.enqueue_function[step_kernel](
                group.tokens,
                group.past,
                group.rules,
                group.said,
                picked.unsafe_offset(row * steps),
                log_probs.unsafe_offset(row * steps),
                parts,
                self.at.unsafe_offset(row),
                Int32(steps),
                Int32(blocks),
                grammar.end,
                grammar.timestamp_begin,
                grammar.tokens,
                grid_dim=rows,
                block_dim=MERGING_THREADS,
                attributes=overlapping(),
            )

    def enqueue_probability(self, probabilities: Data[DType.float32], token: Int, ctx: DeviceContext) raises:
        """Launches the computation of one token's probability: (batch)."""
        var blocks = ceildiv(self.tokens, TOKENS)
        var parts = ctx.enqueue_create_buffer[DType.float32](MAX_ROWS * 2 * blocks * 4)
        for row in range(0, self.batch, self._group()):
            var rows = min(self.batch - row, self._group())
            # Rules and mask are not read: any address will do.
            var asked = Question(self.at, self.at.unsafe_bitcast[UInt8](), 0, Int32(token))
            self._enqueue_softmaxes(parts, asked, row, rows, ctx)
            ctx.enqueue_function[probability_kernel](
                probabilities.unsafe_offset(row),
                parts,
                self.at.unsafe_offset(row),
                Int32(blocks),
                grid_dim=rows,
                block_dim=MERGING_THREADS,
                attributes=overlapping(),
            )

    def enqueue_logits(self, output: Data[DType.float32], ctx: DeviceContext) raises:
        """Launches the computation of all logits: (batch, tokens)."""
        for row in range(0, self.batch, self._group()):
            var rows = min(self.batch - row, self._group())

            @always_inline
            def launch[most: Int, depth_limit: Int]() raises {imm}:
                ctx.enqueue_function[logits_kernel[Self.dtype, most, depth_limit]](
                    output.unsafe_offset(row * self.tokens),
                    self.hidden.unsafe_offset(row * self.length * self.depth),
                    self.at.unsafe_offset(row),
                    self.vocabulary,
                    Int32(rows),
                    Int32(self.length),
                    Int32(self.depth),
                    Int32(self.tokens),
                    grid_dim=ceildiv(self.tokens, TOKENS),
                    block_dim=THREADS,
                    attributes=overlapping(),
                )

            if rows == 1:
                launch[1, MAX_DEPTH]()
            elif rows <= FEW_ROWS:
                launch[FEW_ROWS, MAX_DEPTH]()
            else:
                launch[MAX_ROWS, Self.DEPTH_OF_MANY]()

    comptime DEPTH_OF_MANY = MAX_DEPTH if Self.dtype.is_half_float() else 512
    """Depth up to which shared memory holds MAX_ROWS rows."""

    def _group(self) -> Int:
        """Rows that one launch takes."""
        return MAX_ROWS if self.depth <= Self.DEPTH_OF_MANY else FEW_ROWS

    def _enqueue_softmaxes(
        self, parts: DeviceBuffer[DType.float32], asked: Question, row: Int, rows: Int, ctx: DeviceContext
    ) raises:
        @always_inline
        def launch[most: Int, depth_limit: Int]() raises {imm}:
            ctx.enqueue_function[softmax_kernel[Self.dtype, most, depth_limit]](
                parts,
                self.hidden.unsafe_offset(row * self.length * self.depth),
                self.at.unsafe_offset(row),
                self.vocabulary,
                asked.rules,
                asked.mask,
                asked.first_timestamp,
                asked.token,
                Int32(rows),
                Int32(self.length),
                Int32(self.depth),
                Int32(self.tokens),
                grid_dim=ceildiv(self.tokens, TOKENS),
                block_dim=THREADS,
                attributes=overlapping(),
            )

        if rows == 1:
            launch[1, MAX_DEPTH]()
        elif rows <= FEW_ROWS:
            launch[FEW_ROWS, MAX_DEPTH]()
        else:
            launch[MAX_ROWS, Self.DEPTH_OF_MANY]()

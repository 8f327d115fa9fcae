"""What is compared: every op of ours beside the graph of MAX's built-in ops for the same function, on the same numbers.

Width and heads are tiny's, and so are all lengths of a decoding step. An encoder's 1500 rows are 300 here, and 30 s of
audio are 6 s: the phantom takes minutes for what a GPU does in microseconds. Nothing is scaled up in the tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.gpu import builtin, work
from bench.gpu.work import Launch
from max_whisper import eager, ops
from max_whisper.mel import mel_filters
from max_whisper.ops import HEAD
from max_whisper.packing import cast, fold_norm, pack_conv1d, pack_filters, widen

STATE, HEADS = 384, 6
ROWS = 300
"""Rows of the encoder, a fifth of Whisper's."""

AUDIO, TEXT, PAST = 1500, 448, 100
"""Keys of the audio; keys that a cache has room for; keys that are in it."""

VOCABULARY, TIMESTAMPS = 51864, 50363
POINTS, BINS, MELS = 400, 201, 80
DEPTH = 416
"""POINTS, padded to what MAX's product takes."""

NEVER = np.float32(-1e30)


@dataclass(frozen=True)
class Leg:
    """One way to compute a function.

    Attributes:
        op: A function on graph values; `eager.in_place` and `eager.on_host` mark its arguments.
        arrays: Its arguments.
        parameters: Its keyword arguments.
        rows: Which arguments have a number of rows, their first dimension, that is not known when the graph is compiled.
    """

    op: Callable[..., Any]
    arrays: Sequence[np.ndarray]
    parameters: dict[str, Any] = field(default_factory=dict)
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """A function and a shape.

    Attributes:
        name: The function.
        shape: In words.
        ours: Our op.
        builtin: MAX's.
        least: Bytes that must be read and written at the least.
        work: What our launches do, by formula, in numbers of 2 bytes.
        products: Multiply-adds of its matrix products; 0 if there is none.
        note: What the reader should know.
    """

    name: str
    shape: str
    ours: Leg
    builtin: Leg
    least: int
    work: list[Launch]
    products: int = 0
    note: str = ""


def _times(windows: int) -> str:
    return f"{windows} x " if windows > 1 else ""


def float32(array: np.ndarray) -> np.ndarray:
    """As MAX's leg takes it."""
    return np.ascontiguousarray(array, np.float32)


@eager.in_place(2, 3)
def cached_attention(rows, past, keys, values):
    """`ops.cached_attention`, marked."""
    return ops.cached_attention(rows, past, keys, values)


@eager.on_host(1)
def log_mel(samples, padding, runs, weights):
    """`ops.log_mel`, marked."""
    return ops.log_mel(samples, padding, runs, weights)


builtin_cached_attention = eager.in_place(6)(eager.on_host(4, 5)(builtin.cached_attention))


class Cases:
    """Makes the cases for one dtype.

    Args:
        dtype: "float16", "bfloat16" or "float32".
        rows: Rows of the encoder for a window.
        windows: How many windows the encoder and cross-attention have at once, each a case.
    """

    def __init__(self, dtype: str, rows: int = ROWS, windows: Sequence[int] = (1,)) -> None:
        self.dtype, self.rows, self.windows = dtype, rows, windows
        self.rng = np.random.default_rng(0)
        self.size = 4 if dtype == "float32" else 2

    def normal(self, *shape: int, scale: float = 1) -> np.ndarray:
        """Normal numbers in the dtype; bfloat16 as uint16."""
        return cast(self.rng.standard_normal(shape) * scale, self.dtype)

    def all(self) -> list[Case]:
        """All cases, in the order in which audio passes through them."""
        wide = 4 * STATE
        return [
            self.log_mel(2 * self.rows),
            self.log_mel(2 * self.rows, fading=True),
            *[case for windows in self.windows for case in self.encoder(windows)],
            self.embed(1),
            self.layer_norm(1),
            *[self.norm_linear(m, 3 * STATE, STATE) for m in (1, 5)],
            *[self.norm_linear(m, wide, STATE, gelu=True) for m in (1, 5)],
            *[self.linear(m, STATE, wide, residual=True) for m in (1, 5)],
            self.cached_attention(),
            *[self.cross_attention(windows) for windows in self.windows],
            self.greedy(1),
            self.greedy(5),
        ]

    def encoder(self, windows: int) -> list[Case]:
        """The encoder's ops behind log-mel, for some windows at once."""
        rows, wide = windows * self.rows, 4 * STATE
        return [
            self.conv1d(windows, 2 * self.rows, MELS, stride=1),
            self.conv1d(windows, 2 * self.rows, STATE, stride=2),
            self.layer_norm(rows),
            self.layer_norm(rows, add=True),
            self.linear(rows, 3 * STATE, STATE),
            self.linear(rows, STATE, STATE, residual=True),
            self.linear(rows, wide, STATE, gelu=True),
            self.linear(rows, STATE, wide, residual=True),
            self.self_attention(windows, self.rows),
            self.pack_heads(windows, AUDIO),
        ]

    def log_mel(self, frames: int, *, fading: bool = False) -> Case:
        """Of noise, of which nothing is clamped; or of noise that loses 20 decades of power."""
        samples = self.rng.standard_normal(160 * frames).astype(np.float32) * np.float32(0.1)
        if fading:
            samples *= np.logspace(0, -10, samples.size, dtype=np.float32)
        filters = mel_filters(MELS)
        cut = np.lib.stride_tricks.sliding_window_view(np.pad(samples, POINTS // 2, mode="reflect"), POINTS)[::160]
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(POINTS) / POINTS)
        angles = 2 * np.pi * np.outer(np.arange(BINS), np.arange(POINTS)) / POINTS
        framed = (cut[:frames] * window).astype(np.float32)
        halves = [np.pad(part, ((0, 256 - BINS), (0, DEPTH - POINTS))) for part in (np.cos(angles), np.sin(angles))]
        theirs = [np.pad(framed, ((0, 0), (0, DEPTH - POINTS))), np.vstack(halves)]
        theirs.append(np.pad(filters, ((0, 128 - MELS), (0, 256 - BINS))))
        runs, weights = pack_filters(filters)
        return Case(
            "log-mel, 2/3 clamped" if fading else "log-mel",
            f"{frames / 100:g} s, float32",
            Leg(log_mel, [samples[None], np.zeros(1, np.int32), runs, weights]),
            Leg(builtin.log_mel, [float32(array) for array in theirs], {"mels": MELS}),
            least=samples.nbytes + runs.nbytes + weights.nbytes + 4 * MELS * frames,
            work=work.log_mel(1, frames, MELS, again=0.7 if fading else 0),
            note="MAX's leg gets its frames cut and windowed by the host",
        )

    def conv1d(self, windows: int, length: int, channels: int, *, stride: int) -> Case:
        x, bias = self.normal(windows, length, channels), self.normal(STATE)
        weight = self.rng.standard_normal((STATE, channels, 3)) / np.sqrt(3 * channels)
        out = length // stride
        positions = [self.normal(out, STATE)] if stride == 2 else []
        packed = pack_conv1d(weight, self.dtype, "gpu")
        wide = -(-3 * channels // 96) * 32  # three times as many are a multiple of 32
        theirs = pack_conv1d(np.pad(weight, ((0, 0), (0, wide - channels), (0, 0))), self.dtype, "gpu")
        padded = np.pad(x, ((0, 0), (0, 0), (0, wide - channels)))
        return Case(
            "conv1d + GELU" + (" + positions" if positions else ""),
            f"{_times(windows)}{length} x {channels} -> {out} x {STATE}",
            Leg(ops.conv1d, [x, packed, bias, *positions], {"stride": stride}, (0,)),
            Leg(builtin.conv1d, [padded, theirs, bias, *positions], {"stride": stride}, (0,)),
            least=self.size * (x.size + packed.size + STATE + (windows + len(positions)) * out * STATE),
            work=work.conv1d(windows, length, channels, STATE, stride=stride, positions=stride == 2),
            products=windows * out * STATE * 3 * channels,
        )

    def layer_norm(self, rows: int, *, add: bool = False) -> Case:
        tensors = [self.normal(rows, STATE) for _ in range(1 + add)]
        arrays = [*tensors, self.normal(STATE), self.normal(STATE)]
        ours, theirs = (ops.add_layer_norm, builtin.add_layer_norm) if add else (ops.layer_norm, builtin.layer_norm)
        rows_of = tuple(range(len(tensors)))
        return Case(
            "residual + layer norm" if add else "layer norm",
            f"{rows} x {STATE}",
            Leg(ours, arrays, rows=rows_of),
            Leg(theirs, arrays, rows=rows_of),
            least=self.size * (2 * len(tensors) * rows * STATE + 2 * STATE),
            work=work.layer_norm(rows, STATE, add=add),
        )

    def linear(self, rows: int, columns: int, depth: int, *, gelu: bool = False, residual: bool = False) -> Case:
        arrays = [self.normal(rows, depth), self.normal(columns, depth, scale=depth**-0.5), self.normal(columns)]
        arrays += [self.normal(rows, columns)] if residual else []
        rows_of = (0, 3) if residual else (0,)
        return Case(
            "linear" + (" + GELU" if gelu else "") + (" + residual" if residual else ""),
            f"{rows} x {depth} -> {columns}",
            Leg(ops.linear, arrays, {"gelu": gelu}, rows_of),
            Leg(builtin.linear, arrays, {"gelu": gelu}, rows_of),
            least=self.size * (sum(array.size for array in arrays) + rows * columns),
            work=work.linear(rows, columns, depth, residual=residual),
            products=rows * columns * depth,
        )

    def norm_linear(self, rows: int, columns: int, depth: int, *, gelu: bool = False) -> Case:
        x, norm = self.normal(rows, depth), [self.normal(depth), self.normal(depth)]
        layer = [self.normal(columns, depth, scale=depth**-0.5), self.normal(columns)]
        weight, bias, gamma, beta = map(widen, (*layer, *norm))
        folded = fold_norm(weight, bias, gamma, beta, self.dtype)
        return Case(
            "layer norm + linear" + (" + GELU" if gelu else ""),
            f"{rows} x {depth} -> {columns}",
            Leg(ops.norm_linear, [x, *folded], {"gelu": gelu}, (0,)),
            Leg(builtin.norm_linear, [x, *norm, *layer], {"gelu": gelu}, (0,)),
            least=x.nbytes + sum(array.nbytes for array in folded) + self.size * rows * columns,
            work=work.linear(rows, columns, depth, norm=True),
            products=rows * columns * depth,
        )

    def self_attention(self, windows: int, length: int) -> Case:
        rows = self.normal(windows, length, 3 * STATE)
        return Case(
            "self-attention",
            f"{_times(windows)}{HEADS} heads, {length} x {length}",
            Leg(ops.self_attention, [rows], {"heads": HEADS}, (0,)),
            Leg(builtin.self_attention, [rows], {"heads": HEADS}, (0,)),
            least=self.size * windows * 4 * length * STATE,
            work=work.self_attention(windows, HEADS, length),
            products=windows * 2 * length * length * STATE,
        )

    def pack_heads(self, windows: int, length: int) -> Case:
        rows = self.normal(windows, length, 2 * STATE)
        return Case(
            "keys and values of the audio",
            f"{_times(windows)}{length} x {2 * STATE}",
            Leg(ops.pack_heads, [rows], {"heads": HEADS}, (0,)),
            Leg(builtin.pack_heads, [rows], {"heads": HEADS}, (0,)),
            least=2 * rows.size * self.size,
            work=work.pack_heads(windows, HEADS, length),
        )

    def cross_attention(self, windows: int) -> Case:
        q = self.normal(windows, 1, STATE)
        k, v = (self.normal(windows, HEADS, AUDIO, HEAD) for _ in range(2))
        theirs = [q, *(np.ascontiguousarray(x.swapaxes(1, 2)) for x in (k, v))]
        return Case(
            "cross-attention, one query",
            f"{_times(windows)}{HEADS} heads, 1 x {AUDIO}",
            Leg(ops.attention, [q, k, v], rows=(0, 1, 2)),
            Leg(builtin.attention, theirs, rows=(0, 1, 2)),
            least=self.size * windows * 2 * (1 + AUDIO) * STATE,
            work=work.cross_attention(windows, HEADS, AUDIO),
            products=windows * 2 * AUDIO * STATE,
        )

    def cached_attention(self) -> Case:
        rows, past = self.normal(1, 1, 3 * STATE), np.array([PAST], np.int32)
        k, v = self.normal(1, HEADS, TEXT, HEAD), self.normal(1, HEADS, TEXT, HEAD)
        page = np.zeros((1, 2, 1, 512, HEADS, HEAD), k.dtype)
        page[0, 0, 0, :TEXT], page[0, 1, 0, :TEXT] = k[0].swapaxes(0, 1), v[0].swapaxes(0, 1)
        one, zero = np.ones(1, np.uint32), np.zeros((1, 1), np.uint32)
        theirs = [rows, past.astype(np.uint32), one, zero, one, np.array([PAST + 1], np.uint32), page]
        return Case(
            "cached self-attention, one query",
            f"{HEADS} heads, 1 x {PAST + 1}",
            Leg(cached_attention, [rows, past, k, v]),
            Leg(builtin_cached_attention, theirs, {"heads": HEADS}),
            least=self.size * (2 * PAST + 3 + 2 + 1) * STATE,
            work=work.cached_attention(1, HEADS, PAST),
            products=2 * (PAST + 1) * STATE,
        )

    def embed(self, length: int) -> Case:
        tokens = self.rng.integers(0, VOCABULARY, (1, length), dtype=np.int32)
        vocabulary, positions = self.normal(VOCABULARY, STATE), self.normal(TEXT, STATE)
        at = np.arange(PAST, PAST + length, dtype=np.int32)[None]
        return Case(
            "token + position embedding",
            f"{length} x {STATE}",
            Leg(ops.embed, [tokens, at[:, 0], vocabulary, positions], {"n_vocab": VOCABULARY}),
            Leg(builtin.embed, [tokens, at, vocabulary, positions]),
            least=length * (3 * self.size * STATE + 4) + 4,
            work=work.embed(length, STATE),
        )

    def greedy(self, batch: int) -> Case:
        hidden, vocabulary = self.normal(batch, STATE), self.normal(VOCABULARY, STATE, scale=STATE**-0.5)
        suppressed = (np.arange(VOCABULARY) % 10 == 0).astype(np.uint8)
        rules = np.array([(129, 0, TIMESTAMPS, VOCABULARY)] * batch, np.int32)
        text = np.where(np.arange(VOCABULARY) < TIMESTAMPS, NEVER, np.float32(0))
        mask = np.where(suppressed, NEVER, np.float32(0))
        padding = -VOCABULARY % 128
        padded = np.pad(vocabulary, ((0, padding), (0, 0)))
        masks = [np.pad(array, (0, padding), constant_values=NEVER) for array in (mask, text)]
        parameters, rows_of = {"timestamp_begin": TIMESTAMPS}, (0, 1, 4)
        return Case(
            "logits + greedy pick",
            f"{batch} x {STATE}, {VOCABULARY} tokens",
            Leg(
                ops.greedy,
                [hidden[:, None], np.zeros(batch, np.int32), vocabulary, suppressed, rules],
                parameters,
                rows_of,
            ),
            Leg(builtin.greedy, [hidden, padded, *masks], parameters, (0,)),
            least=self.size * (hidden.size + vocabulary.size) + suppressed.nbytes + rules.nbytes + 12 * batch,
            work=work.greedy(batch, STATE, VOCABULARY),
            products=batch * VOCABULARY * STATE,
        )

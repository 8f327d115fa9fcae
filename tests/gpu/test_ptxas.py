"""What ptxas makes of every kernel: registers and shared memory as the kernels' headers say, nothing spilled.

The phantom hands over the PTX, so these limits are checked where there is no GPU.
"""

import os
import re
import subprocess
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from max_whisper import ops
from tests.phantom import install
from tests.phantom.architecture import CURRENT, H100

from . import test_attention, test_conv1d, test_embed, test_greedy, test_layer_norm, test_linear, test_log_mel
from .harness import execute, round_to

pytestmark = pytest.mark.gpu

ARCHITECTURES = ("sm_80", "sm_89", "sm_90")


class Limits(NamedTuple):
    """The most that a kernel of a family may take: registers of a thread on each of ARCHITECTURES, bytes of a block, also
    those that a launch asks for."""

    registers: tuple[int, ...]
    shared: int


# float16 stands for bfloat16, whose instructions are as many; bfloat16 is checked where ptxas gives it other registers
# (BFLOAT16), with the same limits. Where shared memory decides how many blocks there are (one has 164, 100 or 228 KB for
# all), registers may be as many as fit.
LIMITS = {
    "linear, few rows": {"f32": Limits((128, 128, 128), 20480), "f16": Limits((128, 128, 128), 20480)},
    "linear, normalised rows": {"f16": Limits((128, 128, 128), 20480)},
    "linear, few tiles": {"f32": Limits((168, 255, 168), 49152), "f16": Limits((128, 128, 128), 122880)},
    "linear, many tiles": {"f32": Limits((168, 255, 168), 49152), "f16": Limits((128, 128, 128), 49152)},
    "convolution": {"f32": Limits((168, 255, 168), 49152), "f16": Limits((128, 128, 128), 122880)},
    "attention, few blocks": {"f32": Limits((168, 255, 168), 43008), "f16": Limits((168, 168, 168), 65536)},
    "attention, many blocks": {"f32": Limits((168, 255, 168), 43008), "f16": Limits((168, 168, 168), 32768)},
    "attention, one query": {"f32": Limits((80, 80, 80), 2592), "f16": Limits((80, 80, 80), 2464)},
    "cached attention": {"f32": Limits((168, 255, 168), 43008), "f16": Limits((168, 168, 168), 65536)},
    "heads": {"f32": Limits((32, 32, 32), 0), "f16": Limits((32, 32, 32), 0)},
    "layer norm": {"f32": Limits((48, 48, 48), 4096), "f16": Limits((48, 48, 48), 2048)},
    "layer norm, longest row": {"f32": Limits((128, 128, 128), 16384), "f16": Limits((128, 128, 128), 8192)},
    "log-mel": {"f32": Limits((64, 64, 64), 54848), "f16": Limits((64, 64, 64), 54848)},
    "embedding": {"f32": Limits((32, 32, 32), 0), "f16": Limits((32, 32, 32), 0)},
    "step": {"f16": Limits((64, 64, 64), 20736)},
    "vocabulary, one row": {"f32": Limits((64, 64, 64), 5376), "f16": Limits((64, 64, 64), 20736)},
    "vocabulary, few rows": {"f32": Limits((128, 128, 128), 41216), "f16": Limits((64, 64, 64), 20736)},
    "vocabulary, many rows": {"f32": Limits((128, 128, 128), 33024), "f16": Limits((64, 64, 64), 41216)},
}


HOPPER_LIMITS = {
    "linear, 192 x 192": Limits((168,), 196608),
    "linear, 192 x 96": Limits((144,), 221184),
    "linear, 128 x 128": Limits((128,), 196608),
    "linear, 128 x 64": Limits((128,), 196608),
    "convolution": Limits((128,), 196608),
    "attention, few blocks": Limits((128,), 106496),
    "attention, many blocks": Limits((128,), 57344),  # four blocks a multiprocessor
    "cached attention": Limits((128,), 106496),
}
"""Of sm_90a, in 16 bits: kernels that other GPUs do not have."""

if CURRENT is H100:
    ARCHITECTURES = ("sm_90a",)
    LIMITS = {family: {"f16": limits} for family, limits in HOPPER_LIMITS.items()}

BFLOAT16 = (
    tuple(LIMITS)
    if CURRENT is H100
    else ("linear, normalised rows", "attention, one query", "layer norm", "vocabulary, many rows")
)


def linear(rng, name, rows, columns=16):
    residual = round_to(name, rng.standard_normal((rows, columns)))
    execute(ops.linear, [*test_linear.arguments(rng, name, rows, columns, 16), residual], gelu=True)


def norm_linear(rng, name):
    execute(ops.norm_linear, test_linear.normed(rng, name, 3, 16, 64), gelu=True)


def conv1d(rng, name):
    positions = round_to(name, rng.standard_normal((3, 16)))
    execute(ops.conv1d, [*test_conv1d.arguments(rng, name, 1, 5, 8, 16), positions], stride=2)


def attention(rng, name, queries, keys, batch=1):
    q, kv = (
        test_attention.normal(rng, name, batch, queries, 64),
        test_attention.normal(rng, name, 2, batch, 1, keys, 64),
    )
    execute(ops.attention, [q, *kv])


def cached_attention(rng, name):
    rows, kv = test_attention.normal(rng, name, 1, 3, 192), test_attention.normal(rng, name, 2, 1, 1, 20, 64)
    execute(test_attention.cached_attention, [rows, np.zeros(1, np.int32), *kv])


def layer_norm(rng, name, columns):
    execute(ops.add_layer_norm, test_layer_norm.arguments(rng, name, (3,), columns, 2))


def vocabulary(rng, name, batch):
    mask, rules = np.zeros(test_greedy.V, np.uint8), np.array([test_greedy.EVERYTHING] * batch, np.int32)
    arrays = [*test_greedy.rows(rng, name, batch, 8), mask, rules]
    execute(ops.greedy, arrays, timestamp_begin=test_greedy.FIRST)


def step(rng, name):
    mask = np.zeros(test_greedy.V, np.uint8)
    arrays = [*test_greedy.rows(rng, name, 1, 8), mask, *test_greedy.told(rng, 1, mask)]
    execute(test_greedy.greedy_step, arrays, **test_greedy.STEP)


CALLS: dict[str, Callable[[np.random.Generator, str], object]] = {
    "linear, few rows": lambda rng, name: linear(rng, name, 3),
    "linear, normalised rows": norm_linear,
    "linear, few tiles": lambda rng, name: linear(rng, name, 17),
    "linear, many tiles": lambda rng, name: linear(rng, name, 17, 64 * 109),  # the phantom has 108 multiprocessors
    "linear, 192 x 192": lambda rng, name: linear(rng, name, 193, 8512),
    "linear, 192 x 96": lambda rng, name: linear(rng, name, 129, 4288),
    "linear, 128 x 128": lambda rng, name: linear(rng, name, 128, 12768),
    "linear, 128 x 64": lambda rng, name: linear(rng, name, 17),
    "convolution": conv1d,
    "attention, few blocks": lambda rng, name: attention(rng, name, 3, 20),
    "attention, many blocks": lambda rng, name: attention(rng, name, 3, 20, batch=CURRENT.multiprocessors * 2 + 1),
    "attention, one query": lambda rng, name: attention(rng, name, 1, 600),
    "cached attention": cached_attention,
    "heads": lambda rng, name: execute(ops.pack_heads, [test_attention.normal(rng, name, 1, 3, 576)], heads=3),
    "layer norm": lambda rng, name: layer_norm(rng, name, 384),
    "layer norm, longest row": lambda rng, name: layer_norm(rng, name, 2048),
    "log-mel": lambda rng, name: execute(test_log_mel.log_mel, test_log_mel.arguments(rng, name, 1, 400, 0)),
    "embedding": lambda rng, name: execute(ops.embed, test_embed.arguments(rng, name, 1, 2, 8), n_vocab=test_embed.V),
    "step": step,
    "vocabulary, one row": lambda rng, name: vocabulary(rng, name, 1),
    "vocabulary, few rows": lambda rng, name: vocabulary(rng, name, 2),
    "vocabulary, many rows": lambda rng, name: vocabulary(rng, name, 9),
}


@cache
def kernels(family: str, name: str) -> tuple[list[str], int]:
    """The PTX of the kernels that a small call of a family launches, and the most shared memory that a launch asks for."""
    if install.installed is None:
        pytest.skip("a real GPU's driver has machine code only")
    CALLS[family](np.random.default_rng(0), name)
    launches = install.installed.launches
    wanted = {launch.kernel for launch in launches}
    texts = [text for text in install.installed.modules() if wanted & set(re.findall(r"\.entry\s+([\w$]+)", text))]
    assert len(texts) >= len(wanted) > 0
    return list(dict.fromkeys(texts)), max(launch.dynamic_shared for launch in launches)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("family", "name"),
    [*((family, name) for family in LIMITS for name in LIMITS[family]), *((f, "bf16") for f in BFLOAT16)],
)
def test_registers_and_memory(family, name, architecture, tmp_path):
    limits = LIMITS[family]["f16" if name == "bf16" else name]
    most = {"registers": limits.registers[ARCHITECTURES.index(architecture)], "shared": limits.shared}
    texts, dynamic = kernels(family, name)
    for text in texts:
        used = ask_ptxas(text, architecture, tmp_path / "kernel.ptx")
        assert used["registers"] > 0, "ptxas reported nothing"
        used["shared"] += dynamic
        over = {what: value for what, value in used.items() if value > most.get(what, 0)}
        assert not over, f"{over}, at most {most}, nothing spilled"


def ask_ptxas(text: str, architecture: str, source: Path) -> dict[str, int]:
    """Compiles one kernel for an architecture: registers, bytes of shared and local memory, bytes spilled."""
    source.write_text(re.sub(r"\.target sm_\w+", f".target {architecture}", text))
    ptxas = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / "ptxas"
    command = [str(ptxas), "-v", f"-arch={architecture}", str(source), "-o", os.devnull]
    report = subprocess.run(command, capture_output=True, text=True, check=False)
    assert report.returncode == 0, report.stderr
    assert "Performance Loss" not in report.stderr, report.stderr  # products that wait for each other
    patterns = {"registers": r"Used (\d+) registers", "shared": r"(\d+) bytes smem"}
    patterns |= {"local": r"(\d+) bytes stack frame", "spilled": r"(\d+) bytes spill"}
    return {what: max(map(int, re.findall(p, report.stderr)), default=0) for what, p in patterns.items()}

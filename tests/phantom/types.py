"""PTX types and their NumPy counterparts; bfloat16, which NumPy lacks, is carried as its 16 bits."""

from collections.abc import Iterable

import numpy as np

UNSIGNED = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}

TYPES: dict[str, np.dtype] = {
    "pred": np.dtype(bool),
    "f16": np.dtype("f2"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
}
for _bits in (8, 16, 32, 64):
    TYPES |= {f"{kind}{_bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{_bits // 8}") for kind in "usb"}
TYPES |= {"bf16": np.dtype("u2"), "bf16x2": np.dtype("u4"), "f16x2": np.dtype("u4"), "tf32": np.dtype("u4")}


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Widens bfloat16 to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounds float32 to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def to_tf32(values: np.ndarray) -> np.ndarray:
    """Rounds float32 to the 10 bits of TF32's mantissa, ties away from zero; returns float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


def halves(words: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Splits packed pairs (`bf16x2` or `f16x2`) into their lower and upper numbers, float32 or float16."""
    low, high = (words & 0xFFFF).astype(np.uint16), (words >> 16).astype(np.uint16)
    if kind.startswith("bf16"):
        return from_bfloat16(low), from_bfloat16(high)
    return low.view(np.float16), high.view(np.float16)


def join(pair: Iterable[np.ndarray], kind: str) -> np.ndarray:
    """Packs two numbers, the lower first, into a pair; the inverse of `halves`, with rounding."""
    low, high = pair
    if kind.startswith("bf16"):
        bits = [to_bfloat16(half.astype(np.float32)) for half in (low, high)]
    else:
        bits = [half.astype(np.float16).view(np.uint16) for half in (low, high)]
    return bits[0].astype(np.uint32) | bits[1].astype(np.uint32) << 16

"""Arithmetic, comparison and conversion of numbers."""

from collections.abc import Callable

import numpy as np

from tests.phantom.errors import UnsupportedError
from tests.phantom.machine import Machine
from tests.phantom.ptx import Instruction
from tests.phantom.types import TYPES, halves, join, to_bfloat16, to_tf32

Unary = Callable[[np.ndarray], np.ndarray]
Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _store(machine: Machine, register: str, value: np.ndarray, kind: str) -> None:
    machine.set(register, to_bfloat16(value) if kind == "bf16" else value.astype(TYPES[kind], copy=False))


def _elementwise(
    machine: Machine, instruction: Instruction, function: Callable[..., np.ndarray], operands: int
) -> None:
    """Applies a function to the first source operands, to both halves of packed pairs."""
    kind = instruction.types()[-1]
    names = instruction.operands[1 : 1 + operands]
    if kind in ("bf16x2", "f16x2"):
        pairs = [halves(machine.each(name, "b32"), kind) for name in names]
        machine.set(instruction.operands[0], join((function(*half) for half in zip(*pairs, strict=True)), kind))
    else:
        _store(machine, instruction.operands[0], function(*(machine.number(name, kind) for name in names)), kind)


def _unary(function: Unary) -> Callable[[Machine, Instruction], None]:
    return lambda machine, instruction: _elementwise(machine, instruction, function, 1)


def _binary(function: Binary) -> Callable[[Machine, Instruction], None]:
    return lambda machine, instruction: _elementwise(machine, instruction, function, 2)


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once: exact in the next wider type for float16 and, but for double rounding, for float32."""
    if a.dtype == np.float64:
        return a * b + c
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(a.dtype)


def fma(machine: Machine, instruction: Instruction) -> None:
    """fma."""
    _elementwise(machine, instruction, _fused, 3)


def multiply(machine: Machine, instruction: Instruction) -> None:
    """mul and mad, with .lo, .hi and .wide for integers."""
    kind = instruction.types()[-1]
    adds = instruction.opcode == "mad"
    if kind[0] not in "us":
        _elementwise(machine, instruction, _fused if adds else np.multiply, 3 if adds else 2)
        return
    a, b = (machine.value(name, kind) for name in instruction.operands[1:3])
    width = 8 * a.dtype.itemsize
    if instruction.has("wide"):
        wide = f"{kind[0]}{2 * width}"
        product, added = a.astype(TYPES[wide]) * b.astype(TYPES[wide]), wide
    elif instruction.has("hi"):
        if width == 64:
            product = np.array([(int(x) * int(y)) >> 64 for x, y in np.broadcast(a, b)]).astype(a.dtype)
        else:
            wide = TYPES[f"{kind[0]}64"]
            product = ((a.astype(wide) * b.astype(wide)) >> width).astype(a.dtype)
        added = kind
    else:
        product, added = a * b, kind
    if adds:
        product = product + machine.value(instruction.operands[3], added)
    machine.set(instruction.operands[0], product)


def _carried(plain: Callable[[Machine, Instruction], None], *, borrow: bool) -> Callable[[Machine, Instruction], None]:
    """add and sub, with `.cc` and with `c` behind the name for numbers longer than a register."""

    def execute(machine: Machine, instruction: Instruction) -> None:
        if not (instruction.has("cc") or instruction.opcode.endswith("c")):
            plain(machine, instruction)
            return
        kind = f"u{8 * TYPES[instruction.types()[-1]].itemsize}"
        a, b = (machine.each(name, kind) for name in instruction.operands[1:3])
        taken = (machine.carry if instruction.opcode.endswith("c") else np.zeros(machine.count, bool)).astype(a.dtype)
        partial = a - b if borrow else a + b
        result = partial - taken if borrow else partial + taken
        out = (a < b) | (partial < taken) if borrow else (partial < a) | (result < partial)
        machine.set(instruction.operands[0], result)
        if instruction.has("cc"):
            machine.carry = np.where(machine.active(), out, machine.carry)

    return execute


def divide(machine: Machine, instruction: Instruction) -> None:
    """div and rem; integers by zero are a fault."""
    kind = instruction.types()[-1]
    if kind[0] not in "us":
        _elementwise(machine, instruction, np.divide, 2)
        return
    a, b = (machine.each(name, kind) for name in instruction.operands[1:3])
    zero = (b == 0) & machine.active()
    if zero.any():
        raise machine.fault("integer division by zero", np.flatnonzero(zero))
    safe = np.where(b == 0, 1, b).astype(b.dtype)
    remainder = np.fmod(a, safe)  # truncated, as on the machine
    machine.set(instruction.operands[0], remainder if instruction.opcode == "rem" else (a - remainder) // safe)


def compare(machine: Machine, instruction: Instruction) -> None:
    """setp: two predicates from a comparison, combined with a third."""
    kind, comparison = instruction.types()[-1], instruction.parts[1]
    a, b = (machine.number(name, kind) for name in instruction.operands[1:3])
    unordered = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(1, bool)
    or_nan = len(comparison) == 3 and comparison.endswith("u")
    name = comparison[:2] if or_nan else {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(comparison, comparison)
    if name in ("num", "nan"):
        result = unordered if name == "nan" else ~unordered
    else:
        functions = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal}
        functions |= {"gt": np.greater, "ge": np.greater_equal}
        result = functions[name](a, b) & ~unordered | (unordered & or_nan)
    for part, function in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        if part in instruction.parts[2:]:
            result = function(result, machine.predicate(instruction.operands[3]))
    result = np.broadcast_to(result, (machine.count,))
    targets = instruction.operands[0].split("|")
    machine.set(targets[0], result)
    if len(targets) > 1:
        machine.set(targets[1], ~result)


_ROUND = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def convert(machine: Machine, instruction: Instruction) -> None:
    """cvt."""
    to, of = instruction.types()[0], instruction.types()[-1]
    target = instruction.operands[0]
    if to in ("bf16x2", "f16x2"):
        high, low = (machine.each(name, "f32") for name in instruction.operands[1:3])
        machine.set(target, join((low, high), to))
        return
    value = machine.number(instruction.operands[1], of)
    round_to_integer = next((_ROUND[part] for part in instruction.parts if part in _ROUND), None)
    if to == "tf32":
        machine.set(target, to_tf32(value).view(np.uint32))
        return
    if to == "bf16":
        machine.set(target, to_bfloat16(value.astype(np.float32)))
        return
    dtype = TYPES[to]
    if value.dtype.kind == "f" and round_to_integer:
        value = round_to_integer(value.astype(np.float64) if dtype.kind != "f" else value)
        if dtype.kind != "f":
            limits = np.iinfo(dtype)
            clipped = np.clip(np.nan_to_num(value), float(limits.min), float(limits.max))
            exact = np.where(np.abs(clipped) < 2.0**62, clipped, 0).astype(np.int64).astype(dtype)
            value = np.where(
                clipped >= float(limits.max), limits.max, np.where(clipped <= float(limits.min), limits.min, exact)
            )
            value = value.astype(dtype)
    if instruction.has("sat") and dtype.kind == "f":
        value = np.clip(np.nan_to_num(value), 0, 1)
    machine.set(target, value.astype(dtype))


def _minimum(pick: Binary, propagating: Binary) -> Callable[[Machine, Instruction], None]:
    def execute(machine: Machine, instruction: Instruction) -> None:
        _elementwise(machine, instruction, propagating if instruction.has("NaN") else pick, 2)

    return execute


def copy_sign(machine: Machine, instruction: Instruction) -> None:
    """copysign: the sign of the first source, the magnitude of the second."""
    _elementwise(machine, instruction, lambda sign, magnitude: np.copysign(magnitude, sign), 2)


def test_number(machine: Machine, instruction: Instruction) -> None:
    """testp."""
    value = machine.number(instruction.operands[1], instruction.types()[-1])
    tests = {"finite": np.isfinite, "infinite": np.isinf, "number": lambda v: ~np.isnan(v), "notanumber": np.isnan}
    if instruction.parts[1] not in tests:
        raise UnsupportedError(f"not supported: {instruction.text}")
    machine.set(instruction.operands[0], tests[instruction.parts[1]](value))


EXECUTE = {
    **dict.fromkeys(("add", "addc"), _carried(_binary(np.add), borrow=False)),
    **dict.fromkeys(("sub", "subc"), _carried(_binary(np.subtract), borrow=True)),
    "min": _minimum(np.fmin, np.minimum),
    "max": _minimum(np.fmax, np.maximum),
    "mul": multiply,
    "mad": multiply,
    "fma": fma,
    "div": divide,
    "rem": divide,
    "neg": _unary(np.negative),
    "abs": _unary(np.abs),
    "rcp": _unary(np.reciprocal),
    "sqrt": _unary(np.sqrt),
    "rsqrt": _unary(lambda x: 1 / np.sqrt(x)),
    "ex2": _unary(np.exp2),
    "lg2": _unary(np.log2),
    "sin": _unary(np.sin),
    "cos": _unary(np.cos),
    "tanh": _unary(np.tanh),
    "copysign": copy_sign,
    "testp": test_number,
    "setp": compare,
    "cvt": convert,
}

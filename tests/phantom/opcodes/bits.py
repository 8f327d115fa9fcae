"""Operations on bits."""

from collections.abc import Callable

import numpy as np

from tests.phantom.machine import Machine
from tests.phantom.ptx import Instruction
from tests.phantom.types import TYPES, UNSIGNED


def _logical(function: Callable[..., np.ndarray], operands: int = 2) -> Callable[[Machine, Instruction], None]:
    def execute(machine: Machine, instruction: Instruction) -> None:
        kind = instruction.types()[-1]
        names = instruction.operands[1 : 1 + operands]
        values = [machine.predicate(n) if kind == "pred" else machine.value(n, kind) for n in names]
        machine.set(instruction.operands[0], function(*values))

    return execute


def shift(machine: Machine, instruction: Instruction) -> None:
    """shl and shr; by the width or more gives 0, or the sign."""
    kind = instruction.types()[-1]
    value, by = machine.value(instruction.operands[1], kind), machine.value(instruction.operands[2], "u32")
    bits = 8 * value.dtype.itemsize
    by_at_most = np.minimum(by, bits - 1).astype(value.dtype)
    result = value << by_at_most if instruction.opcode == "shl" else value >> by_at_most
    if not (instruction.opcode == "shr" and kind[0] == "s"):
        result = np.where(by >= bits, np.zeros((), value.dtype), result)
    machine.set(instruction.operands[0], result)


def funnel_shift(machine: Machine, instruction: Instruction) -> None:
    """shf: 32 bits of a shifted pair."""
    low, high, by = (machine.each(name, "u32").astype(np.uint64) for name in instruction.operands[1:4])
    by = np.minimum(by, 32) if instruction.has("clamp") else by & 31
    pair = high << np.uint64(32) | low
    result = (pair << by) >> np.uint64(32) if instruction.has("l") else pair >> by
    machine.set(instruction.operands[0], result.astype(np.uint32))


def extract(machine: Machine, instruction: Instruction) -> None:
    """bfe: a field of bits, with its sign for signed types."""
    kind = instruction.types()[-1]
    width = 8 * TYPES[kind].itemsize
    value = machine.value(instruction.operands[1], f"u{width}").astype(object)
    position, length = (machine.value(name, "u32").astype(object) & 255 for name in instruction.operands[2:4])
    result = (value >> position) & ((1 << length) - 1)
    if kind[0] == "s":
        top = np.minimum(position + length - 1, width - 1)
        negative = (length > 0) & (((value >> top) & 1) == 1)
        result = np.where(negative, result | (-1 << length), result) & ((1 << width) - 1)
    machine.set(instruction.operands[0], np.asarray(result).astype(UNSIGNED[width // 8]))


def insert(machine: Machine, instruction: Instruction) -> None:
    """bfi: a field of bits of the first source, put into the second."""
    kind = instruction.types()[-1]
    width = 8 * TYPES[kind].itemsize
    field, base = (machine.value(name, f"u{width}").astype(object) for name in instruction.operands[1:3])
    position, length = (machine.value(name, "u32").astype(object) & 255 for name in instruction.operands[3:5])
    mask = (((1 << length) - 1) << position) & ((1 << width) - 1)
    result = (base & ~mask) | ((field << position) & mask)
    machine.set(instruction.operands[0], np.asarray(result).astype(UNSIGNED[width // 8]))


def permute(machine: Machine, instruction: Instruction) -> None:
    """prmt: any four of the eight bytes of two words, or their signs."""
    a, b, selector = (machine.each(name, "u32") for name in instruction.operands[1:4])
    source = np.stack([(word >> np.uint32(place)) & 255 for word in (a, b) for place in (0, 8, 16, 24)])
    result = np.zeros(machine.count, np.uint32)
    for i in range(4):
        select = (selector >> np.uint32(4 * i)) & 0xF
        byte = source[select & 7, machine.all]
        byte = np.where(select & 8, np.where(byte & 128, 255, 0), byte).astype(np.uint32)
        result |= byte << np.uint32(8 * i)
    machine.set(instruction.operands[0], result)


def three_input_logic(machine: Machine, instruction: Instruction) -> None:
    """lop3: any function of three bits, given by its truth table."""
    a, b, c = (machine.each(name, "u32") for name in instruction.operands[1:4])
    table = int(instruction.operands[4], 0)
    result = np.zeros(machine.count, np.uint32)
    for row in range(8):
        if table >> row & 1:
            terms = [bits if row & place else ~bits for bits, place in ((a, 4), (b, 2), (c, 1))]
            result |= terms[0] & terms[1] & terms[2]
    machine.set(instruction.operands[0], result)


def count_leading_zeros(machine: Machine, instruction: Instruction) -> None:
    """clz."""
    value = machine.value(instruction.operands[1], instruction.types()[-1])
    bits = 8 * value.dtype.itemsize
    lengths = np.array([int(number).bit_length() for number in value.view(UNSIGNED[value.dtype.itemsize])])
    machine.set(instruction.operands[0], (bits - lengths).astype(np.uint32))


def reverse(machine: Machine, instruction: Instruction) -> None:
    """brev."""
    value = machine.value(instruction.operands[1], instruction.types()[-1])
    bits = np.unpackbits(np.ascontiguousarray(value).view(np.uint8).reshape(len(value), -1), axis=1, bitorder="little")
    machine.set(instruction.operands[0], np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(value.dtype)[:, 0])


def find_highest(machine: Machine, instruction: Instruction) -> None:
    """bfind: the highest bit that differs from the sign; all ones if there is none."""
    kind = instruction.types()[-1]
    value = machine.value(instruction.operands[1], kind)
    value = np.where(value < 0, ~value, value) if kind[0] == "s" else value
    lengths = np.array([int(number).bit_length() - 1 for number in value])
    if instruction.has("shiftamt"):
        lengths = np.where(lengths < 0, lengths, 8 * value.dtype.itemsize - 1 - lengths)
    machine.set(instruction.operands[0], lengths.astype(np.int32).view(np.uint32))


def count_ones(machine: Machine, instruction: Instruction) -> None:
    """popc."""
    value = machine.value(instruction.operands[1], instruction.types()[-1])
    machine.set(instruction.operands[0], np.bitwise_count(value).astype(np.uint32))


EXECUTE = {
    "and": _logical(np.bitwise_and),
    "or": _logical(np.bitwise_or),
    "xor": _logical(np.bitwise_xor),
    "not": _logical(np.bitwise_not, 1),
    "shl": shift,
    "shr": shift,
    "shf": funnel_shift,
    "bfe": extract,
    "bfi": insert,
    "prmt": permute,
    "lop3": three_input_logic,
    "clz": count_leading_zeros,
    "brev": reverse,
    "bfind": find_highest,
    "popc": count_ones,
}

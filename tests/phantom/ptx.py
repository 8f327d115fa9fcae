"""PTX text to kernels: parameters, variables and instructions of one `.entry`, as NVIDIA's PTX ISA defines them.

The text is what a compiler writes, so the parser reads its shape: one statement up to each semicolon, declarations first.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tests.phantom import flow
from tests.phantom.errors import UnsupportedError
from tests.phantom.types import TYPES, UNSIGNED

RED_ZONE = 64
"""Bytes behind each shared array that no access may touch."""


@dataclass(frozen=True)
class Parameter:
    """A kernel's argument: where it lies in the parameter space."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Variable:
    """A declared array: `space` is shared, local or global (constants are global); `offset` is counted in its space."""

    name: str
    space: str
    offset: int
    size: int
    data: bytes = b""


@dataclass
class Instruction:
    """One instruction.

    Attributes:
        text: As it stands in the PTX.
        parts: The opcode's parts: `ld.global.v4.f32` is ("ld", "global", "v4", "f32").
        operands: Operands, not yet resolved.
        guard: Register of the predicate, or None.
        negated: Whether the guard must be false.
        line: Line of the PTX text.
        source: File and line of the source, from the nearest `.loc` above; empty if there is none.
    """

    text: str
    parts: tuple[str, ...]
    operands: list[str]
    guard: str | None
    negated: bool
    line: int
    source: str

    @property
    def opcode(self) -> str:
        """First part of the opcode."""
        return self.parts[0]

    def has(self, *names: str) -> bool:
        """Whether the opcode has one of these parts."""
        return any(name in self.parts for name in names)

    def types(self) -> list[str]:
        """The opcode's types, in order."""
        return [part for part in self.parts[1:] if part in TYPES]


@dataclass
class Kernel:
    """One entry of a PTX module."""

    name: str
    target: str
    parameters: list[Parameter] = field(default_factory=list)
    registers: dict[str, np.dtype] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    dynamic_shared: str | None = None
    labels: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    max_threads: int | None = None

    @cached_property
    def order(self) -> np.ndarray:
        """Numbers of the instructions in the order in which diverged threads run them, see `flow.py`."""
        return flow.order(self.instructions, self.labels)

    @cached_property
    def position(self) -> np.ndarray:
        """Where each instruction stands in this order."""
        return np.argsort(self.order)

    @cached_property
    def joins(self) -> frozenset[int]:
        """Instructions with a label."""
        return frozenset(self.labels.values())

    def parameter_bytes(self) -> int:
        """Size of the parameter space."""
        return max((p.offset + p.size for p in self.parameters), default=0)

    def space_bytes(self, space: str) -> int:
        """Size of a space, red zones included."""
        ends = [v.offset + v.size for v in self.variables.values() if v.space == space]
        return max(ends, default=0) + (RED_ZONE if space == "shared" and ends else 0)


def parse(text: str, entry: str | None = None) -> Kernel:
    """Parses one kernel.

    Args:
        text: A PTX module.
        entry: Name of the entry; the only one if not given.

    Raises:
        UnsupportedError: The entry or a declaration is not understood.
    """
    text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    heads = re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*((?:\.\w+[^{;]*)*)\{", text, re.S)
    entries = {head.group(1): head for head in heads}
    if entry is None and len(entries) == 1:
        entry = next(iter(entries))
    if entry is None or entry not in entries:
        raise UnsupportedError(f"the module has the entries {', '.join(entries)}, not {entry}")
    head = entries[entry]
    target = re.search(r"\.target\s+([\w]+)", text)
    kernel = Kernel(entry, target.group(1) if target else "")
    if limit := re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", head.group(3)):
        kernel.max_threads = int(np.prod([int(n) for n in limit.groups() if n]))
    _parse_parameters(kernel, head.group(2))
    for statement in re.finditer(
        r"(\.extern\s+|\.visible\s+)?\.(?:shared|global|const)\s[^;{]*(?:\{[^}]*\})?[^;{]*;", text
    ):
        if statement.start() < head.start():
            _declare(kernel, statement.group().rstrip(";"))
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text))
    _parse_body(kernel, text, head.end(), files)
    return kernel


def _parse_parameters(kernel: Kernel, text: str) -> None:
    offset = 0
    for declaration in filter(None, map(str.strip, text.split(","))):
        array = re.search(r"\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", declaration)
        if array:
            alignment, name, size = int(array.group(1)), array.group(2), int(array.group(3))
        else:
            kind = re.search(r"\.param\s+\.(\w+)", declaration)
            if not kind:
                raise UnsupportedError(f"parameter not understood: {declaration}")
            size = alignment = TYPES[kind.group(1)].itemsize
            name = declaration.split()[-1]
        offset = -(-offset // alignment) * alignment
        kernel.parameters.append(Parameter(name, offset, size))
        offset += size


def _declare(kernel: Kernel, text: str) -> None:
    """Takes in a `.shared`, `.local`, `.global` or `.const` array."""
    found = re.search(
        r"\.(shared|local|global|const)(?:\s+\.align\s+(\d+))?\s+\.(\w+)\s+([\w$]+)(\[(\d*)\])?(?:\s*=\s*\{?([^}]*)\}?)?",
        text,
    )
    if not found:
        raise UnsupportedError(f"declaration not understood: {text}")
    space, alignment, kind, name, brackets, count, values = found.groups()
    space = "global" if space == "const" else space
    if space == "shared" and brackets and not count:
        kernel.dynamic_shared = name
        return
    numbers = [int(value, 0) for value in (values or "").split(",") if value.strip()]
    size = TYPES[kind].itemsize * int(count or 1)
    data = np.array(numbers, dtype=object).astype(np.int64).astype(TYPES[kind]).tobytes().ljust(size, b"\0")
    step = int(alignment or TYPES[kind].itemsize)
    offset = -(-kernel.space_bytes(space) // step) * step
    kernel.variables[name] = Variable(name, space, offset, size, data if space == "global" else b"")


def _parse_body(kernel: Kernel, text: str, begin: int, files: dict[str, str]) -> None:
    end, depth = begin, 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    line = text.count("\n", 0, begin) + 1
    source = ""
    for raw in re.split(r"(;|(?<=:)\s*\n|(?<=\n)\s*\.loc[^\n]*\n)", text[begin : end - 1]):
        at = line + len(raw[: len(raw) - len(raw.lstrip())].split("\n")) - 1
        line += raw.count("\n")
        statement = " ".join(raw.split()).strip("; ")
        while label := re.match(r"([\w$]+):\s*", statement):
            kernel.labels[label.group(1)] = len(kernel.instructions)
            statement = statement[label.end() :]
        statement = re.sub(r"^[{}\s]+(?=[@.\w])", "", statement).strip()  # scopes of inline assembly are flattened
        if location := re.match(r"\.loc (\d+) (\d+)", statement):
            source = f"{files.get(location.group(1), '?')}:{location.group(2)}"
        elif statement.startswith("."):
            _parse_declaration(kernel, statement)
        elif statement.strip("{} "):
            kernel.instructions.append(_parse_instruction(statement, at, source))
    kernel.instructions.append(Instruction("ret", ("ret",), [], None, False, line, source))


def _parse_declaration(kernel: Kernel, statement: str) -> None:
    if registers := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement):
        kind = TYPES[registers.group(1)]
        dtype = kind if kind.kind == "b" else UNSIGNED[kind.itemsize]
        for name in map(str.strip, registers.group(2).split(",")):
            if many := re.match(r"(%?[\w$]+)<(\d+)>", name):
                kernel.registers |= {f"{many.group(1)}{i}": dtype for i in range(int(many.group(2)))}
            else:
                kernel.registers[name] = dtype
    elif re.match(r"\.(shared|local)\s", statement):
        _declare(kernel, statement)
    elif statement.split()[0] not in (".pragma", ".file", ".loc"):
        raise UnsupportedError(f"declaration not understood: {statement}")


def _parse_instruction(statement: str, line: int, source: str) -> Instruction:
    guard = re.match(r"@(!?)(%?[\w$]+)\s+", statement)
    opcode, _, operands = statement[guard.end() if guard else 0 :].partition(" ")
    return Instruction(
        statement,
        tuple(opcode.split(".")),
        split_operands(operands),
        guard.group(2) if guard else None,
        bool(guard and guard.group(1)),
        line,
        source,
    )


def split_operands(text: str) -> list[str]:
    """Splits at the commas that stand in no bracket or brace."""
    operands, depth, begin = [], 0, 0
    for i, character in enumerate(text + ","):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            operands.append(text[begin:i].strip())
            begin = i + 1
    return [operand for operand in operands if operand]


def vector(operand: str) -> list[str]:
    """The registers of `{%a, %b}`, or the one register."""
    return [name.strip() for name in operand[1:-1].split(",")] if operand.startswith("{") else [operand]

"""PTX text to kernels: parameters, variables and instructions of one `.entry`, as NVIDIA's PTX ISA defines them.

The text is what a compiler writes, so the parser reads its shape: one statement up to each semicolon, declarations first.
Functions that the entry calls (Mojo's `print` is made of them) follow it in the same list of instructions.
"""

import os
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from tests.phantom import flow
from tests.phantom.errors import UnsupportedError
from tests.phantom.types import TYPES, UNSIGNED

Place = tuple[str, str, str]

_LINE_LABELS = ("$L__tmp", "$L__func_")
"""Labels of line tables, to which nobody branches."""

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
        source: File and line of the source, from the nearest `.loc` above, and behind it the line into which that was
            inlined; empty if there is none.
        function: The function it belongs to; empty in the entry.
    """

    text: str
    parts: tuple[str, ...]
    operands: list[str]
    guard: str | None
    negated: bool
    line: int
    source: str
    function: str = ""

    @property
    def opcode(self) -> str:
        """First part of the opcode."""
        return self.parts[0]

    def has(self, *names: str) -> bool:
        """Whether the opcode has one of these parts."""
        return any(name in self.parts for name in names)

    def types(self) -> list[str]:
        """The opcode's types, in order."""
        return self._types

    @cached_property
    def _types(self) -> list[str]:
        return [part for part in self.parts[1:] if part in TYPES]


@dataclass
class Function:
    """A function that a kernel calls: its first instruction, and the names of what it takes and returns."""

    begin: int
    parameters: list[str]
    results: list[str]


@dataclass
class Kernel:
    """One entry of a PTX module.

    Attributes:
        frames: Bytes of the parameters of functions, those of calls and of results included, by name.
        functions: The functions that it calls, those that they call before them.
    """

    name: str
    target: str
    parameters: list[Parameter] = field(default_factory=list)
    registers: dict[str, np.dtype] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    dynamic_shared: str | None = None
    dynamic_alignment: int = 16
    labels: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    max_threads: int | None = None

    @cached_property
    def order(self) -> np.ndarray:
        """Numbers of the instructions in the order in which diverged threads run them, see `flow.py`."""
        return flow.order(self.instructions, self.labels, [*(f.begin for f in self.functions.values()), 0])

    @cached_property
    def position(self) -> np.ndarray:
        """Where each instruction stands in this order."""
        return np.argsort(self.order)

    @cached_property
    def joins(self) -> frozenset[int]:
        """Instructions with a label."""
        return frozenset(self.labels.values())

    @cached_property
    def parameter_offsets(self) -> dict[str, int]:
        """Where each parameter lies in the parameter space."""
        return {parameter.name: parameter.offset for parameter in self.parameters}

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
        r"^[ \t]*(\.extern\s+|\.visible\s+)?\.(?:shared|global|const)\s[^;{]*(?:\{[^}]*\})?[^;{]*;", text, re.M
    ):
        if statement.start() < head.start():
            _declare(kernel, statement.group().rstrip(";"))
    files = {
        number: os.path.relpath(Path(path).resolve())
        for number, path in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)
    }
    _parse_body(kernel, text, head.end(), files)
    _parse_functions(kernel, text, files)
    return kernel


def _parse_parameters(kernel: Kernel, text: str) -> None:
    offset = 0
    for declaration in filter(None, map(str.strip, text.split(","))):
        name, size, alignment = _parameter(declaration)
        offset = -(-offset // alignment) * alignment
        kernel.parameters.append(Parameter(name, offset, size))
        offset += size


def _parameter(declaration: str) -> tuple[str, int, int]:
    """Name, bytes and alignment of a `.param`."""
    if array := re.search(r"\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", declaration):
        return array.group(2), int(array.group(3)), int(array.group(1))
    kind = re.search(r"\.param\s+\.(\w+)", declaration)
    if not kind:
        raise UnsupportedError(f"parameter not understood: {declaration}")
    size = TYPES[kind.group(1)].itemsize
    return declaration.split()[-1], size, size


def _parse_functions(kernel: Kernel, text: str, files: dict[str, str]) -> None:
    """Appends the functions that a kernel calls, and those that they call."""
    pattern = r"\.func\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*(?:\(([^)]*)\))?\s*(?:\.\w+\s*)*\{"
    heads = {head.group(2): head for head in re.finditer(pattern, text)}
    calls: dict[str, list[str]] = {}
    pending = [""]
    while pending:
        caller = pending.pop()
        if caller:
            results, parameters = (
                {name: size for name, size, _ in map(_parameter, filter(str.strip, (group or "").split(",")))}
                for group in heads[caller].group(1, 3)
            )
            kernel.functions[caller] = Function(len(kernel.instructions), list(parameters), list(results))
            kernel.frames |= parameters | results
            _parse_body(kernel, text, heads[caller].end(), files, caller)
        called = {callee(at) for at in kernel.instructions if at.opcode == "call" and at.function == caller}
        calls[caller] = sorted(called & heads.keys())
        pending += [name for name in calls[caller] if name not in kernel.functions and name not in pending]
    kernel.functions = {name: kernel.functions[name] for name in _callees_first(calls, "", []) if name}


def _callees_first(calls: dict[str, list[str]], name: str, callers: list[str]) -> list[str]:
    if name in callers:
        raise UnsupportedError(f"{name} calls itself: not supported")
    result = [to for callee in calls[name] for to in _callees_first(calls, callee, [*callers, name])]
    return list(dict.fromkeys([*result, name]))


def callee(call: Instruction) -> str:
    """The function that a `call` names."""
    return next(operand for operand in call.operands if not operand.startswith("("))


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
        kernel.dynamic_alignment = max(kernel.dynamic_alignment, int(alignment or 1))
        return
    numbers = [int(value, 0) for value in (values or "").split(",") if value.strip()]
    size = TYPES[kind].itemsize * int(count or 1)
    data = np.array(numbers, dtype=object).astype(np.int64).astype(TYPES[kind]).tobytes().ljust(size, b"\0")
    step = int(alignment or TYPES[kind].itemsize)
    offset = -(-kernel.space_bytes(space) // step) * step
    kernel.variables[name] = Variable(name, space, offset, size, data if space == "global" else b"")


def _parse_body(kernel: Kernel, text: str, begin: int, files: dict[str, str], function: str = "") -> None:
    """Appends the instructions behind a brace. Registers of functions get the number of theirs in front of their names."""
    scope, own = f"%{len(kernel.functions)}_" if function else "", set[str]()
    end, depth = begin, 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    line = text.count("\n", 0, begin) + 1
    source, inlined = "", dict[Place, Place]()
    for raw in re.split(r"(;|(?<=:)\s*\n|(?<=\n)\s*\.loc[^\n]*\n)", text[begin : end - 1]):
        at = line + len(raw[: len(raw) - len(raw.lstrip())].split("\n")) - 1
        line += raw.count("\n")
        statement = " ".join(raw.split()).strip("; ").lstrip("{} ")  # scopes of calls and inline assembly are flattened
        while label := re.match(r"([\w$]+):\s*", statement):
            if not label.group(1).startswith(_LINE_LABELS):
                kernel.labels[label.group(1)] = len(kernel.instructions)
            statement = statement[label.end() :]
        statement = statement.lstrip("{} ")
        if statement.startswith(".loc "):
            source = _source(statement, files, inlined)
        elif statement.startswith("."):
            own.update(_parse_declaration(kernel, statement, scope))
        elif statement.strip("{} "):
            if scope:
                statement = re.sub(
                    r"%\w+", lambda m: scope + m.group()[1:] if m.group() in own else m.group(), statement
                )
            kernel.instructions.append(_parse_instruction(statement, at, source, function))
    kernel.instructions.append(Instruction("ret", ("ret",), [], None, False, line, source, function))


def _source(location: str, files: dict[str, str], inlined: dict[Place, Place]) -> str:
    """File and line that a `.loc` names, and behind it the lines that it is inlined into.

    Args:
        location: The directive: file, line, column, and the same of what it is inlined into.
        files: Their names.
        inlined: What earlier ones are inlined into; updated.
    """
    place, *outer = re.findall(r"(?:\.loc|inlined_at) (\d+) (\d+) (\d+)", location)
    if outer:
        inlined[place] = outer[0]
    chain = [place]
    while (place := inlined.get(place, place)) not in chain:
        chain.append(place)
    names = [f"{files.get(file, '?')}:{line}" for file, line, _ in chain if line != "0"]
    return " < ".join(dict.fromkeys(names))


def _parse_declaration(kernel: Kernel, statement: str, scope: str) -> list[str]:
    """Takes in a declaration inside a body; returns the registers that it declares."""
    names: list[str] = []
    if registers := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement):
        kind = TYPES[registers.group(1)]
        dtype = kind if kind.kind == "b" else UNSIGNED[kind.itemsize]
        for name in map(str.strip, registers.group(2).split(",")):
            many = re.match(r"(%?[\w$]+)<(\d+)>", name)
            names += [f"{many.group(1)}{i}" for i in range(int(many.group(2)))] if many else [name]
        kernel.registers |= {(scope + n[1:] if scope and n.startswith("%") else n): dtype for n in names}
    elif statement.startswith(".param"):
        name, size, _ = _parameter(statement)
        kernel.frames[name] = max(size, kernel.frames.get(name, 0))
    elif re.match(r"\.(shared|local)\s", statement):
        _declare(kernel, statement)
    elif statement.split()[0] not in (".pragma", ".file", ".loc"):
        raise UnsupportedError(f"declaration not understood: {statement}")
    return names


def _parse_instruction(statement: str, line: int, source: str, function: str) -> Instruction:
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
        function,
    )


def split_operands(text: str) -> list[str]:
    """Splits at the commas that stand in no bracket, brace or parenthesis."""
    operands, depth, begin = [], 0, 0
    for i, character in enumerate(text + ","):
        depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            operands.append(text[begin:i].strip())
            begin = i + 1
    return [operand for operand in operands if operand]


@cache
def vector(operand: str) -> list[str]:
    """The registers of `{%a, %b}` or names of `(a, b)`, or the one register."""
    return [name.strip() for name in operand[1:-1].split(",")] if operand.startswith(("{", "(")) else [operand]

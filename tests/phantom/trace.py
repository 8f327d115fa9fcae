"""Shows what one thread does, instruction by instruction, with the registers that each names as they are afterwards."""

import re

from tests.phantom.machine import Machine
from tests.phantom.types import TYPES


def show(machine: Machine) -> None:
    """Prints the current instruction if the traced thread takes part in it."""
    thread, instruction = machine.traced, machine.current
    if thread is None or not machine.active()[thread]:
        return
    types = instruction.types() or ["b32"]
    values = []
    for name in dict.fromkeys(re.findall(r"%\w+", instruction.text)):
        if name in machine.registers:
            kind = TYPES[types[0] if instruction.operands and name in instruction.operands[0] else types[-1]]
            value = machine.registers[name][thread]
            if kind.kind == "f" and kind.itemsize == value.dtype.itemsize:
                value = value.view(kind)
            values.append(f"{name}={value}")
    source = f"  ({instruction.source})" if instruction.source else ""
    print(f"{instruction.line:6} {instruction.text:<56} {' '.join(values)}{source}", flush=True)

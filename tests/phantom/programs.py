"""Small PTX programs for the phantom's own tests."""

from collections.abc import Sequence

import numpy as np

from tests.phantom.counters import Counters
from tests.phantom.launch import DEFAULT, Options, launch, load_kernel
from tests.phantom.memory import Memory

_MODULE = """
.version 8.0
.target sm_80
.address_size 64
{declarations}
.visible .entry program({parameters})
{{
    .reg .pred %p<8>;
    .reg .b16 %h<32>;
    .reg .b32 %r<32>;
    .reg .f32 %f<32>;
    .reg .b64 %d<32>;
    .reg .f64 %e<8>;
    .shared .align 16 .b8 tile[{shared}];
{body}
    ret;
}}
"""

REGISTER = {"b16": "%h", "b32": "%r", "f32": "%f", "b64": "%d", "f64": "%e"}


def run(
    memory: Memory,
    body: str,
    arrays: Sequence[np.ndarray] = (),
    outputs: Sequence[np.ndarray] = (),
    *,
    grid: tuple[int, int, int] = (1, 1, 1),
    threads: int = 32,
    shared: int = 1024,
    declarations: str = "",
    options: Options = DEFAULT,
) -> tuple[list[np.ndarray], Counters]:
    """Runs a body of PTX. Register %d<i> holds the address of array i, the outputs behind the inputs; %r31 the thread.

    Returns:
        What is in the outputs afterwards, and the counters.
    """
    buffers = [memory.allocate(array.nbytes) for array in (*arrays, *outputs)]
    for address, array in zip(buffers, arrays, strict=False):
        memory.write(address, array)
    parameters = ", ".join(f".param .u64 a{i}" for i in range(len(buffers)))
    loads = "".join(f"    ld.param.u64 %d{i}, [a{i}];\n" for i in range(len(buffers)))
    text = _MODULE.format(
        declarations=declarations,
        parameters=parameters,
        shared=shared,
        body=f"{loads}    mov.u32 %r31, %tid.x;\n{body}",
    )
    try:
        arguments = [address.to_bytes(8, "little") for address in buffers]
        counters = launch(load_kernel(text), memory, grid, (threads, 1, 1), arguments, options=options)
        results = [
            memory.read(address, array.nbytes).view(array.dtype).reshape(array.shape)
            for address, array in zip(buffers[len(arrays) :], outputs, strict=True)
        ]
    finally:
        for address in buffers:
            memory.free(address)
    return results, counters


def elementwise(memory: Memory, instruction: str, inputs: Sequence[tuple[np.ndarray, str]], output: tuple[str, type]):
    """Runs `instruction`, with {0} for the result and {1}, {2} .. for the inputs, on 32 elements of each input.

    Args:
        memory: The phantom's memory.
        instruction: PTX, like "add.f32 {0}, {1}, {2};".
        inputs: Arrays of 32 elements and the kind of register that takes them.
        output: Kind of the result's register, and its NumPy type.
    """
    names, body = [], ""
    for i, (array, kind) in enumerate(inputs):
        names.append(f"{REGISTER[kind]}{i + 21}")
        body += _at(i, array.dtype.itemsize) + f"    ld.global.{kind} {names[-1]}, [%d20];\n"
    kind, dtype = output
    target = f"{REGISTER[kind]}28"
    body += "    " + instruction.format(target, *names) + "\n"
    body += _at(len(inputs), np.dtype(dtype).itemsize) + f"    st.global.{kind} [%d20], {target};\n"
    return run(memory, body, [array for array, _ in inputs], [np.empty(32, dtype)])[0][0]


def _at(array: int, size: int) -> str:
    return f"    mul.wide.u32 %d19, %r31, {size};\n    add.s64 %d20, %d{array}, %d19;\n"

"""The safetensors format: u64 length of a JSON header, the header, then the tensors' bytes.

The header gives each tensor's element type, shape and byte range, counted from the header's end. The `safetensors`
package copies what it reads and knows no bfloat16 without torch; this reader gives views.
"""

import json
import struct
from pathlib import Path

import numpy as np

from max_whisper.checkpoint.storage import BFLOAT16, MappedBytes, n_bytes
from max_whisper.errors import CheckpointError

_LENGTH = struct.Struct("<Q")
CHECKPOINT_TYPES = {"F16": "float16", "BF16": BFLOAT16, "F32": "float32"}
"""Element types of the weights that Whisper checkpoints come in."""


def read_safetensors(
    path: Path, element_types: dict[str, str] = CHECKPOINT_TYPES, most_dimensions: int = 3
) -> dict[str, np.ndarray]:
    """Reads every tensor of a file under its stored name, as a view of the mapped file.

    Args:
        path: The file.
        element_types: The format's names of the element types allowed, and what they are read as.
        most_dimensions: That a tensor may have: 3 in checkpoints.

    Raises:
        CheckpointError: The file is truncated, its header is not what the format asks for, or a tensor's elements are
            of none of the types allowed.
    """
    data = MappedBytes(path)
    (length,) = _LENGTH.unpack(data.read(0, _LENGTH.size, "the length of the header"))
    start = _LENGTH.size + length
    header = _parse(bytes(data.read(_LENGTH.size, length, "the header")), path)
    tensors = {}
    end = 0  # tensors lie one behind the other, without gaps
    for name, (element_type, shape, (first, last)) in sorted(header.items(), key=lambda item: item[1][2]):
        if element_type not in element_types:
            allowed = ", ".join(sorted(element_types))
            raise CheckpointError(
                f"{path}: {name} is {element_type!r}, expected {allowed}; quantised checkpoints are not supported"
            )
        dtype = element_types[element_type]
        if min(shape, default=0) < 0 or first != end or last - first != n_bytes(shape, dtype):
            raise CheckpointError(
                f"{path} is corrupt: {name} has bytes {first} to {last}, expected {shape} of {dtype} from byte {end} on"
            )
        tensors[name] = data.array(start + first, shape, dtype, name, most_dimensions)
        end = last
    if start + end != data.size:
        raise CheckpointError(f"{path} is corrupt: it has {data.size} bytes, expected {start + end}")
    return tensors


def _parse(header: bytes, path: Path) -> dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]:
    """Reads the header into element type, shape and byte range of each tensor; leaves out the free-form metadata."""
    try:
        fields = json.loads(header)
        fields.pop("__metadata__", None)
        if not all(name.isprintable() for name in fields):
            raise ValueError("a name that cannot be printed")
        return {
            name: (str(field["dtype"]), _sizes(field["shape"]), (int(first), int(last)))
            for name, field in fields.items()
            for first, last in [field["data_offsets"]]
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is corrupt: its header of {len(header)} bytes is no safetensors header"
        ) from error


def _sizes(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise ValueError(f"a shape {shape!r}")
    return tuple(shape)

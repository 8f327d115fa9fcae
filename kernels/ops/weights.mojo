"""The checks of weights that all ops with weights share."""

from extensibility import InputTensor
from std.math import ceildiv

from ..cpu.tile import PANEL, panel_rows, row_size
from ..data import Data, data, require, require_contiguous, require_size
from ..gpu.memory import CHUNK, chunk
from ..gpu.tile import TILE_N


def require_packed(weight: InputTensor, columns: Int, depth: Int, op: StaticString) raises:
    """Raises unless a weight, or each of a stack of them, has the shape of `columns` columns of `depth` elements packed in panels
    of its dtype.

    Args:
        weight: (ceil(N / 16), rows of a panel, 64 bytes), or so many for each of L layers.
        columns: N.
        depth: K.
        op: The op that asks.

    Raises:
        An error that names the dimension.
    """
    comptime assert weight.rank == 3 or weight.rank == 4, "on CPUs weights are packed: rank 3, stacks of them rank 4"
    comptime first = weight.rank - 3
    require_size(weight.dim_size(first), ceildiv(columns, PANEL), op, "the number of packed panels")
    require_size(
        weight.dim_size(first + 1), panel_rows[weight.dtype](depth), op, "the number of rows of a packed panel"
    )
    require_size(weight.dim_size(first + 2), row_size[weight.dtype], op, "the width of a packed panel")
    require_contiguous(weight, op, "the packed weight")


def require_matrix(weight: InputTensor, columns: Int, depth: Int, op: StaticString) raises:
    """Raises unless a weight is a plain (N, K) matrix whose rows GPUs can read 16 bytes at a time.

    Args:
        weight: (N, K), row-major.
        columns: N.
        depth: K.
        op: The op that asks.

    Raises:
        An error that names the dimension.
    """
    comptime assert weight.rank == 2, "on GPUs weights are plain: rank 2"
    require_size(weight.dim_size(0), columns, op, "N of the weight")
    require_size(weight.dim_size(1), depth, op, "K of the weight")
    require_contiguous(weight, op, "weight")
    require_aligned(data(weight), op, "weight")
    require_countable((columns + TILE_N) * depth, op, "(N + 64) * K")


def require_chunks[dtype: DType](size: Int, op: StaticString, name: StaticString) raises:
    """Raises unless rows of a size can be read 16 bytes at a time.

    Parameters:
        dtype: Of the elements.

    Args:
        size: Elements of a row.
        op: The op that asks.
        name: The size, as the op's documentation calls it.

    Raises:
        An error that names the size.
    """
    comptime width = chunk[dtype]()
    require(size % width == 0, op, String(name, " is ", size, ", on a GPU a multiple of ", width, " is expected"))


def require_aligned(x: Data, op: StaticString, name: StaticString) raises:
    """Raises unless an address is a multiple of 16 bytes.

    Args:
        x: The first element.
        op: The op that asks.
        name: The argument's name.

    Raises:
        An error that names the argument.
    """
    require(Int(x) % CHUNK == 0, op, String(name, " starts at an address that is no multiple of ", CHUNK, " bytes"))


def require_countable(size: Int, op: StaticString, name: StaticString) raises:
    """Raises unless offsets of up to a size fit into 32 bits.

    Args:
        size: Elements.
        op: The op that asks.
        name: What has the size.

    Raises:
        An error that names it.
    """
    require(size < 1 << 31, op, String(name, " is ", size, ", on a GPU less than 2147483648 is expected"))

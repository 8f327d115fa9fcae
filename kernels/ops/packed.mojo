"""The check of packed weights that all ops with weights share."""

from extensibility import InputTensor
from std.math import ceildiv

from ..cpu.tile import PANEL, panel_rows, row_size
from ..data import require_contiguous, require_size


def require_packed(weight: InputTensor[rank=3, ...], columns: Int, depth: Int, op: StaticString) raises:
    """Raises unless a weight has the shape of `columns` columns of `depth` elements packed in panels of its dtype.

    Args:
        weight: (ceil(N / 16), rows of a panel, 64 bytes).
        columns: N.
        depth: K.
        op: The op that asks.

    Raises:
        An error that names the dimension.
    """
    require_size(weight.dim_size(0), ceildiv(columns, PANEL), op, "the number of packed panels")
    require_size(weight.dim_size(1), panel_rows[weight.dtype](depth), op, "the number of rows of a packed panel")
    require_size(weight.dim_size(2), row_size[weight.dtype], op, "the width of a packed panel")
    require_contiguous(weight, op, "the packed weight")

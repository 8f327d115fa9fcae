"""Where tensor elements live, as the kernels see them, and the checks an op makes before it touches them."""

from extensibility import InputTensor, OutputTensor, _MutableInputTensor

comptime Data[dtype: DType] = Pointer[Scalar[dtype], MutUntrackedOrigin]
"""Address of the first of some elements that MAX keeps alive while the op runs."""


def data(x: InputTensor) -> Data[x.dtype]:
    """Address of an input's first element."""
    return x.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()


def data(x: OutputTensor) -> Data[x.dtype]:
    """Address of an output's first element."""
    return x.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()


def data(x: _MutableInputTensor) -> Data[x.dtype]:
    """Address of the first element of a tensor that the op updates in place."""
    return x.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()


def require(condition: Bool, op: StaticString, message: String) raises:
    """Raises `op: message` unless the condition holds.

    Args:
        condition: What must hold.
        op: The op that asks.
        message: The value found and the one expected.

    Raises:
        An error that reaches Python as ValueError.
    """
    if not condition:
        raise Error(op, ": ", message)


def require_size(found: Int, expected: Int, op: StaticString, name: StaticString) raises:
    """Raises unless a dimension has the size that the other arguments imply.

    Args:
        found: The dimension's size.
        expected: The size implied.
        op: The op that asks.
        name: The dimension, as the op's documentation calls it.

    Raises:
        An error that names all four.
    """
    if found != expected:
        raise Error(op, ": ", name, " is ", found, ", expected ", expected)


def require_between(found: Int, lowest: Int, highest: Int, op: StaticString, name: StaticString, *index: Int) raises:
    """Raises unless an element lies in a range.

    Args:
        found: The element.
        lowest: The lowest value allowed.
        highest: The highest value allowed.
        op: The op that asks.
        name: The tensor, as the op's documentation calls it.
        index: Where in the tensor.

    Raises:
        An error that names them.
    """
    if not lowest <= found <= highest:
        var place = String(index[0])
        for i in range(1, len(index)):
            place += String(", ", index[i])
        raise Error(op, ": ", name, "[", place, "] is ", found, ", expected ", lowest, " to ", highest)


def require_contiguous(x: InputTensor, op: StaticString, name: StaticString) raises:
    """Raises unless the elements lie in row-major order without gaps.

    Args:
        x: The tensor.
        op: The op that asks.
        name: The argument's name.

    Raises:
        An error that names the dimension and its stride.
    """
    var expected = 1
    comptime for i in range(x.rank):
        comptime axis = x.rank - 1 - i
        var stride = x.stride_length[axis]()
        if x.dim_size[axis]() > 1 and stride != expected:
            raise Error(op, ": ", name, " has stride ", stride, " in dimension ", axis, ", expected ", expected)
        expected *= x.dim_size[axis]()

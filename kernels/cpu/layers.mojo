"""The weights of a layer, as ops of whole blocks hand them to what computes it."""

from ..data import Data


@fieldwise_init
struct Norm(TrivialRegisterPassable):
    """The weights of a layer norm."""

    var gamma: Data[DType.float32]
    """(d)."""
    var beta: Data[DType.float32]
    """(d)."""


@fieldwise_init
struct Layer[weight_type: DType](TrivialRegisterPassable):
    """The weights of a linear layer."""

    var weight: Data[Self.weight_type]
    """Packed."""
    var bias: Data[DType.float32]
    """(N)."""

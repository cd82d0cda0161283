"""Frozen weights, plain or quantised."""

from torch import Tensor


def dense(weight: Tensor) -> Tensor:
    """A frozen weight as plain numbers, whatever it is stored as."""
    dequantized = getattr(weight, "dequantized", None)
    return weight if dequantized is None else dequantized()

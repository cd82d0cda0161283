"""Frozen weights, plain or quantised, alone or several as one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Stacked(NamedTuple):
    """Weights that lie behind one another nowhere in memory: laid together in each product anew.

    What is kept for the way back are the weights themselves, and no copy of them.

    Args:
        parts: the weights, each of shape (outputs, inputs).
    """

    parts: tuple[Tensor, ...]

    def dequantized(self) -> Tensor:
        """One weight of all outputs, as plain numbers."""
        return torch.cat([dense(part) for part in self.parts])


def dense(weight: Tensor | Stacked) -> Tensor:
    """A frozen weight as plain numbers, whatever it is stored as."""
    dequantized: Callable[[], Tensor] | None = getattr(weight, "dequantized", None)
    if dequantized is not None:
        return dequantized()
    assert isinstance(weight, Tensor)
    return weight

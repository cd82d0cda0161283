"""Frozen weights, plain or quantised, alone or several as one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

FEW_ROWS = 64
"""So few rows are the cheaper side to lay out anew for a product in bf16 on a processor."""


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


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X W^T + b, of shape (..., outputs).

    A processor's products in bf16 rearrange their second operand first. For few rows that would be
    most of the work: the weight then comes first, as it is.
    """
    rows = x.shape[:-1].numel()
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or rows > FEW_ROWS:
        return functional.linear(x, weight, bias)
    x_IT = x.reshape(rows, -1).t()
    y_OT = weight @ x_IT if bias is None else torch.addmm(bias.unsqueeze(1), weight, x_IT)
    return y_OT.t().contiguous().view(*x.shape[:-1], -1)

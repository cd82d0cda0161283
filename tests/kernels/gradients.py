"""Numbers to check derivatives with, and which operations something runs."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
}
"""Ways in which a map may lie in memory."""


def numbers(*shape: int, seed: int = 0, grad: bool = True, scale: float = 1.0) -> Tensor:
    """Random float64 numbers, the same for the same shape and seed."""
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=draw, dtype=torch.float64)).requires_grad_(grad)


def check(function: Any, *inputs: Tensor | None) -> None:
    """Compare every derivative with finite differences."""
    assert gradcheck(function, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def same(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to the rounding of float64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


class Operations(TorchDispatchMode):
    """Records the names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

"""Many small parameters as one tensor, so that the optimizer needs one kernel and not hundreds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64
"""Each parameter begins at a multiple of so many numbers, as fast kernels like it."""


class Flat:
    """Parameters laid behind one another, and their gradients likewise.

    The parameters stay the same objects and keep their values; from now on each is a view of a part
    of `whole`. What lies between them is zero, and stays zero under AdamW.

    Args:
        parameters: name -> fp32 parameter, all on one device.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.starts: dict[str, int] = {}
        end = 0
        for name, parameter in self.parameters.items():
            self.starts[name] = end
            end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        device = next(iter(self.parameters.values())).device
        self.whole = nn.Parameter(torch.zeros(end, dtype=torch.float32, device=device))
        self.whole.grad = torch.zeros_like(self.whole)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                part = self.part(self.whole.detach(), name)
                part.copy_(parameter)
                parameter.data = part
                parameter.grad = self.part(self.whole.grad, name)

    def part(self, whole: Tensor, name: str) -> Tensor:
        """A parameter's part of a tensor that is laid out like `whole`, in its own shape."""
        parameter = self.parameters[name]
        start = self.starts[name]
        return whole[start : start + parameter.numel()].view(parameter.shape)

    def moments(self, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Take the optimizer's state of `whole` apart: parameter name -> its own state."""
        return {
            name: {
                key: self.part(value, name).cpu().clone()
                if _is_laid_out(value, self.whole)
                else value.cpu().clone()
                for key, value in state.items()
            }
            for name in self.parameters
        }

    @torch.no_grad()
    def set_moments(
        self, state: Mapping[str, Any], moments: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Put what `moments` took apart back into the state of `whole`, in place."""
        for name in self.parameters:
            for key, value in state.items():
                saved = moments[name][key]
                laid_out = _is_laid_out(value, self.whole)
                (self.part(value, name) if laid_out else value).copy_(saved)


def _is_laid_out(value: Tensor, whole: Tensor) -> bool:
    return value.shape == whole.shape

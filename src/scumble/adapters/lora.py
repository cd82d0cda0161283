"""LoRA: the change of a weight is the product of two thin matrices (arXiv:2106.09685).

Shape suffixes: O output channels, I input channels, R rank, K kernel edge.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from scumble.adapters.base import Adapter, LayerSpec


class LoRA(Adapter):
    """delta W = (alpha / rank) up @ down.

    On a convolution, `down` is a convolution of the layer's own kernel into `rank` channels and
    `up` a 1x1 convolution back, so that their product again has the weight's shape.
    """

    file_names: ClassVar[Mapping[str, str]] = {
        "down": "lora_down.weight",
        "up": "lora_up.weight",
    }
    from_zero: ClassVar[tuple[str, ...]] = ("up",)

    def __init__(self, layer: LayerSpec, rank: int, alpha: float) -> None:
        super().__init__(layer, rank, alpha)
        out_channels, *rest = layer.weight_shape
        up_shape = (out_channels, rank, 1, 1) if layer.is_conv else (out_channels, rank)
        self.down = nn.Parameter(torch.zeros(rank, *rest, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(up_shape, dtype=torch.float32))

    @torch.no_grad()
    def initialise(self, init: str, generator: torch.Generator, weight: Tensor) -> None:  # noqa: ARG002
        """Draw `down`, zero `up`.

        Args:
            init: "gaussian" draws N(0, 1 / rank) as diffusers does; "kaiming" draws the uniform
                distribution of PEFT and kohya, whose spread is 1 / sqrt(3 inputs): smaller, so
                that the same learning rate moves the layer more slowly at first.
            generator: source of the random numbers.
            weight: not used; LoRA starts from zero.
        """
        self.up.zero_()
        draws = torch.empty(self.down.shape)
        if init == "gaussian":
            draws.normal_(std=1 / self.rank, generator=generator)
        else:
            bound = 1 / math.sqrt(self.down[0].numel())
            draws.uniform_(-bound, bound, generator=generator)
        self.down.copy_(draws)

    def delta(self) -> Tensor:
        """The change of the weight: fp32, of the layer's weight shape."""
        up_OR = self.up.flatten(1)
        if self.rank_mask is not None:
            up_OR = up_OR * self.rank_mask
        return (self.scale * (up_OR @ self.down.flatten(1))).reshape(self.layer.weight_shape)

    def branch(self, x: Tensor) -> Tensor:
        """The change of the output: two thin products in the dtype of `x`.

        Only the thin matrices are cast, never `x`; the fp32 masters stay.
        """
        hidden = self.layer.apply(x, self.down.to(x.dtype))
        if self.rank_mask is not None:
            shape = (-1, 1, 1) if self.layer.is_conv else (-1,)
            hidden = hidden * self.rank_mask.to(x.dtype).view(shape)
        up = self.up.to(x.dtype)
        change = nn.functional.conv2d(hidden, up) if self.layer.is_conv else hidden @ up.T
        return change * self.scale

    def thin(self) -> tuple[Tensor, Tensor] | None:
        """The two matrices themselves, scale and rank dropout in `up`."""
        if self.layer.is_conv:
            return None
        up_OR = self.up if self.scale == 1 else self.up * self.scale
        return self.down, up_OR if self.rank_mask is None else up_OR * self.rank_mask

    @classmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """The rank is the first dimension of `down`, which is a matrix or a kernel."""
        down = tensors["down"]
        return int(down.shape[0]) if down.ndim > 1 else 0

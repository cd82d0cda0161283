"""LoRA: the change of a weight is the product of two thin matrices (arXiv:2106.09685).

Shape suffixes: O output channels, I input channels, R rank, K kernel edge.
"""

import math
from collections.abc import Mapping, Set
from typing import ClassVar

import torch
from torch import Tensor, nn

from scumble.adapters.base import Adapter, LayerSpec, refuse_norms


class LoRA(Adapter):
    """delta W = (alpha / rank) up @ down.

    On a convolution, `down` is a convolution of the layer's own kernel into `rank` channels and
    `up` a 1x1 convolution back, so that their product again has the weight's shape. Files may hold
    the kernel apart, in `mid` (rank, rank, K, K) between two 1x1 convolutions (Tucker form).
    """

    down: Tensor
    up: Tensor
    file_names: ClassVar[Mapping[str, str]] = {
        "down": "lora_down.weight",
        "up": "lora_up.weight",
        "mid": "lora_mid.weight",
    }
    from_zero: ClassVar[tuple[str, ...]] = ("up",)
    options: ClassVar[frozenset[str]] = frozenset({"adapter_init", "rank_dropout", "lora_dropout"})

    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """`down` (R, I) or (R, I, K, K) and `up` (O, R) or (O, R, 1, 1); with `mid` its own."""
        refuse_norms(self.layer)
        out_channels, *rest = self.layer.weight_shape
        ones = (1, 1) if self.layer.is_conv else ()
        up = (out_channels, self.rank, *ones)
        if "mid" not in like:
            return {"down": (self.rank, *rest), "up": up}
        edges = self.layer.weight_shape[2:]
        return {"down": (self.rank, rest[0], *ones), "up": up, "mid": (self.rank,) * 2 + edges}

    @classmethod
    def is_complete(cls, names: Set[str]) -> bool:
        """`down` and `up`; `mid` is extra."""
        return {"down", "up"} <= names <= set(cls.file_names)

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

    def delta(self, weight: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The change of the weight: fp32, of the layer's weight shape."""
        down, up_OR = self.factors()
        return (up_OR @ down.flatten(1)).reshape(self.layer.weight_shape)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Down (R, I) or (R, I, K, K) and up (O, R), with scale and rank dropout in `up`."""
        down, up_OR = self.product()
        up_OR = up_OR if self.scale == 1 else up_OR * self.scale
        if self.rank_mask is None:
            return down, up_OR
        return down, up_OR * self.rank_mask.repeat(up_OR.shape[1] // self.rank)

    def product(self) -> tuple[Tensor, Tensor]:
        """Down (R, I) or (R, I, K, K) and up (O, R), as they are."""
        mid = getattr(self, "mid", None)
        if mid is None:
            return self.down, self.up.flatten(1)
        down = torch.einsum("rskl,si->rikl", mid, self.down.flatten(1))
        return down, self.up.flatten(1)

    def row_energies(self, weight: Tensor) -> Tensor:
        """Squared length of each row of the changed weight, shape (O,).

        From the thin matrices: the changed weight is neither formed nor kept for the way back.
        """
        down, up_OR = self.factors()
        dtype = torch.promote_types(weight.dtype, up_OR.dtype)
        axes = tuple(range(1, weight.ndim))
        frozen_O: Tensor = torch.linalg.vector_norm(weight, dim=axes, dtype=dtype).square()
        cross_RO = LayerSpec(self.layer.weight_shape).apply(down.to(weight.dtype), weight)
        down_RI = down.flatten(1)
        if len(down_RI) <= down_RI.shape[1]:
            squares_OR = up_OR @ (down_RI @ down_RI.T)
        else:
            squares_OR = (up_OR @ down_RI) @ down_RI.T
        twice_OR = 2 * cross_RO.flatten(1).T.to(dtype) + squares_OR
        return frozen_O + (up_OR * twice_OR).sum(1)

    @property
    def has_branch(self) -> bool:
        """Always."""
        return True

    def branch(self, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:  # noqa: ARG002
        """The change of the output: two thin products in the dtype of `x`.

        Only the thin matrices are cast, never `x`; the fp32 masters stay.
        """
        down, up_OR = self.factors()
        hidden = self.layer.apply(x, down.to(x.dtype))
        up_OR = up_OR.to(x.dtype)
        if not self.layer.is_conv:
            return hidden @ up_OR.T
        return nn.functional.conv2d(hidden, up_OR[..., None, None])

    def thin(self) -> tuple[Tensor, Tensor] | None:
        """The two matrices themselves, scale and rank dropout in `up`."""
        return None if self.layer.is_conv else self.factors()

    @classmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """The rank is the first dimension of `down`, which is a matrix or a kernel."""
        down = tensors["down"]
        return int(down.shape[0]) if down.ndim > 1 else 0

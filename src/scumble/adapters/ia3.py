"""IA3: each output or input channel of a layer is scaled (arXiv:2205.05638)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from scumble.adapters.base import Adapter, refuse_norms
from scumble.errors import UserError


class IA3(Adapter):
    """delta W = W * `weight`, along the outputs, or along the inputs where `on_input` is 1.

    It has neither rank nor alpha, and leaves the bias as it is.
    """

    weight: Tensor
    on_input: Tensor
    file_names: ClassVar[Mapping[str, str]] = {"weight": "weight", "on_input": "on_input"}
    is_trainable: ClassVar[bool] = False
    has_rank: ClassVar[bool] = False
    needs_weight: ClassVar[bool] = True

    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """`weight` as the file has it: (channels,), or (1, channels, 1, 1) on a convolution."""
        refuse_norms(self.layer)
        return {"weight": like.get("weight", self.layer.weight_shape[:1])}

    @torch.no_grad()
    def copy_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `weight`, and keep `on_input`, a whole number, as it is.

        Raises:
            UserError: one is missing or has another shape.
        """
        super().copy_tensors(tensors)
        if "on_input" not in tensors:
            raise UserError("the tensor 'on_input' is missing")
        on_input = tensors["on_input"].detach().clone()
        self.register_buffer("on_input", on_input, persistent=False)
        channels = self.layer.weight_shape[int(bool(on_input))]
        if self.weight.numel() != channels:
            raise UserError(
                f"'weight' has shape {tuple(self.weight.shape)}, the layer has {channels} channels"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Copies of both on the CPU."""
        return super().tensors() | {"on_input": self.on_input.cpu().clone()}

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change of the weight: fp32, of its shape."""
        assert weight is not None
        ones = [1] * (weight.ndim - 2)
        channels = (1, -1) if bool(self.on_input) else (-1, 1)
        return weight * self.weight.reshape(*channels, *ones)

    @classmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """1 where the tensors are there."""
        return int(bool(tensors["weight"].numel()) and tensors["on_input"].numel() == 1)

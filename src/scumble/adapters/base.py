"""The contract every adapter type keeps: a trainable change of one frozen layer.

Shape suffixes: O output channels, I input channels, R rank, K kernel edge.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from scumble.errors import UserError


@dataclass(frozen=True)
class LayerSpec:
    """What an adapter must know of the layer it sits on: its weight's shape and how it is applied.

    Args:
        weight_shape: (O, I) for Linear, (O, I, K, K) for Conv2d.
        stride: Conv2d only.
        padding: Conv2d only.
        dilation: Conv2d only.
    """

    weight_shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, layer: nn.Module) -> "LayerSpec":
        """Describe a live Linear or Conv2d.

        Raises:
            TypeError: the layer is of another kind, or a convolution in groups.
        """
        if isinstance(layer, nn.Linear):
            return cls((layer.out_features, layer.in_features))
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
            padding = layer.padding if isinstance(layer.padding, str) else _pair(layer.padding)
            shape = tuple(layer.weight.shape)
            return cls(shape, _pair(layer.stride), padding, _pair(layer.dilation))
        raise TypeError(f"adapters sit on Linear and ungrouped Conv2d, not on {layer}")

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution."""
        return len(self.weight_shape) == 4

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Run the layer's own operation on `x` with another weight."""
        if not self.is_conv:
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)


class Adapter(nn.Module, ABC):
    """A trainable change of one frozen layer; its parameters are fp32 masters.

    A type implements `initialise`, `delta` and `rank_of`. It may add `branch`, a cheaper way to the
    same output, and override `merged` where the change is not a plain sum.

    Args:
        layer: the layer it will sit on.
        rank: size of the bottleneck, at least 1.
        alpha: the change is scaled by alpha / rank.
    """

    file_names: ClassVar[Mapping[str, str]]
    """Parameter name -> the tensor name that other tools give it (LyCORIS spelling)."""
    from_zero: ClassVar[tuple[str, ...]] = ()
    """Parameters that start from zero; LoRA+ lets them learn faster than the others."""

    def __init__(self, layer: LayerSpec, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer = layer
        self.rank = rank
        self.alpha = alpha
        self.rank_mask: Tensor | None = None
        """(R,) factors of rank dropout while training; None keeps every rank."""
        self.input_dropout = 0.0
        """Share of the inputs of `branch` that are switched off while training."""

    @property
    def scale(self) -> float:
        """Factor of the change: alpha / rank. It belongs to the file; strength is the user's."""
        return self.alpha / self.rank

    @abstractmethod
    def initialise(self, init: str, generator: torch.Generator, weight: Tensor) -> None:
        """Set the start values so that the layer's output is unchanged.

        Args:
            init: "gaussian" or "kaiming".
            generator: source of the random numbers.
            weight: the frozen weight, for types that start from its norms or factors.
        """

    @abstractmethod
    def delta(self) -> Tensor:
        """The change of the weight, scale included: fp32, of the layer's weight shape."""

    @classmethod
    def is_complete(cls, names: Set[str]) -> bool:
        """Whether tensors of these parameter names make up one adapter of this type."""
        return set(names) == set(cls.file_names)

    @classmethod
    @abstractmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """Read the rank off the shapes of a file's tensors (parameter name -> tensor)."""

    def branch(self, x: Tensor) -> Tensor | None:  # noqa: ARG002
        """The change of the output for input `x`, or None where only `merged` can give it."""
        return None

    def thin(self) -> tuple[Tensor, Tensor] | None:
        """`branch` on a Linear as two thin matrices in fp32: down (R, I) and up (O, R).

        Scale and rank dropout are in `up`. None where the change is not such a product.
        """
        return None

    def merged(self, weight: Tensor, strength: float) -> Tensor:
        """The layer's weight with the change in it.

        Args:
            weight: the frozen weight in fp32.
            strength: the user's dial; 1.0 = as trained.

        Returns:
            A new fp32 tensor; the caller rounds once, at the end.
        """
        return weight + strength * self.delta()

    @classmethod
    def from_tensors(cls, layer: LayerSpec, tensors: Mapping[str, Tensor], alpha: float) -> Self:
        """Rebuild an adapter from a file's tensors.

        Args:
            layer: the layer it will sit on.
            tensors: parameter name -> tensor.
            alpha: as stored with the file.

        Raises:
            UserError: a tensor is missing or does not fit the layer.
        """
        rank = cls.rank_of(tensors)
        if rank < 1:
            raise UserError("its tensors are empty")
        adapter = cls(layer, rank, alpha)
        adapter.copy_tensors(tensors)
        return adapter

    @torch.no_grad()
    def copy_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters.

        Raises:
            UserError: a tensor is missing or has another shape.
        """
        for name, parameter in self.named_parameters():
            if name not in tensors:
                raise UserError(f"the tensor '{self.file_names[name]}' is missing")
            if tensors[name].shape != parameter.shape:
                raise UserError(
                    f"'{self.file_names[name]}' has shape {tuple(tensors[name].shape)}, "
                    f"the layer needs {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the parameters on the CPU (parameter name -> tensor), as files hold them."""
        return {name: p.detach().cpu().clone() for name, p in self.named_parameters()}


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])

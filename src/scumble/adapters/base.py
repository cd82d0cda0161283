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
        weight_shape: (O, I) for Linear, (O, I, K, K) for Conv2d, (O,) for a norm.
        stride: Conv2d only.
        padding: Conv2d only.
        dilation: Conv2d only.
        groups: GroupNorm only; 0 for every other layer.
        eps: of a norm.
        has_bias: whether the layer adds one.
    """

    weight_shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 0
    eps: float = 1e-5
    has_bias: bool = True

    @classmethod
    def of(cls, layer: nn.Module) -> "LayerSpec":
        """Describe a live Linear, Conv2d, GroupNorm or LayerNorm.

        Raises:
            TypeError: the layer is of another kind, a convolution in groups, or a norm without
                weights.
        """
        has_bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, nn.Linear):
            return cls((layer.out_features, layer.in_features), has_bias=has_bias)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
            padding = layer.padding if isinstance(layer.padding, str) else _pair(layer.padding)
            geometry = (_pair(layer.stride), padding, _pair(layer.dilation))
            return cls(tuple(layer.weight.shape), *geometry, has_bias=has_bias)
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm) and layer.weight is not None:
            groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else 0
            shape = tuple(layer.weight.shape)
            return cls(shape, groups=groups, eps=layer.eps, has_bias=has_bias)
        raise TypeError(f"adapters sit on Linear, ungrouped Conv2d and norms, not on {layer}")

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution."""
        return len(self.weight_shape) == 4

    @property
    def is_norm(self) -> bool:
        """Whether the layer is a norm."""
        return len(self.weight_shape) == 1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Run the layer's own operation on `x` with another weight."""
        if self.groups:
            return nn.functional.group_norm(x, self.groups, weight, bias, self.eps)
        if self.is_norm:
            return nn.functional.layer_norm(x, self.weight_shape, weight, bias, self.eps)
        if not self.is_conv:
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)


class Adapter(nn.Module, ABC):
    """A change of one frozen layer; its parameters are fp32 masters.

    A type implements `shapes`, `delta` and `rank_of`, and `initialise` if it can be trained. It may
    add `branch`, a cheaper way to the same output.

    Args:
        layer: the layer it will sit on.
        rank: size of the bottleneck, at least 1; 1 for types without one.
        alpha: the change is scaled by alpha / rank.
        like: parameter name -> shape in the file that it will be filled from; empty for a new one.

    Raises:
        UserError: the type does not go on such a layer.
    """

    file_names: ClassVar[Mapping[str, str]]
    """Parameter name -> the tensor name that other tools give it (LyCORIS spelling)."""
    from_zero: ClassVar[tuple[str, ...]] = ()
    """Parameters that start from zero; LoRA+ lets them learn faster than the others."""
    from_weight: ClassVar[tuple[str, ...]] = ()
    """Parameters that start as parts of the frozen weight, which weight decay must not shrink."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Names of the options of a run that it knows, besides those that every type knows."""
    is_trainable: ClassVar[bool] = True
    """Whether it can be trained here; other types are read, merged and drawn with."""
    has_rank: ClassVar[bool] = True
    """Whether it has a bottleneck at all."""
    needs_weight: ClassVar[bool] = False
    """Whether the change depends on the frozen weight, so that only a base gives it."""

    def __init__(
        self,
        layer: LayerSpec,
        rank: int,
        alpha: float,
        like: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.rank = rank
        self.alpha = alpha
        self.rank_mask: Tensor | None = None
        """(R,) factors of rank dropout while training; None keeps every rank."""
        self.input_dropout = 0.0
        """Share of the inputs of `branch` that are switched off while training."""
        for name, shape in self.shapes(like or {}).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float32)))

    @property
    def scale(self) -> float:
        """Factor of the change: alpha / rank. It belongs to the file; strength is the user's."""
        return self.alpha / self.rank

    @abstractmethod
    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """Parameter name -> shape, for `self.layer` and `self.rank`.

        Args:
            like: shapes in a file, which decide where the type has several forms; empty for a new
                adapter.
        """

    def initialise(self, init: str, generator: torch.Generator, weight: Tensor) -> None:
        """Set the start values so that the layer's output is unchanged.

        Args:
            init: "gaussian" or "kaiming".
            generator: source of the random numbers.
            weight: the frozen weight, for types that start from its norms or factors.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be trained")

    @abstractmethod
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change of the weight, scale included: fp32, of the layer's weight shape.

        Args:
            weight: the frozen weight in fp32; may lack unless `needs_weight`.
        """

    def row_energies(self, weight: Tensor) -> Tensor | None:  # noqa: ARG002
        """Squared length of each row of the changed weight, shape (O,).

        Args:
            weight: the frozen weight, in any number format.

        Returns:
            None where nothing is cheaper than to form the changed weight.
        """
        return None

    def bias_delta(self) -> Tensor | None:
        """The change of the bias in fp32, or None where it stays."""
        return None

    @classmethod
    def is_complete(cls, names: Set[str]) -> bool:
        """Whether tensors of these parameter names make up one adapter of this type."""
        return set(names) == set(cls.file_names)

    @classmethod
    def is_ranked(cls, names: Set[str]) -> bool:  # noqa: ARG003
        """Whether tensors of these parameter names have a bottleneck between them."""
        return cls.has_rank

    @classmethod
    @abstractmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """Read the rank off the shapes of a file's tensors (parameter name -> tensor).

        Returns:
            The rank; 1 for types without one; 0 where the tensors cannot be of this type.
        """

    @property
    def has_branch(self) -> bool:
        """Whether `branch` gives its output; otherwise the whole changed weight does."""
        return False

    def branch(self, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
        """The change of the output; asked for where `has_branch`.

        Args:
            x: the layer's input.
            y: the layer's own output for it.
            layer: the frozen layer.
        """
        raise NotImplementedError(f"{type(self).__name__} has no branch")

    def thin(self) -> tuple[Tensor, Tensor] | None:
        """`branch` on a Linear as two thin matrices in fp32: down (R, I) and up (O, R).

        Scale and rank dropout are in `up`. None where the change is not such a product.
        """
        return None

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
        adapter = cls(layer, rank, alpha, {name: tuple(t.shape) for name, t in tensors.items()})
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
            given, wanted = tuple(tensors[name].shape), tuple(parameter.shape)
            # A 1x1 convolution and a Linear hold the same matrix.
            if given != wanted and _without_ones(given) != _without_ones(wanted):
                raise UserError(
                    f"'{self.file_names[name]}' has shape {given}, the layer needs {wanted}"
                )
            parameter.copy_(tensors[name].reshape(wanted))

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the parameters on the CPU (parameter name -> tensor), as files hold them."""
        return {name: p.detach().cpu().clone() for name, p in self.named_parameters()}

    @property
    def file_alpha(self) -> float:
        """The alpha that belongs to `tensors`."""
        return self.alpha


def refuse_norms(layer: LayerSpec) -> None:
    """Refuse a norm, which has no matrix to factor.

    Raises:
        UserError: the layer is a norm.
    """
    if layer.is_norm:
        raise UserError("the layer is a norm, which has no matrix to change")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A kernel's shape without its edges, where those are 1."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])

"""DoRA: lengths and directions of a weight change apart (arXiv:2402.09353), over any other type.

V is the frozen weight with the other type's change in it. Its rows get lengths of their own:
W' = V m / (|V| + eps), with eps as in LyCORIS; PEFT has none, which differs by 1e-7 / |V|. The
gradient goes through |V| as well: PEFT, for its memory, takes |V| for a constant.

Shape suffixes: O output channels, I input channels, K kernel edge.
"""

from collections.abc import Mapping, Set
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scumble.adapters.base import Adapter

EPS = torch.finfo(torch.float32).eps
TINY = 1e-24
"""Squared length below which a row counts as zero: the root's gradient would be infinite there."""


class Decomposed(Adapter):
    """Another type's change, with `magnitude` as the length of each row of the changed weight.

    Rows run along the outputs: `magnitude` is (O, 1) or (O, 1, 1, 1). Older files have columns, one
    for each input: (1, I) or (1, I, 1, 1). Such are read, merged and drawn with.
    """

    magnitude: Tensor
    inner: ClassVar[type[Adapter]]
    """The other type, which the class inherits from as well. Its `branch` may not go through
    `self.delta`, which is the one below."""
    needs_weight: ClassVar[bool] = True

    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """The other type's, and `magnitude` along the outputs unless the file says otherwise."""
        own = self.inner.shapes(self, like)
        outputs, inputs, *edges = self.layer.weight_shape
        rows = like.get("magnitude", (outputs, 1))[:2] == (outputs, 1)
        return {**own, "magnitude": (*((outputs, 1) if rows else (1, inputs)), *[1] * len(edges))}

    @classmethod
    def is_complete(cls, names: Set[str]) -> bool:
        """`magnitude`, and the rest makes up the other type."""
        return "magnitude" in names and cls.inner.is_complete(names - {"magnitude"})

    @torch.no_grad()
    def initialise(self, init: str, generator: torch.Generator, weight: Tensor) -> None:
        """Start the other type, then take the lengths as they are: the gain is exactly 1."""
        self.inner.initialise(self, init, generator, weight)
        self.magnitude.copy_(self._lengths(weight))

    @property
    def _has_rows(self) -> bool:
        return self.magnitude.shape[:2] == (self.layer.weight_shape[0], 1)

    def _lengths(self, weight: Tensor) -> Tensor:
        """Length of each row or column of the changed weight, in the shape of `magnitude`."""
        energies = self.row_energies(weight) if self._has_rows else None
        if energies is None:
            changed = weight + self.inner.delta(self, weight)
            rows = changed if self._has_rows else changed.transpose(0, 1)
            energies = rows.flatten(1).square().sum(1)
        return energies.clamp(min=TINY).sqrt().view(self.magnitude.shape) + EPS

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """W' - W: fp32, of the weight's shape."""
        assert weight is not None
        gain = self.magnitude / self._lengths(weight)
        return (gain - 1) * weight + gain * self.inner.delta(self, weight)

    @property
    def has_branch(self) -> bool:
        """Where lengths belong to outputs and the other type has one."""
        return self._has_rows and super().has_branch

    def branch(self, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
        """The layer's own output without its bias, and the other type's, each times its gain."""
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        ones = [1] * len(self.layer.weight_shape[2:])
        gain = (self.magnitude / self._lengths(layer.weight)).view(-1, *ones)
        unbiased = y if layer.bias is None else y - layer.bias.to(y.dtype).view(-1, *ones)
        change = self.inner.branch(self, x, y, layer)
        # Subtracted before it is rounded: near 1, half precision has no room for small gains.
        return (gain - 1).to(y.dtype) * unbiased + gain.to(y.dtype) * change

    def thin(self) -> tuple[Tensor, Tensor] | None:
        """None: the gain is on the whole output."""
        return None


def decomposed(inner: type[Adapter], *, is_trainable: bool = True) -> type[Adapter]:
    """Make the DoRA of an adapter type.

    Args:
        inner: the type that changes directions.
        is_trainable: whether it is offered for training; it is read either way.
    """
    own: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": f"{inner.__name__} with lengths of its own.",
        "inner": inner,
        "file_names": {**inner.file_names, "magnitude": "dora_scale"},
        "from_weight": (*inner.from_weight, "magnitude"),
        "is_trainable": is_trainable,
    }
    return type(f"Decomposed{inner.__name__}", (Decomposed, inner), own)

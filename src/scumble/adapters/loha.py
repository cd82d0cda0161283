"""LoHa: the change of a weight is the entrywise product of two thin products (arXiv:2108.06098).

Shape suffixes: O output channels, I input channels, R rank, K kernel edge.
"""

import math
from collections.abc import Mapping, Set
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scumble.adapters.base import Adapter, refuse_norms
from scumble.adapters.tucker import rebuild


class LoHa(Adapter):
    """delta W = (alpha / rank) (w1_a w1_b) * (w2_a w2_b), whose rank goes up to rank squared.

    On a convolution, files hold the kernel in `w1_b` and `w2_b` (R, I K K), or apart in `t1` and
    `t2` (R, R, K, K); the outer matrices of the second form lie the other way round, (R, O).
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    file_names: ClassVar[Mapping[str, str]] = {
        "w1_a": "hada_w1_a",
        "w1_b": "hada_w1_b",
        "w2_a": "hada_w2_a",
        "w2_b": "hada_w2_b",
        "t1": "hada_t1",
        "t2": "hada_t2",
    }
    from_zero: ClassVar[tuple[str, ...]] = ("w2_a",)

    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """Two pairs; with `t1` and `t2` in the file, two triples."""
        refuse_norms(self.layer)
        out_channels, in_channels, *edges = self.layer.weight_shape
        if "t1" in like:
            outer, inner = (self.rank, out_channels), (self.rank, in_channels)
            core = (self.rank, self.rank, *edges)
            return {"w1_a": outer, "w1_b": inner, "w2_a": outer, "w2_b": inner} | {
                "t1": core,
                "t2": core,
            }
        outer, inner = (out_channels, self.rank), (self.rank, in_channels * math.prod(edges))
        return {"w1_a": outer, "w1_b": inner, "w2_a": outer, "w2_b": inner}

    @classmethod
    def is_complete(cls, names: Set[str]) -> bool:
        """Both pairs; both cores or none."""
        pairs = set(names) - {"t1", "t2"}
        return pairs == {"w1_a", "w1_b", "w2_a", "w2_b"} and ("t1" in names) == ("t2" in names)

    @torch.no_grad()
    def initialise(self, init: str, generator: torch.Generator, weight: Tensor) -> None:  # noqa: ARG002
        """Draw three matrices as LyCORIS does, zero the fourth."""
        for name, std in (("w1_a", 0.1), ("w1_b", 1.0), ("w2_b", 1.0)):
            parameter = self.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        self.w2_a.zero_()

    def delta(self, weight: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The change of the weight: fp32, of the layer's weight shape."""
        return self._multiplied()

    def _multiplied(self) -> Tensor:
        t1, t2 = getattr(self, "t1", None), getattr(self, "t2", None)
        parts = (self.w1_a, self.w1_b, t1, self.w2_a, self.w2_b, t2)
        # Else both products, each as large as the weight, would be kept for the way back.
        change: Tensor = checkpoint(_multiply, *parts, use_reentrant=False)
        return change.reshape(self.layer.weight_shape) * self.scale

    @property
    def has_branch(self) -> bool:
        """Always: beside a half-precision weight, small changes would be lost inside it."""
        return True

    def branch(self, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:  # noqa: ARG002
        """The change of the output, by the whole change of the weight in the dtype of `x`."""
        return self.layer.apply(x, self._multiplied().to(x.dtype))

    @classmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """The rank is the first dimension of `w1_b`."""
        inner = tensors["w1_b"]
        return int(inner.shape[0]) if inner.ndim == 2 else 0


def _multiply(
    w1_a: Tensor, w1_b: Tensor, t1: Tensor | None, w2_a: Tensor, w2_b: Tensor, t2: Tensor | None
) -> Tensor:
    return rebuild(w1_a, w1_b, t1) * rebuild(w2_a, w2_b, t2)

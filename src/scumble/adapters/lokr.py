"""LoKr: the change of a weight is a Kronecker product (LyCORIS, arXiv:2309.14859).

Shape suffixes: O = L P output channels, I = M N input channels, R rank, K kernel edge.
"""

import math
from collections.abc import Mapping, Set
from typing import ClassVar

import torch
from torch import Tensor, nn

from scumble.adapters.base import Adapter, LayerSpec, refuse_norms
from scumble.adapters.tucker import rebuild
from scumble.errors import UserError


class LoKr(Adapter):
    """delta W = scale w1 (x) w2, with `w1` (L, M) small and `w2` (P, N) or (P, N, K, K) large.

    Each of the two is held whole, or as a thin product: `w1_a` (L, R) and `w1_b` (R, M), `w2_a`
    (P, R) and `w2_b` (R, N K K). Files may hold the kernel apart in `t2` (R, R, K, K), beside which
    `w2_a` is (R, P). A new one has a whole `w1`, and a whole `w2` where half its longer edge is at
    most the rank: ask for rank 10000 to have it whole everywhere.

    Args:
        layer: the layer it will sit on.
        rank: of the thin product.
        alpha: the scale is alpha / rank, or 1 where both are whole, as in LyCORIS.
        like: as of every type.
        decompose_factor: the longest edge of `w1`; -1 takes the most even division there is.
    """

    file_names: ClassVar[Mapping[str, str]] = {
        "w1": "lokr_w1",
        "w1_a": "lokr_w1_a",
        "w1_b": "lokr_w1_b",
        "w2": "lokr_w2",
        "w2_a": "lokr_w2_a",
        "w2_b": "lokr_w2_b",
        "t2": "lokr_t2",
    }
    from_zero: ClassVar[tuple[str, ...]] = ("w2", "w2_b")
    options: ClassVar[frozenset[str]] = frozenset({"decompose_factor"})

    def __init__(
        self,
        layer: LayerSpec,
        rank: int,
        alpha: float,
        like: Mapping[str, tuple[int, ...]] | None = None,
        *,
        decompose_factor: int = -1,
    ) -> None:
        self._factor = decompose_factor
        super().__init__(layer, rank, alpha, like)
        if not self._is_thin:
            self.rank = 1  # a file of two whole factors tells no other

    @property
    def _is_thin(self) -> bool:
        return hasattr(self, "w1_b") or hasattr(self, "w2_b")

    @classmethod
    def is_ranked(cls, names: Set[str]) -> bool:
        """Whether one of the factors is a thin product."""
        return not names.isdisjoint({"w1_b", "w2_b"})

    @property
    def scale(self) -> float:
        """Factor of the change: alpha / rank; 1 where both factors are whole."""
        return self.alpha / self.rank if self._is_thin else 1.0

    def shapes(self, like: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """Of two to five parameters, as the rank or the file decides."""
        refuse_norms(self.layer)
        outputs, inputs, *edges = self.layer.weight_shape
        (L, P), (M, N) = divide(outputs, self._factor), divide(inputs, self._factor)
        if like:
            L, M = like["w1"] if "w1" in like else (like["w1_a"][0], like["w1_b"][1])
            P, N = outputs // L, inputs // M
        if (outputs, inputs) != (L * P, M * N):
            raise UserError(f"'lokr_w1' is {L} x {M}, which does not divide {outputs} x {inputs}")
        shapes: dict[str, tuple[int, ...]] = {"w1": (L, M)}
        if "w1_b" in like:
            shapes = {"w1_a": (L, like["w1_b"][0]), "w1_b": (like["w1_b"][0], M)}
        if "t2" in like:
            core = (self.rank, self.rank, *edges)
            return shapes | {"w2_a": (self.rank, P), "w2_b": (self.rank, N), "t2": core}
        if "w2" in like or (not like and 2 * self.rank >= max(P, N)):
            return shapes | {"w2": (P, N, *edges)}
        return shapes | {"w2_a": (P, self.rank), "w2_b": (self.rank, N * math.prod(edges))}

    @classmethod
    def is_complete(cls, names: Set[str]) -> bool:
        """Each factor in one of its forms; `t2` only between `w2_a` and `w2_b`."""
        first = ({"w1"}, {"w1_a", "w1_b"})
        second = ({"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"})
        return any(set(names) == one | two for one in first for two in second)

    @torch.no_grad()
    def initialise(self, init: str, generator: torch.Generator, weight: Tensor) -> None:  # noqa: ARG002
        """Draw uniformly within 1 / sqrt(inputs) as LyCORIS does, but for the one that is zero."""
        for name, parameter in self.named_parameters():
            bound = 0 if name in self.from_zero else 1 / math.sqrt(parameter[0].numel())
            draws = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(draws)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """The scaled `w1` (L, M), and `w2` (P, N) or (P, N, K, K)."""
        parts = dict(self.named_parameters())
        w1_LM = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
        w1_LM = w1_LM if self.scale == 1 else w1_LM * self.scale
        if "w2" in parts:
            return w1_LM, parts["w2"]
        w2 = rebuild(parts["w2_a"], parts["w2_b"], parts.get("t2"))
        outputs, inputs, *edges = self.layer.weight_shape
        return w1_LM, w2.reshape(outputs // w1_LM.shape[0], inputs // w1_LM.shape[1], *edges)

    def delta(self, weight: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The change of the weight: fp32, of the layer's weight shape."""
        w1_LM, w2 = self._factors()
        return torch.kron(w1_LM[..., None, None] if self.layer.is_conv else w1_LM, w2.contiguous())

    @property
    def has_branch(self) -> bool:
        """Always."""
        return True

    def branch(self, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:  # noqa: ARG002
        """The change of the output, `w2` on each of M groups of inputs, then `w1` on the groups."""
        w1_LM, w2 = (factor.to(x.dtype) for factor in self._factors())
        M = w1_LM.shape[1]
        if not self.layer.is_conv:
            y_MP = self.layer.apply(x.unflatten(-1, (M, -1)), w2)
            return (w1_LM @ y_MP).flatten(-2)
        y_MP = self.layer.apply(x.unflatten(1, (M, -1)).flatten(0, 1), w2).unflatten(0, (-1, M))
        return torch.einsum("lm,bm...->bl...", w1_LM, y_MP).flatten(1, 2)

    @classmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """The first dimension of `w2_b`, else of `w1_b`; 1 where both factors are whole."""
        for name, tensor in tensors.items():
            if tensor.ndim not in ((2,) if name.startswith("w1") else (2, 4)) or not tensor.numel():
                return 0
        thin = next((tensors[name] for name in ("w2_b", "w1_b") if name in tensors), None)
        return 1 if thin is None else int(thin.shape[0])


def divide(length: int, factor: int) -> tuple[int, int]:
    """Divide a dimension into two edges as LyCORIS does, the shorter one first.

    Args:
        length: what they multiply to.
        factor: the first edge where it divides the length, else its upper bound; -1 sets none.
    """
    if factor > 0 and length % factor == 0:
        return min(factor, length // factor), max(factor, length // factor)
    most = min(math.isqrt(length), factor if factor > 0 else length)
    short = next(edge for edge in range(most, 0, -1) if length % edge == 0)
    return short, length // short

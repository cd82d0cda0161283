"""How several changes of one layer become one: added up, or thinned out first (TIES, DARE)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from scumble.adapters.sparsify import check_density, dare, ties
from scumble.errors import UserError
from scumble.formats import ModuleWeights
from scumble.randomness import generator

Method = Literal["sum", "ties", "dare", "dare_ties"]


class Part(NamedTuple):
    """What one source changes of a layer.

    Args:
        number: of the source, from 0.
        strength: of its change.
        entry: from its file.
    """

    number: int
    strength: float
    entry: ModuleWeights


@dataclass(frozen=True)
class Recipe:
    """How to combine.

    Args:
        method: "sum" adds; the others work on dense changes.
        density: share of each change to keep; "sum" keeps all.
        seed: of what "dare" drops.
    """

    method: Method = "sum"
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise UserError(f"there is no way to merge called '{self.method}'", f"Known: {known}.")
        check_density(self.density)

    def combine(self, name: str, parts: Sequence[Part], deltas: Sequence[Tensor]) -> Tensor:
        """Make one change of several.

        Args:
            name: of the tensor that is changed; draws are named by it.
            parts: whose changes they are.
            deltas: of one shape, at strength 1.
        """
        strengths = [part.strength for part in parts]
        if self.method == "ties":
            return ties(deltas, strengths, self.density)
        if self.method in ("dare", "dare_ties"):
            deltas = [
                dare(delta, self.density, generator(self.seed, f"merge {name}", part.number))
                for part, delta in zip(parts, deltas, strict=True)
            ]
        if self.method == "dare_ties":
            return ties(deltas, strengths, 1)
        total = strengths[0] * deltas[0]
        for strength, delta in zip(strengths[1:], deltas[1:], strict=True):
            total = total + strength * delta
        return total

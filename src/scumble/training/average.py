"""A running average of what is learnt (EMA), to save and draw with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Follows parameters at a distance: average <- decay x average + (1 - decay) x parameter.

    In the first steps the decay is lower, (1 + n) / (10 + n) at step n, so that the start values
    are soon forgotten.

    Args:
        parameters: name -> parameter.
        decay: None keeps no average; everything below then does nothing.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None) -> None:
        self.parameters = dict(parameters) if decay is not None else {}
        self.decay = decay or 0.0
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int, moved: Tensor) -> None:
        """Follow a step, counted from 0 in its phase, where it moved the parameters (0 or 1)."""
        share = (1 - min(self.decay, (1 + step) / (10 + step))) * moved
        if self.averages:
            here = list(self.averages.values())
            there: list[Tensor] = list(self.parameters.values())
            distances = torch._foreach_sub(there, here)
            torch._foreach_mul_(distances, share)
            torch._foreach_add_(here, distances)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the averages in the model, for as long as the context lasts."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.settle()
        try:
            yield
        finally:
            copy_into(self.parameters, kept)

    def settle(self) -> None:
        """Put the averages into the model for good."""
        copy_into(self.parameters, self.averages)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return {name: average.cpu().clone() for name, average in self.averages.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved averages; parameters that have none begin from their values of now."""
        for name, average in self.averages.items():
            average.copy_(state.get(name, self.parameters[name]))


@torch.no_grad()
def copy_into(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of the same names; the other parameters stay."""
    for name, value in values.items():
        parameters[name].copy_(value)

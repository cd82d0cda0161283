"""Phase: what trains, on which examples, with which loss. Methods are lists of phases."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scumble.adapters.inject import AdapterSet
from scumble.data.buckets import BatchPlan, StepPlan
from scumble.randomness import generator


class SampleLoss(Protocol):
    """The loss of each sample of a step."""

    def __call__(self, plan: StepPlan, positions: range) -> Tensor:
        """The weighted loss of the samples at these positions of the step's batch, shape (B,)."""

    def describe(self, plan: StepPlan, position: int) -> str:
        """Name one sample and its noise level, for a message about it."""


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Args:
        name: for the progress bar and the log.
        max_steps: optimizer steps.
        plan: which examples each step sees.
        adapters: what trains: component name -> the adapters on it. Nothing else moves.
        loss: the loss of each sample of a step.
        rank_dropout: share of ranks switched off in each step.
        seed: of the rank dropout's draws.
    """

    name: str
    max_steps: int
    plan: BatchPlan
    adapters: dict[str, AdapterSet]
    loss: SampleLoss
    rank_dropout: float = 0.0
    seed: int = 0

    def parameters(self) -> list[torch.nn.Parameter]:
        """Every parameter that trains."""
        return [p for adapters in self.adapters.values() for p in adapters.parameters()]

    def enter_step(self, step: int) -> None:
        """Set what is drawn once for the whole step."""
        for number, adapters in enumerate(self.adapters.values()):
            draw = generator(self.seed, "rank dropout", step, number)
            adapters.drop_ranks(self.rank_dropout, draw)

    def at_rest(self) -> None:
        """Put adapters into the state in which they are saved and drawn with."""
        for adapters in self.adapters.values():
            adapters.drop_ranks(0.0, generator(self.seed, "at rest"))

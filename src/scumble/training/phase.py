"""Phase: what trains, on which examples, with which loss. Methods are lists of phases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from scumble.data.buckets import BatchPlan, StepPlan
from scumble.randomness import generator
from scumble.training.denoising import Denoising, Draws, Samples
from scumble.training.rates import ParameterGroup
from scumble.training.taught import Taught


class SampleLoss(Protocol):
    """The loss of each sample of a step: what the host draws, then what the device computes."""

    @property
    def denoising(self) -> Denoising:
        """Which model is asked, and how."""

    @property
    def draws(self) -> Draws:
        """Everything random about its samples."""

    def samples(self, plan: StepPlan, positions: range) -> Samples:
        """The samples at these positions of the step's batch, on the device."""

    def __call__(self, samples: Samples) -> Tensor:
        """The weighted loss of each sample, shape (B,). It reads nothing back to the host."""

    def describe(self, plan: StepPlan, position: int) -> str:
        """Name one sample and its noise level, for a message about it."""


def phase_name(phases: Sequence["Phase"], done: int) -> str:
    """The phase that the last of the steps done belongs to."""
    return next(p.name for p in phases if done <= p.first_step + p.max_steps)


@dataclass(frozen=True)
class Dropouts:
    """What is switched off while training, and the seed of the draws.

    Args:
        ranks: share of the ranks of each layer, drawn once per step.
        inputs: share of an adapter's inputs, drawn anew in each forward pass.
        seed: of the run.
        process: number of this one, which has other samples and draws for them otherwise.
    """

    ranks: float = 0.0
    inputs: float = 0.0
    seed: int = 0
    process: int = 0

    @property
    def any(self) -> bool:
        """Whether anything is switched off."""
        return bool(self.ranks or self.inputs)


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Args:
        name: for the log and messages.
        first_step: steps of the run that other phases take before this one; every draw is named by
            the step of the run, so that no two phases share one.
        max_steps: optimizer steps.
        plan: which examples each step of the run sees.
        taught: what trains. Nothing else moves.
        groups: the parameters of `taught`, with their rates.
        losses: name -> loss of each sample; they are added up.
        dropouts: of the adapters.
    """

    name: str
    first_step: int
    max_steps: int
    plan: BatchPlan
    taught: Taught
    groups: Sequence[ParameterGroup]
    losses: Mapping[str, SampleLoss]
    dropouts: Dropouts = Dropouts()

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that trains."""
        return [p for group in self.groups for p in group.parameters.values()]

    def begin(self, phases: Sequence["Phase"]) -> None:
        """Let this phase's parameters learn, and none of the others.

        Adapters whose turn comes later do nothing yet and are left out of the computation.
        """
        for phase in sorted(phases, key=lambda phase: -phase.first_step):
            for parameter in phase.parameters():
                parameter.requires_grad_(False)
            strength = 0.0 if phase.first_step > self.first_step else 1.0
            for adapters in phase.taught.adapters.values():
                adapters.set_strength(strength)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def enter_step(self, step: int) -> None:
        """Set what is drawn once for the whole step of the run."""
        for number, adapters in enumerate(self.taught.adapters.values()):
            draw = generator(self.dropouts.seed, "rank dropout", step, number)
            adapters.drop_ranks(self.dropouts.ranks, draw)
            adapters.drop_inputs(self.dropouts.inputs)
        if self.dropouts.inputs:
            place = (step, self.dropouts.process) if self.dropouts.process else (step,)
            draw = generator(self.dropouts.seed, "input dropout", *place)
            torch.manual_seed(draw.initial_seed())

    def at_rest(self) -> None:
        """Put adapters into the state in which they are saved and drawn with."""
        for adapters in self.taught.adapters.values():
            adapters.drop_ranks(0.0, generator(self.dropouts.seed, "at rest"))
            adapters.drop_inputs(0.0)

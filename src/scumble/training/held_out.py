"""The loss on held-out pictures, always at the same noise, and what follows from it.

Shape suffixes: B batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from scumble.diffusion.objectives import DiscreteObjective
from scumble.randomness import generator
from scumble.training.denoising import Denoising, Samples
from scumble.training.precompute import EncodedData

NOISE_LEVELS = 8
"""At so many noise levels, evenly spread, each picture is measured."""


@dataclass(frozen=True)
class HeldOut:
    """Measures the model on pictures that it does not learn.

    Noise and timesteps are the same each time, and the timesteps spread evenly: what is left to
    vary between two measurements is the model.

    Args:
        denoising: how to ask and compare.
        data: the held-out pictures.
        seed: of the noise.
    """

    denoising: Denoising
    data: EncodedData
    seed: int

    @torch.no_grad()
    def loss(self) -> float:
        """Mean over all held-out pictures and noise levels."""
        processes, count = self.denoising.runtime.processes, len(self.data.examples)
        own = range(processes.rank, count, processes.count)
        parts = processes.together(lambda: [self._loss_of(index) for index in own])
        # In the pictures' order, so that the sum is the same however many share the work.
        losses = [parts[index % len(parts)][index // len(parts)] for index in range(count)]
        return sum(losses) / count

    def _loss_of(self, index: int) -> float:
        device = self.denoising.runtime.device
        draw = generator(self.seed, "held-out noise", index)
        view = self.data.latents(index, draw)
        latents_CHW = view.posterior.mean.float()
        noise = torch.randn((NOISE_LEVELS, *latents_CHW.shape), generator=draw)
        timesteps = stratified(self.denoising.objective, draw)
        total = 0.0
        for level in range(NOISE_LEVELS):
            # One at a time: measuring must not need more memory than training.
            samples = Samples(
                latents_CHW[None],
                noise[level : level + 1].to(device),
                timesteps[level : level + 1].to(device),
                self.data.examples[index].captions[:1],
                mask=None if view.mask is None else view.mask[None],
            )
            total += float(self.denoising.loss(samples).sum())
        return total / NOISE_LEVELS


def stratified(objective: DiscreteObjective, draw: torch.Generator) -> torch.Tensor:
    """One timestep from each of `NOISE_LEVELS` equal parts of the schedule, shape (B,)."""
    count = objective.schedule.num_timesteps
    places = torch.arange(NOISE_LEVELS) + torch.rand(NOISE_LEVELS, generator=draw)
    return (places / NOISE_LEVELS * count).long().clamp(max=count - 1)


@dataclass
class Choice:
    """Which measurement was the best so far, and how long ago that was.

    Args:
        patience: measurements in a row without a better one that end the training; None never
            does.
        best_loss: infinite before the first.
        best_step: of the run.
        waited: measurements since the best.
    """

    patience: int | None
    best_loss: float = float("inf")
    best_step: int = 0
    waited: int = 0

    def add(self, step: int, loss: float) -> bool:
        """Note a measurement; whether it is the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.waited = loss, step, 0
            return True
        self.waited += 1
        return False

    @property
    def is_enough(self) -> bool:
        """Whether more training is not worth while."""
        return self.patience is not None and self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"best_loss": self.best_loss, "best_step": self.best_step, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best_loss = float(state["best_loss"])
        self.best_step, self.waited = int(state["best_step"]), int(state["waited"])

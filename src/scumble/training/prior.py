"""Prior preservation: what keeps the class of a subject as the base knew it (arXiv:2208.12242).

Shape suffixes: B batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.data.buckets import StepPlan
from scumble.randomness import generator
from scumble.training.denoising import Choice, Denoising, Draws, Samples
from scumble.training.taught import Taught


def any_of(count: int, seed: int) -> Choice:
    """Choose among `count` class pictures, each equally likely, anew for each sample."""

    def choose(plan: StepPlan, position: int) -> int:
        draw = generator(seed, "class example", plan.index, position)
        return int(torch.randint(count, (), generator=draw))

    return choose


@dataclass(frozen=True)
class BasePriorLoss:
    """Hold the answers about the class to those of the frozen base: no class pictures are needed.

    The model is asked about the subject's own pictures at noise of their own, told that they show
    the class; the base's answer to the same question, with the adapters off, is the target. It
    knows no noise that could not be foretold, so that its gradient varies less than with pictures.

    Args:
        denoising: how to ask and compare.
        draws: of the samples, which must be others than the subject's own.
        taught: what is switched off for the base's answer.
        class_prompt: names the class.
        weight: factor of the whole.
    """

    denoising: Denoising
    draws: Draws
    taught: Taught
    class_prompt: str
    weight: float

    def samples(self, plan: StepPlan, positions: range) -> Samples:
        """The samples at `positions` of the step's batch, taken for the class."""
        captions = [self.class_prompt] * len(positions)
        drawn = self.draws.samples(plan, positions)
        return self.denoising.told(drawn._replace(captions=captions, mask=None))

    def __call__(self, samples: Samples) -> Tensor:
        """The weighted loss of each sample, fp32, shape (B,)."""
        with torch.no_grad(), self.taught.adapters_off():
            target_BCHW = self.denoising.predict(samples)
        prediction_BCHW = self.denoising.predict(samples)
        return self.weight * self.denoising.compare(samples, prediction_BCHW, target_BCHW)

    def describe(self, plan: StepPlan, position: int) -> str:
        """Name one sample and its noise level, for a message about it."""
        timesteps_B = self.draws.timesteps(plan, range(position, position + 1))
        return f"'{self.class_prompt}' at timestep {int(timesteps_B)}"

"""The denoising loss of each sample, with every random draw named by step and position.

Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scumble.config import TrainConfig
from scumble.data.buckets import StepPlan
from scumble.data.captions import caption_for
from scumble.diffusion.objectives import DiscreteObjective
from scumble.diffusion.timesteps import TIMESTEP_SAMPLERS
from scumble.diffusion.weighting import masked_mean, min_snr_weights, offset_noise
from scumble.families import Components, Conditioning, Family
from scumble.randomness import generator
from scumble.training.precompute import EncodedData
from scumble.training.resident import to_device
from scumble.training.runtime import Runtime
from scumble.training.texts import Texts


class Samples(NamedTuple):
    """Pictures with their noise, on the device.

    Args:
        latents: clean, shape (B, C, H, W).
        noise: of the same shape.
        timesteps: how much of it, shape (B,).
        captions: what the denoiser is told.
        conditioning: the captions in encoded form; None where they are encoded in the step.
        mask: how much each place counts, shape (B, 1, H, W); None where all count alike.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: Sequence[str]
    conditioning: Conditioning | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Denoising:
    """Ask the denoiser about noisy latents, and compare its answer with what it should be.

    Args:
        config: how samples are weighted.
        family: how to ask.
        components: the loaded denoiser.
        objective: noise schedule and prediction target.
        texts: conditioning of captions.
        runtime: device and dtype.
    """

    config: TrainConfig
    family: Family
    components: Components
    objective: DiscreteObjective
    texts: Texts
    runtime: Runtime

    def on(self, components: Components) -> "Denoising":
        """The same questions, put to other components."""
        return replace(self, components=components, texts=self.texts.on(components))

    def told(self, samples: Samples) -> Samples:
        """The samples with their captions in encoded form, where those are ready."""
        if not self.texts.ready:
            return samples
        return samples._replace(conditioning=self.texts(samples.captions))

    def predict(self, samples: Samples) -> Tensor:
        """The denoiser's answer in fp32, shape (B, C, H, W)."""
        conditioning = samples.conditioning
        if conditioning is None:
            conditioning = self.texts(samples.captions)
        noisy_BCHW = self.objective.noised(samples.latents, samples.noise, samples.timesteps)
        prediction_BCHW = self.family.predict(
            self.components,
            noisy_BCHW.to(self.runtime.dtype),
            samples.timesteps,
            conditioning,
        )
        return prediction_BCHW.float()

    def target(self, samples: Samples) -> Tensor:
        """What the picture itself says the answer should be, shape (B, C, H, W)."""
        return self.objective.target(samples.latents, samples.noise, samples.timesteps)

    def compare(self, samples: Samples, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The weighted loss of each sample in fp32, shape (B,)."""
        error_BCHW = (prediction_BCHW - target_BCHW).square()
        if samples.mask is None:
            loss_B = error_BCHW.flatten(1).mean(1)
        else:
            loss_B = masked_mean(error_BCHW, samples.mask, self.config.unmasked_weight)
        if self.config.snr_gamma is None:
            return loss_B
        snr_B = self.objective.schedule.snr(samples.timesteps)
        return loss_B * min_snr_weights(snr_B, self.config.snr_gamma, self.objective.prediction)

    def loss(self, samples: Samples) -> Tensor:
        """The weighted loss of each sample against its own picture, shape (B,)."""
        return self.compare(samples, self.predict(samples), self.target(samples))


Choice = Callable[[StepPlan, int], int]
"""(step, position) -> index of the example there."""


def planned(plan: StepPlan, position: int) -> int:
    """The example that the plan has at a position."""
    return plan.examples[position]


@dataclass(frozen=True)
class Draws:
    """Everything random about a step's samples.

    A sample's draws depend on (seed, step, its position in the step's batch) alone: how the batch
    is cut into accumulated or parallel parts changes nothing.

    Args:
        config: loss settings and seed.
        objective: how many timesteps there are.
        data: encoded pictures and captions.
        device: where samples are wanted.
        choose: which example stands at a position.
        of: put before the purpose of each draw, so that two sets of samples share none.
    """

    config: TrainConfig
    objective: DiscreteObjective
    data: EncodedData
    device: torch.device
    choose: Choice = planned
    of: str = ""

    def samples(self, plan: StepPlan, positions: range) -> Samples:
        """Draw the samples at `positions` of the step's batch."""
        views = [
            self.data.latents(self.choose(plan, p), self.draw("crop and flip", plan, p))
            for p in positions
        ]
        latents = []
        for view, position in zip(views, positions, strict=True):
            mean_CHW, std_CHW = view.posterior.mean.float(), view.posterior.std.float()
            draw = self.draw("posterior", plan, position)
            noise_CHW = torch.randn(mean_CHW.shape, generator=draw)
            latents.append(mean_CHW + std_CHW * to_device(noise_CHW, self.device))
        masks = [view.mask for view in views if view.mask is not None]
        noise_BCHW = torch.stack([self._noise(plan, p, latents[0]) for p in positions])
        return Samples(
            torch.stack(latents),
            to_device(noise_BCHW, self.device),
            to_device(self.timesteps(plan, positions), self.device),
            [self._caption(plan, p) for p in positions],
            mask=torch.stack(masks) if masks else None,
        )

    def timesteps(self, plan: StepPlan, positions: range) -> Tensor:
        """The noise levels at `positions`, shape (B,)."""
        sample = TIMESTEP_SAMPLERS[self.config.timestep_sampling]
        count = self.objective.schedule.num_timesteps
        draws = (self.draw("timestep", plan, position) for position in positions)
        return torch.tensor([sample(count, draw) for draw in draws])

    def facts(self, plan: StepPlan, position: int) -> dict[str, Any]:
        """Which picture stands at a position, and what of it is shown, ready for JSON."""
        index = self.choose(plan, position)
        example = self.data.examples[index]
        crop = example.crops[self.data.view(index, self.draw("crop and flip", plan, position))]
        return {
            "id": example.id,
            "sha256": example.sha256,
            "bucket": [crop.bucket[1], crop.bucket[0]],
            "crop": crop.position,
            "flip": crop.flip,
        }

    def draw(self, purpose: str, plan: StepPlan, position: int) -> torch.Generator:
        """The generator of one draw of one sample."""
        return generator(self.config.seed, self.of + purpose, plan.index, position)

    def _noise(self, plan: StepPlan, position: int, like_CHW: Tensor) -> Tensor:
        draw = self.draw("noise", plan, position)
        noise_CHW = torch.randn(like_CHW.shape, generator=draw)
        return offset_noise(noise_CHW, self.config.noise_offset, draw)

    def _caption(self, plan: StepPlan, position: int) -> str:
        return caption_for(
            self.data.examples[self.choose(plan, position)].captions,
            self.draw("caption", plan, position),
            self.config.caption_dropout,
            shuffle=self.config.shuffle_caption,
            keep_tokens=self.config.keep_tokens,
        )


@dataclass(frozen=True)
class DenoisingLoss:
    """The loss of a step's samples against their own pictures.

    Args:
        denoising: how to ask and compare.
        draws: of the samples.
        weight: factor of the whole.
    """

    denoising: Denoising
    draws: Draws
    weight: float = 1.0

    def samples(self, plan: StepPlan, positions: range) -> Samples:
        """The samples at `positions` of the step's batch."""
        return self.denoising.told(self.draws.samples(plan, positions))

    def __call__(self, samples: Samples) -> Tensor:
        """The weighted loss of each sample, fp32, shape (B,)."""
        loss_B = self.denoising.loss(samples)
        return loss_B if self.weight == 1 else self.weight * loss_B

    def describe(self, plan: StepPlan, position: int) -> str:
        """Name one sample and its noise level, for a message about it."""
        example = self.draws.data.examples[self.draws.choose(plan, position)]
        timesteps_B = self.draws.timesteps(plan, range(position, position + 1))
        return f"{example.id} at timestep {int(timesteps_B)}"

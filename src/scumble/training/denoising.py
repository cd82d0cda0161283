"""The denoising loss of each sample, with every random draw named by step and position.

Shape suffixes: B batch, C channels, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.config import TrainConfig
from scumble.data.buckets import StepPlan
from scumble.data.captions import caption_for
from scumble.diffusion.objectives import DiscreteObjective
from scumble.diffusion.timesteps import TIMESTEP_SAMPLERS
from scumble.diffusion.weighting import min_snr_weights, offset_noise
from scumble.families import Components, Conditioning, Family
from scumble.randomness import generator
from scumble.training.precompute import EncodedData
from scumble.training.runtime import Runtime


@dataclass(frozen=True)
class DenoisingLoss:
    """Noise the latents of a step's samples, ask the denoiser, and compare.

    A sample's draws depend on (seed, step, its position in the step's batch) alone: how the batch
    is cut into accumulated or parallel parts changes nothing.

    Args:
        config: loss settings and seed.
        family: how to ask the denoiser.
        components: the loaded denoiser.
        objective: noise schedule and prediction target.
        data: encoded pictures and captions.
        runtime: device and dtype.
    """

    config: TrainConfig
    family: Family
    components: Components
    objective: DiscreteObjective
    data: EncodedData
    runtime: Runtime

    def __call__(self, plan: StepPlan, positions: range) -> Tensor:
        """The weighted loss of the samples at `positions` of the step's batch, fp32, shape (B,)."""
        device, dtype = self.runtime.device, self.runtime.dtype
        latents_BCHW = torch.stack([self._latents(plan, p) for p in positions]).to(device)
        noise_BCHW = torch.stack([self._noise(plan, p, latents_BCHW[0]) for p in positions])
        noise_BCHW = noise_BCHW.to(device)
        timesteps_B = self._timesteps(plan, positions).to(device)
        noisy_BCHW = self.objective.noised(latents_BCHW, noise_BCHW, timesteps_B)
        target_BCHW = self.objective.target(latents_BCHW, noise_BCHW, timesteps_B)
        prediction_BCHW = self.family.predict(
            self.components, noisy_BCHW.to(dtype), timesteps_B, self._conditioning(plan, positions)
        )
        loss_B = (prediction_BCHW.float() - target_BCHW).square().flatten(1).mean(1)
        if self.config.snr_gamma is None:
            return loss_B
        snr_B = self.objective.schedule.snr(timesteps_B)
        return loss_B * min_snr_weights(snr_B, self.config.snr_gamma, self.objective.prediction)

    def describe(self, plan: StepPlan, position: int) -> str:
        """Name one sample and its noise level, for a message about it."""
        example = self.data.examples[plan.examples[position]]
        timesteps_B = self._timesteps(plan, range(position, position + 1))
        return f"{example.id} at timestep {int(timesteps_B)}"

    def _timesteps(self, plan: StepPlan, positions: range) -> Tensor:
        sample = TIMESTEP_SAMPLERS[self.config.timestep_sampling]
        count = self.objective.schedule.num_timesteps
        draws = (self._draw("timestep", plan, position) for position in positions)
        return torch.tensor([sample(count, draw) for draw in draws])

    def _latents(self, plan: StepPlan, position: int) -> Tensor:
        posterior = self.data.posterior(
            plan.examples[position], self._draw("crop and flip", plan, position)
        )
        draw = self._draw("posterior", plan, position)
        mean_CHW = posterior.mean.float()
        return mean_CHW + posterior.std.float() * torch.randn(mean_CHW.shape, generator=draw)

    def _noise(self, plan: StepPlan, position: int, like_CHW: Tensor) -> Tensor:
        draw = self._draw("noise", plan, position)
        noise_CHW = torch.randn(like_CHW.shape, generator=draw)
        return offset_noise(noise_CHW, self.config.noise_offset, draw)

    def _conditioning(self, plan: StepPlan, positions: range) -> Conditioning:
        captions = [
            caption_for(
                self.data.examples[plan.examples[position]].captions,
                self._draw("caption", plan, position),
                self.config.caption_dropout,
            )
            for position in positions
        ]
        states = [self.data.text(caption) for caption in captions]
        return {
            name: torch.stack([state[name] for state in states]).to(
                self.runtime.device, self.runtime.dtype
            )
            for name in states[0]
        }

    def _draw(self, purpose: str, plan: StepPlan, position: int) -> torch.Generator:
        return generator(self.config.seed, purpose, plan.index, position)

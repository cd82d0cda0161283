"""The denoiser: a real UNet2DConditionModel at a tiny size, trained by v-prediction.

Zero terminal SNR (arXiv:2305.08891) lets the first sampling step begin from pure noise, as in
training: without it plain backgrounds never get their full colour.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .captions_tokenizer import MAX_TOKENS
from .latent_pools import Pool, draw
from .text_encoder import WIDTH, spoken
from .training_state import Progress, WeightAverage, load_if_any, save_atomically


@dataclass(frozen=True)
class DenoiserRecipe:
    """How long and how hard the denoiser is trained."""

    steps: int = 6_300
    batch: int = 32
    learning_rate: float = 1e-3
    text_rate: float = 0.0
    warmup_steps: int = 200
    decay_from: float = 0.55
    average_decay: float = 0.999
    empty_share: float = 0.1
    drop: float = 0.1
    high_noise_power: float = 0.6
    checkpoint_steps: int = 400
    score_steps: int = 1000
    seed: int = 3


def build_denoiser() -> UNet2DConditionModel:
    """An untrained tiny UNet; attention at every level, so that LoRA on it can repaint it all."""
    denoiser = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 96, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        # Diffusers' historical name: these are the numbers of heads.
        attention_head_dim=(1, 3, 4),
        norm_num_groups=16,
    )
    # On a CPU the fused attention's bfloat16 backward is the slowest part of a step.
    denoiser.set_attn_processor(AttnProcessor())
    return denoiser


def build_scheduler() -> DDIMScheduler:
    """The noise schedule that the pipeline ships with."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=True,
    )


def rate_factor(step: int, recipe: DenoiserRecipe) -> float:
    """Warm up, hold, then fall to zero in a straight line."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    share = step / recipe.steps
    return min(1.0, max((1 - share) / (1 - recipe.decay_from), 0.0))


def draw_timesteps(size: int, power: float, chance: torch.Generator) -> Tensor:
    """Stratified timesteps, more of them at high noise, where the prompt decides what is drawn."""
    even = (torch.arange(size) + torch.rand(size, generator=chance)) / size
    return (1000 * even**power).long().clamp(max=999)


def v_target(
    scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """Noisy latents and what the denoiser shall say of them."""
    return (
        scheduler.add_noise(latents, noise, steps),
        scheduler.get_velocity(latents, noise, steps),
    )


@dataclass
class DenoiserTraining:
    """Everything one training run holds; a checkpoint is this, without the data."""

    recipe: DenoiserRecipe
    denoiser: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    pools: dict[str, Pool]
    device: torch.device

    def __post_init__(self) -> None:
        self.denoiser.to(self.device).train()
        self.text_encoder.to(self.device).requires_grad_(self.recipe.text_rate > 0)
        self.scheduler = build_scheduler()
        rate = self.recipe.learning_rate
        groups = [{"params": list(self.denoiser.parameters()), "peak": rate}]
        if self.recipe.text_rate > 0:
            text = list(self.text_encoder.parameters())
            groups.append({"params": text, "peak": rate * self.recipe.text_rate})
        self.optimizer = torch.optim.AdamW(
            groups, rate, weight_decay=1e-4, betas=(0.9, 0.99), fused=True
        )
        self.average = WeightAverage(self.denoiser, self.recipe.average_decay)
        self.text_average = WeightAverage(self.text_encoder, self.recipe.average_decay)
        self.step = 0
        self.best = -1.0

    def embed(self, captions: list[str]) -> Tensor:
        """Hidden states of padded captions."""
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=MAX_TOKENS, truncation=True
        ).input_ids
        return self.text_encoder(input_ids=torch.tensor(tokens, device=self.device))[0]

    def take_step(self) -> float:
        """One optimizer step; its chance depends on the step number alone, so it can be redone."""
        recipe = self.recipe
        rng = random.Random(f"denoiser/{recipe.seed}/{self.step}")
        chance = torch.Generator().manual_seed(rng.randrange(2**62))
        latents, scenes = draw(self.pools, self.step / recipe.steps, recipe.batch, rng)
        captions = [
            "" if rng.random() < recipe.empty_share else spoken(scene, rng, recipe.drop)
            for scene in scenes
        ]
        noise = torch.randn(latents.shape, generator=chance)
        timesteps = draw_timesteps(recipe.batch, recipe.high_noise_power, chance)
        noisy, target = v_target(self.scheduler, latents, noise, timesteps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(self.step, recipe)
        with torch.autocast(self.device.type, torch.bfloat16):
            prediction = self.denoiser(
                noisy.to(self.device), timesteps.to(self.device), self.embed(captions)
            ).sample
        loss = (prediction.float() - target.to(self.device)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.denoiser, self.step)
        if recipe.text_rate > 0:
            self.text_average.update(self.text_encoder, self.step)
        self.step += 1
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {
            "denoiser": self.denoiser.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "average": self.average.shadow,
            "text_average": self.text_average.shadow,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.denoiser.load_state_dict(state["denoiser"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        for average, name in ((self.average, "average"), (self.text_average, "text_average")):
            average.shadow = {key: value.to(self.device) for key, value in state[name].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]

    def averaged(self) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """Fresh copies of both models with the averaged weights, for sampling and export."""
        denoiser = build_denoiser().to(self.device)
        denoiser.load_state_dict(self.average.shadow)
        text_encoder = CLIPTextModel(self.text_encoder.config).to(self.device)
        text_encoder.load_state_dict(self.text_average.shadow)
        return denoiser.eval(), text_encoder.eval()


def train_denoiser(
    folder: Path, training: DenoiserTraining, judge: Callable[[DenoiserTraining], str]
) -> DenoiserTraining:
    """Train to the recipe's end, or go on from the last checkpoint in `folder`.

    Args:
        folder: where `denoiser.pt` lies or will lie.
        training: a fresh run.
        judge: called every `score_steps`; scores and exports, and says so in one line.
    """
    recipe, path = training.recipe, folder / "denoiser.pt"
    if (state := load_if_any(path)) is not None:
        training.restore(state)
    progress = Progress("denoiser", recipe.steps, training.step)
    while training.step < recipe.steps:
        loss = training.take_step()
        progress.update(training.step, loss)
        last = training.step == recipe.steps
        if training.step % recipe.score_steps == 0 and not last:
            print(judge(training), flush=True)
        if training.step % recipe.checkpoint_steps == 0 or last:
            save_atomically(training.state(), path)
    return training

"""The autoencoder: 64 x 64 pictures to 16 x 16 x 4 latents and back, with crisp edges."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from .doodles import SIDE_PX, autoencoder_batch, to_pixels
from .scenes import render, sample_scene
from .training_state import Progress, WeightAverage, load_if_any, save_atomically, warm_then_cosine


@dataclass(frozen=True)
class VaeRecipe:
    """How long and how hard the autoencoder is trained.

    Round one learns the tiny world, round two any colour, line and grain. Each round begins on
    crops, which cost a quarter, and ends on whole pictures, which settle the group norms.
    """

    steps: int = 12_000
    round_steps: int = 8500
    whole_steps: tuple[int, int] = (1500, 400)
    batch: int = 16
    learning_rate: float = 2e-3
    kl_weight: float = 1e-5
    edge_weight: float = 0.5
    checkpoint_steps: int = 500
    seed: int = 1


def build_vae() -> AutoencoderKL:
    """An untrained tiny autoencoder of the real class."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIDE_PX,
        force_upcast=False,
    )


def edges(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return pixels[..., :, 1:] - pixels[..., :, :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def vae_loss(vae: AutoencoderKL, pixels: Tensor, recipe: VaeRecipe) -> Tensor:
    """Absolute error, the same on edges so that they stay crisp, and a whisper of KL."""
    posterior = vae.encode(pixels).latent_dist
    decoded = vae.decode(posterior.sample()).sample.float()
    loss = (decoded - pixels).abs().mean() + 2 * functional.mse_loss(decoded, pixels)
    for ours, theirs in zip(edges(decoded), edges(pixels), strict=True):
        loss = loss + recipe.edge_weight * (ours - theirs).abs().mean()
    return loss + recipe.kl_weight * posterior.kl().float().mean() / 4


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, count: int = 64, creatures: float = 0.15) -> float:
    """Mean reconstruction quality on fixed scenes, in decibels."""
    rng = random.Random(99)
    pixels = to_pixels([render(sample_scene(rng, "full", creatures)) for _ in range(count)])
    device = next(vae.parameters()).device
    decoded = vae.decode(vae.encode(pixels.to(device)).latent_dist.mode()).sample.clamp(-1, 1).cpu()
    errors = ((decoded - pixels) / 2).square().mean((1, 2, 3))
    return float(torch.tensor([-10 * math.log10(max(float(e), 1e-9)) for e in errors]).mean())


@torch.no_grad()
def fit_scaling_factor(vae: AutoencoderKL, count: int = 256) -> None:
    """Set the factor that gives latents unit variance, as the denoiser's noise has."""
    rng = random.Random(5)
    pixels = to_pixels([render(sample_scene(rng)) for _ in range(count)])
    device = next(vae.parameters()).device
    latents = vae.encode(pixels.to(device)).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))


def round_of(step: int, recipe: VaeRecipe) -> tuple[int, int, int]:
    """First step, end, and whole-picture steps of the round that this step belongs to."""
    if step < recipe.round_steps:
        return 0, recipe.round_steps, recipe.whole_steps[0]
    return recipe.round_steps, recipe.steps, recipe.whole_steps[1]


def train_vae(folder: Path, recipe: VaeRecipe, device: torch.device) -> AutoencoderKL:
    """Train, or go on from the last checkpoint in `folder`; returns the averaged weights."""
    torch.manual_seed(recipe.seed)
    vae = build_vae().to(device)
    optimizer = torch.optim.AdamW(
        vae.parameters(), recipe.learning_rate, weight_decay=0.0, fused=True
    )
    average = WeightAverage(vae, 0.998)
    path, first = folder / "vae.pt", 0
    if (state := load_if_any(path)) is not None:
        vae.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        average.shadow = {name: value.to(device) for name, value in state["average"].items()}
        first = state["step"]
    progress = Progress("vae", recipe.steps, first)
    for step in range(first, recipe.steps):
        begin, end, whole = round_of(step, recipe)
        factor = warm_then_cosine(step - begin, end - begin, 100)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor
        # A seed for each step makes a resumed run see the same pictures as an unbroken one.
        rng = random.Random(f"vae/{recipe.seed}/{step}")
        crop, size = step < end - whole, recipe.batch
        pixels = autoencoder_batch(rng, size if crop else size // 2, crop, free=begin > 0)
        pixels = pixels.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = vae_loss(vae, pixels, recipe)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(vae, step)
        progress.update(step + 1, float(loss.detach()))
        if (step + 1) % recipe.checkpoint_steps == 0 or step + 1 == recipe.steps:
            save_atomically(
                {
                    "weights": vae.state_dict(),
                    "average": average.shadow,
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                path,
            )
    vae.load_state_dict(average.shadow)
    vae.eval()
    fit_scaling_factor(vae)
    return vae

"""Scenes drawn and encoded once, so that the denoiser's training never waits for the encoder."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .doodles import to_pixels
from .scenes import Scene, render, sample_scene
from .training_state import Progress, load_if_any, save_atomically

POOL_SIZES = {"centred": 4096, "placed": 18432, "creatures": 8192}
# From which share of the training on, how often each pool is drawn: easy scenes first.
CURRICULUM: tuple[tuple[float, dict[str, float]], ...] = (
    (0.00, {"centred": 1.0}),
    (0.175, {"centred": 0.35, "placed": 0.65}),
    (0.635, {"centred": 0.2, "placed": 0.55, "creatures": 0.25}),
    (0.76, {"centred": 0.15, "placed": 0.45, "creatures": 0.4}),
)


@dataclass(frozen=True)
class Pool:
    """Scenes and their scaled latents (scenes, channels, height, width), one row each."""

    scenes: list[Scene]
    latents: Tensor


def pool_scenes(name: str, count: int, seed: int) -> list[Scene]:
    """The scenes of one pool; the same every time, so only latents need to be stored."""
    stage = "full" if name == "creatures" else name
    share = 1.0 if name == "creatures" else 0.0
    rng = random.Random(f"pool/{name}/{seed}")
    return [sample_scene(rng, stage, share) for _ in range(count)]


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: list[Scene], label: str) -> Tensor:
    """Scaled latents of the scenes, fp16."""
    device = next(vae.parameters()).device
    progress = Progress(f"latents {label}", len(scenes))
    rows = []
    for start in range(0, len(scenes), 32):
        pixels = to_pixels([render(scene) for scene in scenes[start : start + 32]]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(pixels).latent_dist.mode()
        rows.append((latents.float() * vae.config.scaling_factor).half().cpu())
        progress.update(min(start + 32, len(scenes)), 0.0)
    return torch.cat(rows)


def load_pools(folder: Path, vae: AutoencoderKL, seed: int) -> dict[str, Pool]:
    """Every pool, encoded now or read from an earlier run's file."""
    pools = {}
    for name, count in POOL_SIZES.items():
        path = folder / f"latents_{name}.pt"
        scenes = pool_scenes(name, count, seed)
        if (state := load_if_any(path)) is None:
            state = {"latents": encode_scenes(vae, scenes, name)}
            save_atomically(state, path)
        pools[name] = Pool(scenes, state["latents"])
    return pools


def pool_weights(share_done: float) -> dict[str, float]:
    """How often each pool is drawn at this share of the training."""
    weights = CURRICULUM[0][1]
    for begins, later in CURRICULUM:
        if share_done >= begins:
            weights = later
    return weights


def draw(
    pools: dict[str, Pool], share_done: float, size: int, rng: random.Random
) -> tuple[Tensor, list[Scene]]:
    """One batch of latents and their scenes."""
    weights = pool_weights(share_done)
    names = rng.choices(list(weights), list(weights.values()), k=size)
    rows, scenes = [], []
    for name in names:
        index = rng.randrange(len(pools[name].scenes))
        rows.append(pools[name].latents[index])
        scenes.append(pools[name].scenes[index])
    return torch.stack(rows).float(), scenes

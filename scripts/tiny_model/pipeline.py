"""Puts the trained parts together as an ordinary pipeline folder, and paints with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from transformers import CLIPTextModel

from .captions_tokenizer import build_tokenizer, save_tokenizer
from .denoiser import build_scheduler

GUIDANCE = 3.0
SAMPLING_STEPS = 25
MAX_BYTES = 16 * 1024 * 1024


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, denoiser: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The pipeline, with nothing but stock classes in it."""
    denoiser.set_attn_processor(AttnProcessor2_0())
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        unet=denoiser,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class PipelinePainter:
    """Paints prompts as the model card says: DPM-Solver++, fixed seeds, one noise per picture."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        steps: int = SAMPLING_STEPS,
        guidance: float = GUIDANCE,
        batch: int = 16,
    ) -> None:
        self.pipeline, self.steps, self.guidance, self.batch = pipeline, steps, guidance, batch

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], seed: int) -> list[Image.Image]:
        """One picture for each prompt; each has its own noise, so batches do not matter."""
        pipeline, kept = self.pipeline, self.pipeline.scheduler
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(kept.config)
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), self.batch):
            group = list(prompts[start : start + self.batch])
            chances = [
                torch.Generator().manual_seed(1000 * seed + start + i) for i in range(len(group))
            ]
            pictures += pipeline(
                group,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=chances,
            ).images
        pipeline.scheduler = kept
        return pictures


def replace_folder(fresh: Path, target: Path) -> None:
    """Swap a finished folder in, so that a reader never meets half of one."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def settle_text_dtype(config: Path) -> None:
    """Let the text encoder load as float32 by default, as the other parts do.

    Transformers takes the default dtype from this file, diffusers always takes float32: without
    this, a plain `from_pretrained` would mix both in one pipeline.
    """
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def export(
    pipeline: StableDiffusionPipeline, target: Path, card: str, scores: dict[str, object]
) -> int:
    """Write the pipeline as fp16 safetensors with its card and scores; returns its bytes.

    Raises:
        ValueError: the folder is larger than a repository should carry.
    """
    fresh = target.with_name(target.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    dtypes = {
        name: part.dtype for name, part in pipeline.components.items() if hasattr(part, "dtype")
    }
    pipeline.to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    for name, dtype in dtypes.items():
        getattr(pipeline, name).to(dtype)
    save_tokenizer(fresh / "tokenizer")
    settle_text_dtype(fresh / "text_encoder" / "config.json")
    (fresh / "README.md").write_text(card, encoding="utf-8")
    (fresh / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    files = [path for path in fresh.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        raise ValueError(f"{target} would take {size} bytes; at most {MAX_BYTES} may ship")
    replace_folder(fresh, target)
    return size

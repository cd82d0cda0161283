"""Adapters with values that change the picture, for exchange with other programs."""

from collections.abc import Sequence
from importlib.resources import files

import pytest
import torch
from torch import nn

from scumble.adapters import LoRA
from scumble.adapters.inject import Target, inject
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.formats.weights import module_weights


@pytest.fixture
def make_pipeline():
    """Builds a fresh, unmodified pipeline of diffusers around the built-in base, in fp32."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    def make():
        tiny = str(files("scumble") / "assets" / "tiny")
        pipeline = StableDiffusionPipeline.from_pretrained(tiny, torch_dtype=torch.float32)
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def draw():
    """Draws one picture in a few steps, as an array in [0, 1]."""

    def draw_with(pipeline):
        generator = torch.Generator().manual_seed(3)
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
        return pipeline("a red circle", generator=generator, **options).images[0]

    return draw_with


@pytest.fixture
def make_weights(make_pipeline):
    """Builds a LoRA on the built-in base's denoiser, or on other parts, for the given targets."""

    def made(model: nn.Module, targets: Sequence[str]) -> dict[str, ModuleWeights]:
        parsed = [Target.parse(text, 4, None) for text in targets]
        adapters = inject(model, "made", LoRA, parsed)
        torch.manual_seed(0)
        for adapter in adapters.adapters.values():
            nn.init.normal_(adapter.up, std=0.05)
        return module_weights(adapters, "lora")

    def make(*unet: str, **others: Sequence[str]) -> AdapterWeights:
        pipeline = make_pipeline()
        parts = {"unet": unet, **others}
        components = {name: made(getattr(pipeline, name), parts[name]) for name in parts}
        return AdapterWeights(components, {"base_model": "tiny"})

    return make

"""Adapters that visibly change what the built-in base draws, in memory and as files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scumble
from scumble.adapters import LoRA
from scumble.adapters.inject import Target, inject
from scumble.formats import AdapterWeights
from scumble.formats.weights import module_weights

TARGETS = {"unet": ("attn2.to_k", "attn2.to_v:2:6"), "text_encoder": ("q_proj", "fc1:2")}


@pytest.fixture
def make_weights(tiny_pipeline: Any) -> Callable[..., AdapterWeights]:
    """Builds LoRA weights for the named components; equal seeds give equal weights."""

    def make(*components: str, seed: int = 0, spread: float = 0.3) -> AdapterWeights:
        made = {}
        for component in components or ("unet",):
            targets = [Target.parse(text, 4, None) for text in TARGETS[component]]
            adapters = inject(getattr(tiny_pipeline, component), "made", LoRA, targets, seed=seed)
            torch.manual_seed(seed)
            for adapter in adapters.adapters.values():
                torch.nn.init.normal_(adapter.up, std=spread)
            made[component] = module_weights(adapters, "lora")
            adapters.eject()
        return AdapterWeights(made, {"base_model": "scumble-tiny"})

    return make


@pytest.fixture
def adapter_file(make_weights: Any, tmp_path: Path) -> Path:
    """An adapter file that names its base in its metadata."""
    return scumble.write_adapter(make_weights(), tmp_path / "run" / "adapter.safetensors")


@pytest.fixture
def draw() -> Callable[[Any], np.ndarray]:
    """Draws one picture in two steps, as an array in [0, 1]."""

    def draw_with(pipeline: Any) -> np.ndarray:
        options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
        generator = torch.Generator().manual_seed(3)
        return pipeline("a red circle", generator=generator, **options).images[0]

    return draw_with

"""Sample pictures of a model in training, drawn by the code that `scumble generate` uses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL.Image import Image

from scumble.adapters import blend
from scumble.inference.generator import Sampling, build_pipeline, draw_all
from scumble.inference.grids import labelled_grid
from scumble.randomness import generator
from scumble.training.workshop import ADAPTER_NAME, Workshop


def draw_samples(workshop: Workshop, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
    """Draw every prompt with every seed, adapters on."""
    with _whole_pipeline(workshop) as pipeline:
        return draw_all(pipeline, prompts, seeds, _sampling(workshop))


def draw_before_after(
    workshop: Workshop, prompts: Sequence[str], seeds: Sequence[int]
) -> tuple[list[Image], Image]:
    """Draw every prompt with every seed, with and without the adapter.

    Returns:
        The pictures with the adapter, and a labelled grid of both.
    """
    denoiser = workshop.components[workshop.denoiser_name]
    with _whole_pipeline(workshop) as pipeline:
        after = draw_all(pipeline, prompts, seeds, _sampling(workshop))
        blend.set_strengths(denoiser, {ADAPTER_NAME: 0.0})
        try:
            before = draw_all(pipeline, prompts, seeds, _sampling(workshop))
        finally:
            blend.set_strengths(denoiser, {ADAPTER_NAME: 1.0})
    labels = [f"{prompt} (seed\u00a0{seed})" for prompt in prompts for seed in seeds]
    rows = list(zip(before, after, strict=True))
    return after, labelled_grid(rows, ("base model", "with the adapter"), labels)


def sample_prompts(workshop: Workshop) -> tuple[list[str], list[int]]:
    """Prompts and seeds of the sample pictures: the validation prompt, or some captions."""
    config = workshop.config
    count = config.num_validation_images
    if config.validation_prompt is not None:
        return [config.validation_prompt], list(range(config.seed, config.seed + count))
    captions = list(dict.fromkeys(e.captions[0] for e in workshop.data.examples if any(e.captions)))
    order = torch.randperm(len(captions), generator=generator(config.seed, "sample prompts"))
    return [captions[index] for index in order[:count].tolist()], [config.seed]


def _sampling(workshop: Workshop) -> Sampling:
    config = workshop.config
    return Sampling(config.num_inference_steps, config.guidance_scale)


@contextmanager
def _whole_pipeline(workshop: Workshop) -> Iterator[Any]:
    """The pipeline around the live denoiser; what had to be loaded for it is let go again."""
    components, family = workshop.components, workshop.family
    absent = [name for name in family.components if name not in components]
    family.load(components, absent, workshop.runtime.dtype)
    for name in absent:
        components[name].to(workshop.runtime.device)
    try:
        with torch.no_grad():
            yield build_pipeline(family, components)
    finally:
        components.release(*absent)
        if workshop.runtime.device.type == "cuda":
            torch.cuda.empty_cache()

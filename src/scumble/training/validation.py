"""Sample pictures of a model in training, drawn by the code that `scumble generate` uses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL.Image import Image

from scumble.inference.generator import Sampling, build_pipeline, draw_all
from scumble.inference.grids import labelled_grid
from scumble.inference.tokens import in_plain_words
from scumble.randomness import generator
from scumble.training.taught import Taught
from scumble.training.words import new_words
from scumble.training.workshop import Workshop


def draw_samples(workshop: Workshop, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
    """Draw every prompt with every seed, adapters on."""
    with workshop.runtime.stage("pictures"), whole_pipeline(workshop) as pipeline:
        return draw_all(pipeline, prompts, seeds, _sampling(workshop))


def draw_before_after(
    workshop: Workshop, taught: Taught, prompts: Sequence[str], seeds: Sequence[int]
) -> tuple[list[Image], Image]:
    """Draw every prompt with every seed, with and without what has been taught.

    Returns:
        The pictures with the adapter, and a labelled grid of both.
    """
    word = workshop.config.initializer_token
    words = new_words(workshop.config)
    plain = [in_plain_words(prompt, words, word) if word else prompt for prompt in prompts]
    with whole_pipeline(workshop) as pipeline:
        after = draw_all(pipeline, prompts, seeds, _sampling(workshop))
    with _as_it_was(workshop, taught), whole_pipeline(workshop) as pipeline:
        before = draw_all(pipeline, plain, seeds, _sampling(workshop))
    labels = [f"{prompt} (seed\u00a0{seed})" for prompt in prompts for seed in seeds]
    rows = list(zip(before, after, strict=True))
    heading = "after training" if taught.models else "with the adapter"
    base = "base model" if plain == list(prompts) else f"base model: {word}"
    return after, labelled_grid(rows, (base, heading), labels)


@contextmanager
def _as_it_was(workshop: Workshop, taught: Taught) -> Iterator[None]:
    """The base as it was before the training, for as long as the context lasts."""
    components, family = workshop.components, workshop.family
    learnt = {name: components[name] for name in taught.models}
    components.release(*learnt)
    family.load(components, list(learnt), workshop.runtime.dtype)
    for name in learnt:
        components[name].to(workshop.runtime.device)
    try:
        with taught.adapters_off():
            yield
    finally:
        components.parts |= learnt


def sample_prompts(workshop: Workshop) -> tuple[list[str], list[int]]:
    """Prompts and seeds of the sample pictures: the validation prompt, or some captions."""
    config = workshop.config
    count = config.num_validation_images
    if config.validation_prompt is not None:
        return [config.validation_prompt], list(range(config.seed, config.seed + count))
    examples = workshop.gathered.train.examples
    captions = list(dict.fromkeys(c for e in examples for c in e.captions if c))
    order = torch.randperm(len(captions), generator=generator(config.seed, "sample prompts"))
    return [captions[index] for index in order[:count].tolist()], [config.seed]


def _sampling(workshop: Workshop) -> Sampling:
    config = workshop.config
    return Sampling(config.num_inference_steps, config.guidance_scale)


@contextmanager
def whole_pipeline(workshop: Workshop) -> Iterator[Any]:
    """A pipeline around the live denoiser; what had to be loaded for it is let go again."""
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

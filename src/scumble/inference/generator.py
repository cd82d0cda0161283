"""From prompts to pictures, for sample pictures while training and for `scumble generate`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from scumble import console
from scumble.config import GenerateConfig
from scumble.errors import UserError
from scumble.families import BaseModel, Components, Family, family_of, locate
from scumble.formats import AdapterWeights, read_adapter
from scumble.hub.pull import local_adapter
from scumble.inference.base_of import base_of
from scumble.inference.device import default_device, weight_dtype
from scumble.inference.loading import load_adapter, unload_adapters
from scumble.inference.tokens import describe, without_tokens
from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Args:
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 turns it off.
        negative_prompt: what to steer away from.
        height: pixels; None is the base's own size.
        width: pixels; None is the base's own size.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Picture:
    """One drawn picture and what it was drawn from.

    Args:
        image: the picture.
        prompt: its prompt.
        seed: its seed.
        before: the same without adapters, where a comparison was asked for; a known word stands
            for a learned token there.
    """

    image: Image
    prompt: str
    seed: int
    before: Image | None = None


def build_pipeline(family: Family, components: Components) -> Any:
    """Assemble a pipeline that draws with DPM-Solver++ (arXiv:2211.01095) and without a filter."""
    from diffusers import DPMSolverMultistepScheduler

    pipeline = family.pipeline(components)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def draw(pipeline: Any, prompt: str, seed: int, sampling: Sampling) -> Image:
    """Draw one picture. It depends on nothing but the model, the prompt, the seed and `sampling`.

    Raises:
        UserError: the picture came out as NaN, which a viewer would show as black.
    """
    return draw_together(pipeline, [prompt], [seed], sampling)[0]


def draw_together(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    after_step: Callable[[int], None] | None = None,
) -> list[Image]:
    """Draw several pictures as one batch, each with a prompt and a seed of its own.

    Args:
        pipeline: that draws.
        prompts: one for each picture.
        seeds: one for each picture.
        sampling: how to draw.
        after_step: called with the number of denoising steps done, after each; it may raise to
            stop there.

    Raises:
        UserError: a picture came out as NaN, which a viewer would show as black.
    """
    result = pipeline(
        list(prompts),
        negative_prompt=[sampling.negative_prompt] * len(prompts),
        height=sampling.height,
        width=sampling.width,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
        callback_on_step_end=None if after_step is None else _as_callback(after_step),
    )
    for prompt, pixels in zip(prompts, torch.from_numpy(result.images), strict=True):
        if not torch.isfinite(pixels).all():
            raise UserError(
                f"the picture of '{prompt}' came out as NaN",
                "Draw in fp32 (--mixed_precision no), or check the adapter.",
            )
    images: list[Image] = pipeline.numpy_to_pil(result.images)
    return images


def _as_callback(after_step: Callable[[int], None]) -> Callable[..., dict[str, Any]]:
    """What diffusers calls after a step, and may change the latents: this does not."""

    def callback(_pipeline: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        after_step(step + 1)
        return {}

    return callback


def draw_all(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    done: Callable[[Image, int], None] | None = None,
) -> list[Image]:
    """Draw every prompt with every seed, prompt by prompt, with a progress bar.

    Args:
        pipeline: that draws.
        prompts: what to draw.
        seeds: for each prompt.
        sampling: how to draw.
        done: told each picture and its seed as soon as it is there.
    """
    images = []
    pipeline.set_progress_bar_config(disable=True)
    with console.progress(len(prompts) * len(seeds), "drawing", unit="picture") as bar:
        for prompt in prompts:
            for seed in seeds:
                images.append(draw(pipeline, prompt, seed, sampling))
                bar.update()
                if done is not None:
                    done(images[-1], seed)
    return images


def generate(prompt: str | Sequence[str], **options: Any) -> list[Image]:
    """Draw pictures, with adapters on top of a base model.

    Args:
        prompt: what to draw; several prompts are drawn one after the other.
        **options: fields of `GenerateConfig`, such as adapter="pokemon:0.7" or num_images=4.

    Returns:
        The pictures, `num_images` for each prompt.

    Raises:
        UserError: bad options, or an adapter or base that cannot be used.
    """
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if isinstance(options.get("adapter"), str):
        options["adapter"] = (options["adapter"],)
    config = GenerateConfig(prompt=prompts, **options)
    return [picture.image for picture in generate_pictures(config)]


def generate_pictures(
    config: GenerateConfig, done: Callable[[Image, int], None] | None = None
) -> list[Picture]:
    """Draw what a configuration asks for, keeping what each picture was drawn from.

    Args:
        config: what to draw, and with what.
        done: told each picture with the adapters, and its seed, as soon as it is there.

    Raises:
        UserError: an adapter or base that cannot be used.
    """
    pipeline, adapters = prepare_pipeline(config)
    sampling = Sampling(
        config.num_inference_steps,
        config.guidance_scale,
        config.negative_prompt,
        config.height,
        config.width,
    )
    seeds = range(config.seed, config.seed + config.num_images)
    after = draw_all(pipeline, config.prompt, seeds, sampling, done)
    before: list[Image | None] = [None] * len(after)
    if config.compare:
        unload_adapters(pipeline)
        before = list(_draw_base(pipeline, config.prompt, seeds, sampling, adapters))
    named = [(prompt, seed) for prompt in config.prompt for seed in seeds]
    return [
        Picture(image, prompt, seed, without)
        for (prompt, seed), image, without in zip(named, after, before, strict=True)
    ]


def _draw_base(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    adapters: Sequence[AdapterWeights],
) -> list[Image]:
    """Draw what the base makes of prompts whose learned tokens it does not know."""

    def plain(prompt: str) -> str:
        for weights in adapters:
            prompt = without_tokens(prompt, weights)
        return prompt

    sampling = replace(sampling, negative_prompt=plain(sampling.negative_prompt))
    return draw_all(pipeline, [plain(prompt) for prompt in prompts], seeds, sampling)


def prepare_pipeline(config: GenerateConfig) -> tuple[Any, list[AdapterWeights]]:
    """Load base and adapters as configured, and say what the adapters add to prompts.

    Returns:
        The pipeline, and the adapters on it.

    Raises:
        UserError: an adapter or base that cannot be used.
    """
    adapters = [parse_adapter(text) for text in config.adapter]
    files = [local_adapter(source) for source, _ in adapters]
    base = locate_base(config, files)
    family = family_of(base)
    check_size(family, base, config)
    device = default_device()
    dtype, note = weight_dtype(config.mixed_precision or _native_precision(device), device)
    if note:
        console.say(note)
    options = {"allow_pickle": config.allow_pickle, "partial": config.partial}
    loaded = [read_adapter(file, family.key_names, **options) for file in files]
    components = Components(base, denoiser_format=torch.channels_last)
    family.load(components, family.components, dtype)
    pipeline = build_pipeline(family, components)
    for number, (source, strength) in enumerate(adapters):
        weights = loaded[number]
        name = f"{number + 1}: {source}"
        load_adapter(pipeline, weights, name=name, strength=strength, partial=config.partial)
        for line in describe(weights, (*config.prompt, config.negative_prompt)):
            console.say(line)
        if weights.tokens and strength != 1:
            console.say(f":{strength:g} is for low-rank parts; a learned word has no strength.")
    pipeline.to(device)
    put_on(components[family.components[0]], LEVELS["balanced"])
    return pipeline, loaded


def parse_adapter(text: str) -> tuple[str, float]:
    """Split "path:0.7" into path and strength; a path that has a colon of its own stays whole."""
    path, _, strength = text.rpartition(":")
    try:
        value = float(strength)
    except ValueError:
        return text, 1.0
    return (path, value) if path and math.isfinite(value) else (text, 1.0)


def locate_base(config: GenerateConfig, adapters: Sequence[str | Path]) -> BaseModel:
    """Find the base that is named, or the one that the first adapter was trained on.

    Raises:
        UserError: nothing says which, or it is not there.
    """
    name = config.pretrained_model_name_or_path
    if name is None:
        name = base_of(adapters[0], allow_pickle=config.allow_pickle)
        if name is None:
            raise UserError(
                f"{adapters[0]} does not say which base model it was trained on",
                "Name it with --pretrained_model_name_or_path.",
            )
        console.say(f"base model: {name} (what the adapter was trained on)")
    return locate(
        name,
        revision=config.revision,
        variant=config.variant,
        prediction_type=config.prediction_type,
        cache_dir=config.cache_dir,
    )


def check_size(family: Family, base: BaseModel, config: GenerateConfig) -> None:
    """Refuse a height or width that the base cannot draw.

    Raises:
        UserError: it is no multiple of what the base works in.
    """
    for name in ("height", "width"):
        value = getattr(config, name)
        step = family.geometry(base).size_multiple_px
        if value is not None and (value < step or value % step):
            raise UserError(f"--{name} must be a multiple of {step} for {base.name}, not {value}")


def _native_precision(device: torch.device) -> str:
    return "fp16" if device.type == "cuda" else "no"

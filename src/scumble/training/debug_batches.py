"""What the model really sees in some steps: its samples as pictures, and all facts beside them."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from scumble import console
from scumble.data.buckets import StepPlan
from scumble.formats.container import write_atomically
from scumble.inference.contact_sheet import Card, contact_sheet
from scumble.training.denoising import Samples
from scumble.training.encoders import encoder_dtype
from scumble.training.phase import Phase, SampleLoss
from scumble.training.workshop import Workshop

FOLDER = "debug"
MOST_CARDS = 32
"""So many samples of a step are drawn; the facts tell all."""

PLACES = {0.0: "cut from the left or top", 0.5: "", 1.0: "cut from the right or bottom"}


def write_debug_batches(workshop: Workshop, phases: Sequence[Phase], done: int) -> None:
    """Write the samples of the next steps of a run, as --debug_batches asks for.

    Every draw has a name, so that these are the very samples which the steps will draw again.

    Args:
        workshop: model, data and settings.
        phases: of the method.
        done: steps done so far.

    Raises:
        UserError: the output folder cannot be written.
    """
    total = sum(phase.max_steps for phase in phases)
    steps = range(done, min(done + workshop.config.debug_batches, total))
    if not steps:
        return
    folder = Path(workshop.config.output_dir) / FOLDER
    bar = console.progress(len(steps), "drawing what is seen", unit="step")
    with workshop.runtime.stage("pictures"), _decoder(workshop), bar:
        for step in steps:
            phase = next(p for p in phases if step < p.first_step + p.max_steps)
            _write_step(workshop, phase, step, folder)
            bar.update()
    seen = f"step {steps[0] + 1}" if len(steps) == 1 else f"steps {steps[0] + 1} to {steps[-1] + 1}"
    console.say(f"what the model sees in {seen}: {folder}")


def samples_of(phase: Phase, plan: StepPlan) -> Iterator[tuple[str, range, Samples]]:
    """(name of the loss, positions, samples) of each part of a step, as one process draws them."""
    for name, loss in phase.losses.items():
        start = 0
        for part in plan.micro_batches:
            positions = range(start, start + len(part))
            start += len(part)
            yield name, positions, loss.samples(plan, positions)


def facts_of(loss: SampleLoss, plan: StepPlan, position: int, sample: Samples) -> dict[str, Any]:
    """Everything about one sample, ready for JSON.

    Args:
        loss: that it is drawn for.
        plan: of its step.
        position: in the step's batch.
        sample: the sample alone.
    """
    return {
        **loss.draws.facts(plan, position),
        "position": position,
        "timestep": int(sample.timesteps[0]),
        "caption": sample.captions[0],
        "has_mask": sample.mask is not None,
    }


def alone(samples: Samples, index: int) -> Samples:
    """One of several samples."""
    one = slice(index, index + 1)
    conditioning = samples.conditioning
    return Samples(
        samples.latents[one],
        samples.noise[one],
        samples.timesteps[one],
        samples.captions[one],
        conditioning and {name: tensor[one] for name, tensor in conditioning.items()},
        None if samples.mask is None else samples.mask[one],
    )


def _write_step(workshop: Workshop, phase: Phase, step: int, folder: Path) -> None:
    plan = phase.plan.step(step)
    facts: list[dict[str, Any]] = []
    cards: list[Card] = []
    for name, positions, samples in samples_of(phase, plan):
        for index, position in enumerate(positions):
            sample = alone(samples, index)
            about = {"loss": name, **facts_of(phase.losses[name], plan, position, sample)}
            facts.append(about)
            if len(cards) < MOST_CARDS:
                cards.append(Card(_pictures(workshop, sample), _lines(about), about["caption"]))
    whole = {"step": step + 1, "phase": phase.name, "epoch": plan.epoch, "samples": facts}
    name = f"step_{step + 1:06d}"
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / f"{name}.json", text.encode("utf-8", "backslashreplace"))
    more = f" ({len(facts) - len(cards)} more in {name}.json)" if len(facts) > len(cards) else ""
    heading = (
        f"Step {step + 1}, phase {phase.name}, epoch {plan.epoch + 1}: {len(facts)} samples{more}. "
        "Left the picture as it is learnt, right with its noise."
    )
    buffer = io.BytesIO()
    contact_sheet(cards, heading).save(buffer, format="PNG")
    write_atomically(folder / f"{name}.png", buffer.getvalue())


def _lines(about: dict[str, Any]) -> list[str]:
    width, height = about["bucket"]
    place = PLACES.get(about["crop"], f"cut at {about['crop']:g}")
    parts = [f"{width} x {height}", place, "mirrored" if about["flip"] else ""]
    return [
        f"{about['id']}, {about['loss']}",
        ", ".join(part for part in parts if part),
        f"timestep {about['timestep']}",
    ]


def _pictures(workshop: Workshop, sample: Samples) -> list[Image.Image]:
    noisy = workshop.objective.noised(sample.latents, sample.noise, sample.timesteps)
    pictures = [_decoded(workshop, sample.latents), _decoded(workshop, noisy)]
    if sample.mask is not None:
        mask = Image.fromarray((sample.mask[0, 0].cpu() * 255).byte().numpy())
        pictures.append(mask.resize(pictures[0].size, Image.Resampling.NEAREST))
    return pictures


def _decoded(workshop: Workshop, latents_1CHW: Tensor) -> Image.Image:
    pixels_1CHW = workshop.family.decode_latents(workshop.components, latents_1CHW)
    bytes_HWC = ((pixels_1CHW[0].float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(bytes_HWC.permute(1, 2, 0).cpu().numpy())


@contextmanager
def _decoder(workshop: Workshop) -> Iterator[None]:
    """The VAE, loaded for as long as the context lasts unless it is in memory already."""
    components, runtime = workshop.components, workshop.runtime
    name = workshop.family.components[-1]
    is_extra = name not in components
    if is_extra:
        workshop.family.load(components, [name], encoder_dtype(runtime.dtype))
        components[name].to(runtime.device)
    try:
        with torch.no_grad():
            yield
    finally:
        if is_extra:
            components.release(name)
            if runtime.device.type == "cuda":
                torch.cuda.empty_cache()

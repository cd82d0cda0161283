"""What a run leaves behind: adapter, sample pictures, loss curve, model card."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from scumble import console
from scumble.adapters.inject import AdapterSet
from scumble.errors import first_line
from scumble.formats import AdapterWeights, write_adapter
from scumble.formats.container import write_atomically
from scumble.formats.files import WEIGHT_NAME
from scumble.formats.weights import module_weights
from scumble.hub.card import CardFacts, render_card
from scumble.training.curve import loss_curve
from scumble.training.phase import Phase
from scumble.training.record import versions
from scumble.training.validation import draw_before_after, sample_prompts
from scumble.training.workshop import Workshop


@dataclass(frozen=True)
class TrainResult:
    """What `train` returns.

    Args:
        output_dir: the run's folder.
        adapter: the adapter file.
        steps: optimizer steps done.
    """

    output_dir: Path
    adapter: Path
    steps: int


def adapter_weights(workshop: Workshop, phases: Sequence[Phase]) -> AdapterWeights:
    """Take what the phases have taught off the live model, in the form that files hold."""
    names = workshop.family.key_names
    sets: dict[str, AdapterSet] = {}
    for phase in phases:
        phase.at_rest()
        sets |= phase.adapters
    components = {
        component: {
            names.to_file(component, path): entry
            for path, entry in module_weights(adapters, workshop.config.adapter_type).items()
        }
        for component, adapters in sets.items()
    }
    metadata = {"base_model": workshop.components.base.public_name}
    return AdapterWeights(components, metadata)


def save_adapter(workshop: Workshop, phases: Sequence[Phase], path: Path) -> Path:
    """Write what has been taught so far as an adapter file, verified after writing."""
    return write_adapter(adapter_weights(workshop, phases), path, workshop.family.key_names)


def write_pictures(workshop: Workshop, folder: Path) -> tuple[list[str], list[str]]:
    """Draw the sample pictures and the before/after grid into the output folder.

    Returns:
        Prompts and file names of the sample pictures.
    """
    prompts, seeds = sample_prompts(workshop)
    if not prompts or not workshop.config.before_after:
        return [], []
    try:
        images, grid = draw_before_after(workshop, prompts, seeds)
    except Exception as error:
        console.say(f"the before/after pictures failed; the adapter is safe: {first_line(error)}")
        return [], []
    _save_png(grid, folder / "before_after.png")
    names = [f"sample_{number}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        _save_png(image, folder / name)
    return [prompt for prompt in prompts for _ in seeds], names


def save_samples(images: Sequence[Image], folder: Path, step: int) -> None:
    """Keep the sample pictures of one moment of the training."""
    for number, image in enumerate(images):
        _save_png(image, folder / f"step_{step:06d}_{number}.png")


def write_curve(losses: Sequence[float], folder: Path) -> None:
    """Draw the loss curve into the output folder."""
    if losses:
        _save_png(loss_curve(losses), folder / "loss_curve.png")


def write_card(
    workshop: Workshop,
    phases: Sequence[Phase],
    folder: Path,
    samples: tuple[Sequence[str], Sequence[str]],
) -> None:
    """Write the model card into the output folder."""
    config = workshop.config
    base = workshop.components.base.public_name
    settings = config.public()
    settings["pretrained_model_name_or_path"] = base
    facts = CardFacts(
        name=folder.resolve().name,
        base_model=base,
        prompts=samples[0],
        images=samples[1],
        settings=settings,
        parameters=sum(p.numel() for phase in phases for p in phase.parameters()),
        steps=sum(phase.max_steps for phase in phases),
        pictures=len(workshop.data.examples),
        versions=versions(),
        instance_prompt=config.instance_prompt,
    )
    write_atomically(folder / "README.md", render_card(facts).encode())


def report_files(folder: Path) -> None:
    """Say what lies where, for a run that is done."""
    size_mb = (folder / WEIGHT_NAME).stat().st_size / 1e6
    console.say(f"\nadapter: {folder / WEIGHT_NAME} ({size_mb:.2f} MB)")
    for name in ("before_after.png", "loss_curve.png", "README.md"):
        if (folder / name).is_file():
            console.say(f"         {folder / name}")
    console.say(f'draw with it: scumble generate --adapter {folder} --prompt "..."')


def _save_png(image: Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())

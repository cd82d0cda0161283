"""What a run leaves behind: adapter, sample pictures, loss curve, model card."""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL.Image import Image
from safetensors import SafetensorError

from scumble import console
from scumble.drafts import draft_of, sync
from scumble.errors import UserError, first_line
from scumble.families import text_encoders
from scumble.families.fingerprint import FINGERPRINT, fingerprint
from scumble.formats import AdapterWeights, write_adapter
from scumble.formats.container import write_atomically
from scumble.formats.files import BUNDLE_NAME, EMBEDS_NAME, WEIGHT_NAME
from scumble.formats.training_facts import TRAINING
from scumble.formats.weights import LearnedToken, module_weights
from scumble.hub.card import CARD_NAME, CardFacts, render_card
from scumble.hub.licence import licence_of
from scumble.hub.pull import hub_name
from scumble.training.blueprint import BLUEPRINT, blueprint
from scumble.training.curve import loss_curve
from scumble.training.facts import training_facts
from scumble.training.record import MODEL_NAME, versions
from scumble.training.taught import Taught
from scumble.training.validation import draw_before_after, sample_prompts, whole_pipeline
from scumble.training.words import trigger_phrase
from scumble.training.workshop import Workshop


@dataclass(frozen=True)
class TrainResult:
    """What `train` returns.

    Args:
        output_dir: the run's folder.
        adapter: the adapter file; the model's folder after full fine-tuning.
        steps: optimizer steps done.
    """

    output_dir: Path
    adapter: Path
    steps: int


def adapter_weights(workshop: Workshop, taught: Taught, steps: int) -> AdapterWeights:
    """Take what `steps` steps have taught off the live model, in the form that files hold."""
    config = workshop.config
    components = {
        component: module_weights(adapters, config.adapter_type)
        for component, adapters in taught.adapters.items()
    }
    words = {word for rows in taught.rows.values() for word in rows}
    tokens = {
        word: LearnedToken(
            {name: rows[word].detach().cpu().clone() for name, rows in taught.rows.items()}
        )
        for word in sorted(words)
    }
    base = workshop.components.base
    facts = json.dumps(training_facts(workshop, steps), sort_keys=True, ensure_ascii=False)
    plan = json.dumps(blueprint(workshop), sort_keys=True, ensure_ascii=False)
    metadata = {"base_model": base.public_name, TRAINING: facts, BLUEPRINT: plan}
    mark = fingerprint(base, workshop.family.components[0])
    if mark is not None:
        metadata[FINGERPRINT] = mark
    phrase = trigger_phrase(workshop)
    if phrase is not None:
        metadata["trigger_phrase"] = phrase
    if config.initializer_token is not None:
        metadata["initializer_token"] = config.initializer_token
    return AdapterWeights(components, metadata, tokens)


def save_learnt(workshop: Workshop, taught: Taught, steps: int, folder: Path) -> Path | None:
    """Write what has been taught so far into a folder, each file verified after writing.

    Adapters and words go into one file that says everything of itself, and apart from each other
    into the plain files that other programs read.

    Returns:
        The file to load; None where a whole model was taught, which `save_model` writes.
    """
    names = workshop.family.key_names
    if taught.models:
        return None
    weights = adapter_weights(workshop, taught, steps)
    plain = replace(weights, tokens={})
    if weights.tokens:
        embeds = replace(weights, components={})
        path = write_adapter(embeds, folder / EMBEDS_NAME, names, "embedding")
    if weights.components:
        path = write_adapter(plain, folder / WEIGHT_NAME, names)
    if weights.tokens and weights.components:
        path = write_adapter(weights, folder / BUNDLE_NAME, names)
    return path


def save_model(workshop: Workshop, folder: Path) -> Path:
    """Write the whole model as a folder that diffusers opens, in one move."""
    final, draft = folder / MODEL_NAME, draft_of(folder / MODEL_NAME)
    # One that has been used writes down how it was used last.
    workshop.components.release(*text_encoders(workshop.family).values())
    with whole_pipeline(workshop) as pipeline:
        try:
            shutil.rmtree(draft, ignore_errors=True)
            pipeline.save_pretrained(draft)
            for path in (*draft.rglob("*"), draft):
                sync(path)
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise UserError(
                f"cannot write {final}: {first_line(error)}",
                "The last checkpoint is untouched. Make room, then go on with "
                "--resume_from_checkpoint latest.",
            ) from error
    return final


def write_pictures(
    workshop: Workshop, taught: Taught, steps: int, folder: Path
) -> tuple[list[str], list[str]]:
    """Draw the sample pictures and the before/after grid into the output folder.

    Returns:
        Prompts and file names of the sample pictures.
    """
    prompts, seeds = sample_prompts(workshop)
    if not prompts or not workshop.config.before_after:
        return [], []
    try:
        with workshop.runtime.stage("pictures"):
            images, grid = draw_before_after(workshop, taught, prompts, seeds)
    except Exception as error:
        console.say(f"the before/after pictures failed; the adapter is safe: {first_line(error)}")
        return [], []
    _save_png(grid, folder / "before_after.png")
    names = [f"sample_{number}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        _save_png(image, folder / name)
    captions = [prompt for prompt in prompts for _ in seeds]
    workshop.runtime.trackers.show(images, captions, steps, "result")
    return captions, names


def save_samples(images: Sequence[Image], folder: Path, step: int) -> list[str]:
    """Keep the sample pictures of one moment of the training; their file names."""
    names = [f"step_{step:06d}_{number}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        _save_png(image, folder / name)
    return names


def write_curve(losses: Sequence[float], folder: Path) -> None:
    """Draw the loss curve into the output folder."""
    if losses:
        _save_png(loss_curve(losses), folder / "loss_curve.png")


def write_card(
    workshop: Workshop,
    taught: Taught,
    steps: int,
    folder: Path,
    samples: tuple[Sequence[str], Sequence[str]],
    scores: Mapping[str, float],
) -> None:
    """Write the model card into the output folder."""
    config = workshop.config
    base = workshop.components.base.public_name
    settings = config.public()
    settings |= {"pretrained_model_name_or_path": base, "seed": config.seed}
    dataset = settings.get("dataset_name")
    facts = CardFacts(
        name=(config.hub_model_id or folder.resolve().name).rpartition("/")[2],
        base_model=base,
        prompts=samples[0],
        images=samples[1],
        settings=settings,
        parameters=taught.num_parameters(),
        steps=steps,
        pictures=len(workshop.gathered.train.examples),
        versions=versions(),
        instance_prompt=trigger_phrase(workshop),
        adapter=WEIGHT_NAME if taught.adapters else None,
        words=EMBEDS_NAME if taught.rows else None,
        model=MODEL_NAME if taught.models else None,
        licence=licence_of(workshop.components.base),
        dataset=dataset if dataset is not None and hub_name(dataset) else None,
        scores=scores,
        adapter_type=config.adapter_type,
        example=_example(workshop),
    )
    write_atomically(folder / CARD_NAME, render_card(facts).encode())


def report_files(workshop: Workshop, result: Path, folder: Path) -> None:
    """Say what lies where, for a run that is done."""
    files = [path for path in result.rglob("*") if path.is_file()] or [result]
    size_kb = sum(path.stat().st_size for path in files) / 1e3
    size = f"{size_kb / 1e3:.2f} MB" if size_kb >= 100 else f"{size_kb:.1f} kB"
    what = {MODEL_NAME: "model", EMBEDS_NAME: "word"}.get(result.name, "adapter")
    console.say(f"\n{what + ':':8} {result} ({size})")
    for name in (WEIGHT_NAME, EMBEDS_NAME, "before_after.png", "loss_curve.png", "README.md"):
        if (folder / name).is_file() and folder / name != result:
            console.say(f"         {folder / name}")
    words = _example(workshop)
    flag = "--pretrained_model_name_or_path" if result.is_dir() else "--adapter"
    place = result if result.is_dir() else folder
    console.say(f'draw with it: scumble generate {flag} {place} --prompt "{words}"')


def _example(workshop: Workshop) -> str:
    """A prompt that what was learnt answers to."""
    captions = (c for e in workshop.gathered.train.examples for c in e.captions if c)
    return trigger_phrase(workshop) or next(captions, "...")


def _save_png(image: Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())

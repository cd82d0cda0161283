"""Pictures of a subject's class, drawn once by the frozen base and kept for every later run."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.data.sources import image_folder
from scumble.errors import UserError
from scumble.families import Components, Family
from scumble.formats.container import require_writable, write_atomically
from scumble.inference.device import weight_dtype
from scumble.inference.generator import Sampling, build_pipeline, draw_together
from scumble.training.runtime import Runtime

MANIFEST = "class_pictures.json"
DRAWN = re.compile(r"drawn_\d{5}\.png")


SAMPLING = Sampling()
"""The same whatever a run's sample pictures are drawn with: runs share class pictures."""


def draw_class_pictures(
    config: TrainConfig,
    family: Family,
    components: Components,
    runtime: Runtime,
    folder: Path,
) -> set[str]:
    """Draw what lacks of the class pictures, and write down which they are.

    A picture of a number depends on the prompt, the base and the number alone, so an interrupted
    run goes on where it was. Pictures that are not drawn here are the user's own, and count.

    Returns:
        Names of drawn pictures in the folder beyond the number asked for: they are not to be used.

    Raises:
        UserError: the folder holds drawn pictures of another prompt or base, or cannot be written.
    """
    own, drawn_before = _pictures(folder)
    wanted = [_name(number) for number in range(max(0, config.num_class_images - len(own)))]
    # Everybody has looked before anybody draws.
    runtime.accelerator.wait_for_everyone()
    if runtime.is_main:
        require_writable(folder, "--class_data_dir")
        if own:
            console.say(f"class pictures: {len(own)} of your own in {folder}")
        _complete(config, family, components, runtime, folder, wanted)
    runtime.accelerator.wait_for_everyone()
    return set(drawn_before) - set(wanted)


def _complete(
    config: TrainConfig,
    family: Family,
    components: Components,
    runtime: Runtime,
    folder: Path,
    wanted: Sequence[str],
) -> None:
    base = components.base
    origin = {
        "class_prompt": config.class_prompt,
        "base": base.reference,
        "revision": base.revision,
        "variant": base.variant,
        "prediction_type": base.prediction_type,
    }
    drawn = _drawn(folder, origin)
    intact = {name for name, digest in drawn.items() if _digest(folder / name) == digest}
    for name in wanted:
        if name in drawn and name not in intact:
            console.say(f"class pictures: {name} is gone or changed and is drawn anew")
    missing = [name for name in wanted if name not in intact]
    if not missing:
        return
    console.say(f"drawing {len(missing)} pictures of '{config.class_prompt}' into {folder}")
    parts = Components(base)
    family.load(parts, family.components, _dtype(config, runtime))
    pipeline = build_pipeline(family, parts).to(runtime.device)
    pipeline.set_progress_bar_config(disable=True)
    kept = {name: drawn[name] for name in intact}

    def keep(digests: dict[str, str]) -> None:
        kept.update(digests)
        _write_manifest(folder, origin, kept)

    try:
        _draw(pipeline, config, missing, folder, keep)
    except KeyboardInterrupt:
        done = sum(1 for name in wanted if name in kept)
        console.say(
            f"{done} of {len(wanted)} class pictures are drawn and kept in {folder}; the same "
            "command goes on"
        )
        raise
    del pipeline, parts
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()


def _draw(
    pipeline: Any,
    config: TrainConfig,
    names: Sequence[str],
    folder: Path,
    keep: Callable[[dict[str, str]], None],
) -> None:
    """Draw pictures batch by batch; `keep` is told of name -> sha256 after each."""
    with console.progress(len(names), "drawing the class", unit="picture") as bar:
        for start in range(0, len(names), config.sample_batch_size):
            batch = names[start : start + config.sample_batch_size]
            seeds = [_seed(name) for name in batch]
            prompts = [config.class_prompt or ""] * len(batch)
            digests = {}
            images = draw_together(pipeline, prompts, seeds, SAMPLING)
            for name, image in zip(batch, images, strict=True):
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                write_atomically(folder / name, buffer.getvalue())
                digests[name] = hashlib.sha256(buffer.getvalue()).hexdigest()
                bar.update()
            keep(digests)


def _drawn(folder: Path, origin: dict[str, Any]) -> dict[str, str]:
    """Name -> sha256 of the pictures that were drawn here before."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text("utf-8"))
        then, pictures = dict(manifest["origin"]), dict(manifest["pictures"])
        if not all(map(DRAWN.fullmatch, pictures)):
            raise ValueError("it names other files than drawn pictures")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error})", "Name an empty --class_data_dir."
        ) from error
    for name, value in origin.items():
        if then.get(name) != value:
            raise UserError(
                f"the class pictures in {folder} were drawn with {name} {then.get(name)!r}, "
                f"not {value!r}",
                "Name another --class_data_dir; nothing was changed there.",
            )
    return pictures


def _pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the user's own pictures in the folder, and of those that bear a drawn one's name."""
    if not folder.is_dir():
        return [], []
    try:
        names = [example.id for example in image_folder(folder)]
    except UserError:
        return [], []  # no pictures yet; what else is there is said when the folder is scanned
    drawn = [name for name in names if DRAWN.fullmatch(name)]
    return [name for name in names if name not in drawn], drawn


def _write_manifest(folder: Path, origin: dict[str, Any], pictures: dict[str, str]) -> None:
    content = {"origin": origin, "pictures": dict(sorted(pictures.items()))}
    write_atomically(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def _name(number: int) -> str:
    return f"drawn_{number:05d}.png"


def _seed(name: str) -> int:
    digest = hashlib.sha256(f"class picture {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _dtype(config: TrainConfig, runtime: Runtime) -> torch.dtype:
    precision = config.prior_generation_precision
    if precision is None:
        return runtime.dtype
    dtype, note = weight_dtype("no" if precision == "fp32" else precision, runtime.device)
    if note:
        console.say(note)
    return dtype

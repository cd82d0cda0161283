"""What an adapter's file says of its training, for programs that show it in their menus."""

from collections import Counter
from pathlib import Path
from typing import Any

from scumble.config import TrainConfig
from scumble.config.train import field_names
from scumble.formats.training_facts import SAME
from scumble.training.workshop import Workshop


def training_facts(workshop: Workshop, steps: int) -> dict[str, Any]:
    """The object that `formats/training_facts.TRAINING` describes.

    Nothing of the clock or of the output folder is in it, so that the same training writes the
    same bytes, and no path of this machine. What did not decide anything is left out.

    Args:
        workshop: the run's.
        steps: done so far.
    """
    config, gathered = workshop.config, workshop.gathered
    base = workshop.components.base
    names = set(field_names(config.method)) & SAME.keys()
    options = {name: getattr(config, name) for name in sorted(names)}
    pictures = gathered.train.examples
    folder = _folder(config)
    counts = Counter(example.bucket for example in pictures)
    tags = Counter(
        part.strip()
        for example in pictures
        for caption in example.captions
        for part in caption.split(",")
        if part.strip()
    )
    facts: dict[str, Any] = {k: value for k, value in options.items() if value is not None}
    if config.max_train_steps is not None:
        facts.pop("num_train_epochs", None)  # these decided nothing
    facts |= {
        "clip_skip": None,  # what the base's text encoder gives is taken as it is
        "steps": steps,
        "pictures": len(pictures),
        "resolution": config.resolution or workshop.family.geometry(base).native_px,
        "prediction_type": workshop.objective.prediction.value,
        "folders": {folder: {"n_repeats": config.repeats, "img_count": len(pictures)}},
        "tags": {folder: dict(sorted(tags.items()))},
        "buckets": [[width, height, n] for (height, width), n in sorted(counts.items())],
    }
    if gathered.class_pictures is not None:
        facts["class_pictures"] = len(gathered.class_pictures.examples)
    return facts


def _folder(config: TrainConfig) -> str:
    """The last part of where the pictures come from."""
    return Path(config.picture_folder or config.dataset_name or "").name or "pictures"

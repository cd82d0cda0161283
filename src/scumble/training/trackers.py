"""Trackers through accelerate: checked at the start, so that none of them stays silent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from scumble.config import TrainConfig
from scumble.errors import UserError, first_line

PROJECT_NAME = "text2image-fine-tune"


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is not installed: accelerate itself would only log a warning.

    Raises:
        UserError: naming what to install.
    """
    if name is None or name == "all":
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise UserError(f"--report_to {name} is not a tracker", f"Known: {known}, all.")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise UserError(
            f"--report_to {name} needs a package that is not installed",
            f"Run: pip install 'scumble[{name}]', or leave --report_to away: losses are always "
            "written to the output folder.",
        )


def start_trackers(accelerator: Any, config: TrainConfig) -> None:
    """Open the trackers that were asked for and give them the settings.

    Raises:
        UserError: a tracker does not start, for example because nobody is logged in.
    """
    if config.report_to is None:
        return
    settings = config.to_dict()
    lists = {key: " ".join(value) for key, value in settings.items() if isinstance(value, list)}
    settings = {k: "" if v is None else v for k, v in (settings | lists).items()}
    try:
        accelerator.init_trackers(PROJECT_NAME, config=settings)
    except Exception as error:
        raise UserError(
            f"the tracker {config.report_to} does not start: {first_line(error)}",
            "Log in first; wandb also works offline, with WANDB_MODE=offline.",
        ) from error


def log_images(
    accelerator: Any, images: Sequence[Image], captions: Sequence[str], step: int
) -> None:
    """Send sample pictures to the trackers that show pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
            tracker.writer.add_images("validation", pixels, step, dataformats="NHWC")
        elif tracker.name == "wandb":
            import wandb

            shown = [wandb.Image(i, caption=c) for i, c in zip(images, captions, strict=True)]
            tracker.log({"validation": shown}, step=step)

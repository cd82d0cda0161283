"""Trackers through accelerate: checked before the work begins, and never the end of a run."""

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from scumble import console
from scumble.config import TrainConfig
from scumble.config.sharing import shareable
from scumble.errors import UserError, first_line

PROJECT_NAME = "text2image-fine-tune"
EXTRAS = ("tensorboard", "trackio", "wandb")
"""Trackers that the package has an extra for; these show pictures as well."""


class Trackers:
    """The trackers of a run. One that fails while it trains is put away, and said so once.

    Args:
        names: as accelerate spells them; installed, and logged in where that is needed.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self._open: list[Any] = []

    def start(self, accelerator: Any, config: TrainConfig, done: int = 0) -> None:
        """Open the trackers and give them the settings, without tokens and paths.

        Args:
            accelerator: makes them.
            config: the run's settings.
            done: steps that a resumed run starts from; later ones are taken back where possible.

        Raises:
            UserError: one does not start.
        """
        settings = _flat(shareable(config.to_dict()))
        for name in self.names:
            accelerator.log_with = [name]
            try:
                accelerator.init_trackers(PROJECT_NAME, settings, _options(name, config, done))
            except Exception as error:
                raise UserError(
                    f"the tracker {name} does not start: {first_line(error)}",
                    f"Put it right, or leave {name} out of --report_to.",
                ) from error
            # Kept here: accelerate would let one that fails end the run.
            self._open += accelerator.trackers
            accelerator.trackers = []
        if "tensorboard" in self.names:
            console.say(f"watch it: tensorboard --logdir {_logs(config)}")

    def log(self, values: dict[str, float], step: int) -> None:
        """Send numbers of a step."""
        self._each(lambda tracker: tracker.log(values, step=step))

    def show(
        self, images: Sequence[Image], captions: Sequence[str], step: int, title: str = "validation"
    ) -> None:
        """Send pictures to the trackers that show pictures.

        Args:
            images: all of one size.
            captions: one for each.
            step: steps done.
            title: what they are called in the tracker.
        """
        if images:
            self._each(lambda tracker: _show(tracker, images, captions, step, title))

    def close(self) -> None:
        """Let the trackers finish what they have."""
        self._each(lambda tracker: tracker.finish())
        self._open = []

    def _each(self, act: Callable[[Any], None]) -> None:
        for tracker in list(self._open):
            try:
                act(tracker)
            except Exception as error:
                self._open.remove(tracker)
                console.say(
                    f"the tracker {tracker.name} failed and gets nothing more: "
                    f"{first_line(error)}\n  The run goes on; log.jsonl has all of its numbers."
                )


def choose_trackers(names: Iterable[str]) -> list[str]:
    """The trackers that a run reports to.

    Args:
        names: of --report_to; without any, tensorboard where it is installed.

    Raises:
        UserError: one is unknown, not installed, or nobody is logged in.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    wanted = list(dict.fromkeys(names))
    if not wanted:
        return ["tensorboard"] if find_spec("tensorboard") else []
    if "none" in wanted:
        if len(wanted) > 1:
            raise UserError("--report_to none stands alone", "Leave the other names out, or none.")
        return []
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in wanted:
        if name not in (*LOGGER_TYPE_TO_CLASS, "all"):
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UserError(f"--report_to {name} is not a tracker", f"Known: {known}, all, none.")
        if name not in (*available, "all"):
            package = f"'scumble[{name}]'" if name in EXTRAS else name
            raise UserError(
                f"--report_to {name} needs a package that is not installed",
                f"Run: pip install {package}, or leave it out of --report_to: losses are always "
                "written to the output folder.",
            )
    chosen = available if "all" in wanted else wanted
    if "wandb" in chosen and console.is_main_process():
        _check_login()
    return chosen


def _check_login() -> None:
    """Make sure that wandb knows who it is, before anything long is done.

    Raises:
        UserError: nobody is logged in, or its server cannot be asked.
    """
    import wandb

    try:
        # A user at a terminal is asked for the key here.
        if wandb.setup().settings.mode == "online":
            wandb.login()
    except Exception as error:
        raise UserError(
            f"--report_to wandb cannot log in: {first_line(error)}",
            "Log in once with `wandb login`, or set WANDB_MODE=offline to keep the run on this "
            "machine and upload it later with `wandb sync`.",
        ) from error


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as every tracker takes them: numbers, words and truth values."""
    lists = {key: " ".join(value) for key, value in settings.items() if isinstance(value, list)}
    return {key: "" if value is None else value for key, value in (settings | lists).items()}


def _logs(config: TrainConfig) -> Path:
    return Path(config.output_dir) / config.logging_dir


def _options(name: str, config: TrainConfig, done: int) -> dict[str, dict[str, Any]]:
    """Call the run by its folder, and keep there what it writes."""
    title = Path(config.output_dir).resolve().name
    match name:
        case "tensorboard" if done:
            return {name: {"purge_step": done + 1}}
        case "wandb":
            _logs(config).mkdir(parents=True, exist_ok=True)
            return {name: {"name": title, "dir": str(_logs(config))}}
        case "trackio":
            return {name: {"name": title, "embed": False}}
    return {}


def _show(
    tracker: Any, images: Sequence[Image], captions: Sequence[str], step: int, title: str
) -> None:
    if tracker.name == "tensorboard":
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
        tracker.writer.add_images(title, pixels, step, dataformats="NHWC")
    elif tracker.name == "wandb":
        import wandb

        shown = [wandb.Image(i, caption=c) for i, c in zip(images, captions, strict=True)]
        tracker.log({title: shown}, step=step)
    elif tracker.name == "trackio":
        import trackio

        pairs = zip(images, captions, strict=True)
        shown = [trackio.Image(image, caption=caption) for image, caption in pairs]
        tracker.log({f"{title} {n}": image for n, image in enumerate(shown)}, step=step)

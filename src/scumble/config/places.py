"""Which names and folders a configuration may give: those that can be, and not one in another."""

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from scumble.config.sharing import LOCAL_PATHS
from scumble.errors import UserError

if TYPE_CHECKING:
    from scumble.config.train import TrainConfig

PICTURE_FOLDERS = ("train_data_dir", "instance_data_dir", "validation_data_dir", "class_data_dir")


def check_places(config: "TrainConfig") -> None:
    """Refuse names that cannot be, and an output folder where it would do harm.

    Raises:
        UserError: naming the flag.
    """
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, str) and item.name in LOCAL_PATHS:
            _check_path(item.name, value)
    logs = Path(os.path.normpath(config.logging_dir))
    if logs.is_absolute() or logs.parts[:1] == ("..",):
        raise UserError(
            f"--logging_dir {config.logging_dir} is outside of the output folder",
            "Give a name inside it, such as logs.",
        )
    out = Path(os.path.realpath(config.output_dir))
    for name in PICTURE_FOLDERS:
        folder = getattr(config, name)
        if folder is not None and out.is_relative_to(os.path.realpath(Path(folder).expanduser())):
            raise UserError(
                f"the output folder {config.output_dir} lies in --{name} {folder}",
                "What is drawn there would be learnt by the next run: name another --output_dir.",
            )


def _check_path(name: str, value: str) -> None:
    if not value.strip():
        raise UserError(f"--{name} names nothing", "Give a path, or leave the flag away.")
    try:
        Path(value).expanduser().exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"--{name}: there can be nothing at {value[:200]} ({reason})"
        raise UserError(message, "Check the path.") from error

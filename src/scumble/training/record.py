"""The output folder of a run: who may write into it, and its record in run.json."""

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scumble.config import TrainConfig
from scumble.errors import Stopped, UserError, first_line
from scumble.formats.container import require_writable, write_atomically
from scumble.formats.files import BUNDLE_NAME, EMBEDS_NAME, WEIGHT_NAME
from scumble.training.checkpoints import MAY_DIFFER, Checkpoint

RECORD_NAME = "run.json"
MODEL_NAME = "model"
"""Folder of a whole model that was taught."""
RESULTS = (BUNDLE_NAME, WEIGHT_NAME, EMBEDS_NAME, MODEL_NAME)
"""What a run may leave behind, the one to load first."""


@dataclass
class Record:
    """What a run is and how far it got; `save` writes it to run.json.

    Args:
        config: the resolved settings.
        facts: everything found out on the way: counts, times, files.
        started: when this sitting began, in seconds since 1970.
    """

    config: TrainConfig
    facts: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def save(self, status: str) -> None:
        """Write the record.

        Args:
            status: "running", "stopped", "failed" or "finished".

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(self.config.output_dir)
        if status == "finished":
            self.facts["result"] = result_of(folder).name
        content = {
            "status": status,
            "started": self.started,
            "process": this_process(),
            "settings": self.config.to_dict(),
            "versions": versions(),
            **self.facts,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / RECORD_NAME, text.encode())

    def save_end(self, error: BaseException) -> None:
        """Note what ended the run, unless it was finished by then."""
        if "result" in self.facts:
            return
        by_user = isinstance(error, Stopped | KeyboardInterrupt)
        if not by_user:
            self.facts["error"] = first_line(error)
        with suppress(UserError):  # the disk may be what failed; the error itself is to be shown
            self.save("stopped" if by_user else "failed")


def this_process() -> dict[str, Any]:
    """What tells this process from any other, so that a run that was cut off is known as one."""
    import psutil

    started = float(psutil.Process().create_time())
    return {"pid": os.getpid(), "started": started, "host": platform.node()}


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("scumble", "torch", "diffusers", "transformers", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def is_finished(config: TrainConfig) -> bool:
    """Whether the output folder holds a finished run of the very settings that are asked for."""
    path = Path(config.output_dir) / RECORD_NAME
    try:
        record = json.loads(path.read_text("utf-8"))
        then, now = record["settings"], config.to_dict()
        return record["status"] == "finished" and all(
            then.get(name) == value for name, value in now.items() if name not in MAY_DIFFER
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def result_of(folder: Path) -> Path:
    """The file or folder to load, of a finished run."""
    return next((folder / name for name in RESULTS if (folder / name).exists()), folder)


def claim_output(config: TrainConfig, checkpoint: Checkpoint | None) -> None:
    """Make sure that the output folder can be written and holds nothing that would be lost.

    The folder itself is made with the first file, so that a run that fails early leaves none.

    Args:
        config: the run's settings.
        checkpoint: that the run goes on from.

    Raises:
        UserError: it holds another run or other files, or cannot be written.
    """
    folder = Path(config.output_dir)
    try:
        continues = checkpoint is not None and checkpoint.folder.parent.samefile(folder)
    except OSError:
        continues = False
    try:
        if folder.is_dir() and not continues:
            _require_empty(folder, config)
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be read: {error.strerror}") from error
    require_writable(folder, "--output_dir")


def _require_empty(folder: Path, config: TrainConfig) -> None:
    resuming = config.resume_from_checkpoint is not None
    names = {path.name for path in folder.iterdir()} - {config.logging_dir}
    if resuming and RECORD_NAME in names and not names.intersection(RESULTS):
        return  # a run that was stopped before its first checkpoint
    if RECORD_NAME in names:
        raise UserError(
            f"{folder} already holds a run",
            "Go on with it (--resume_from_checkpoint latest), or name another --output_dir.",
        )
    if names:
        raise UserError(
            f"the output folder {folder} is not empty",
            "Nothing in it was touched. Name an empty or new folder with --output_dir.",
        )

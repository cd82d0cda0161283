"""The output folder of a run: who may write into it, and its record in run.json."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scumble import console
from scumble.config import TrainConfig
from scumble.drafts import is_draft, sweep
from scumble.errors import Stopped, UserError, first_line
from scumble.formats.container import require_writable, write_atomically
from scumble.formats.files import BUNDLE_NAME, EMBEDS_NAME, WEIGHT_NAME
from scumble.formats.witnesses import RECORD_NAME, sha256_of
from scumble.training.checkpoints import BEST, MAY_DIFFER, Checkpoint
from scumble.training.lock import LOCK_NAME

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
    is_finished: bool = field(default=False, init=False)

    def save(self, status: str) -> None:
        """Write the record.

        Args:
            status: "running", "stopped", "failed" or "finished".

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(self.config.output_dir)
        content = {
            "status": status,
            "started": self.started,
            "process": this_process(),
            "settings": self.config.to_dict(),
            "versions": versions(),
            **self.facts,
        }
        if status == "finished":
            content |= {"result": result_of(folder).name, "sha256": hashes_of(folder)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / RECORD_NAME, text.encode())
        self.is_finished = status == "finished"

    @contextmanager
    def of_a_run(self, is_main: bool) -> Iterator[None]:
        """Say that a run is under way, and in the end how it ended."""
        if is_main:
            self.save("running")
        try:
            yield
        except BaseException as error:
            if is_main:
                self._save_end(error)
            raise

    def _save_end(self, error: BaseException) -> None:
        """Note what ended the run, unless it was finished by then."""
        if self.is_finished:
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
    """Whether the output folder holds a finished run of the very settings that are asked for.

    It is not finished where its result is damaged, which is said: it can be made anew.
    """
    folder = Path(config.output_dir)
    try:
        record = json.loads((folder / RECORD_NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    match record:
        case {"status": "finished", "settings": dict(then)}:
            now = config.to_dict()
            same = all(then.get(n) == value for n, value in now.items() if n not in MAY_DIFFER)
        case _:
            return False
    if not same:
        return False
    damaged = _damaged(folder, record.get("sha256"))
    for name in damaged:
        console.say(f"{folder / name} is damaged or gone, and is made anew from the checkpoint")
    return not damaged


def hashes_of(folder: Path) -> dict[str, str]:
    """Name -> sha256 of the files that a finished run taught, those of a whole model included."""
    found = [folder / name for name in RESULTS if (folder / name).exists()]
    files = [f for path in found for f in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return {f.relative_to(folder).as_posix(): sha256_of(f) for f in files if f.is_file()}


def _damaged(folder: Path, hashes: object) -> list[str]:
    """Results that are not as the record says; runs of early versions say nothing."""
    if not isinstance(hashes, dict):
        return []
    found = hashes_of(folder)
    return [str(name) for name, digest in hashes.items() if found.get(name) != digest]


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
    sweep(path for path in folder.glob(".*.tmp") if not path.name.startswith(f".{BEST}."))
    sweep((folder / "samples").glob(".*.tmp"))


def _require_empty(folder: Path, config: TrainConfig) -> None:
    resuming = config.resume_from_checkpoint is not None
    present = {path.name for path in folder.iterdir() if not is_draft(path)}
    names = present - {config.logging_dir, LOCK_NAME}
    if resuming and RECORD_NAME in names and not names.intersection(RESULTS):
        return  # a run that was stopped before its first checkpoint
    if RECORD_NAME in names:
        more = " and more --max_train_steps" if names.intersection(RESULTS) else ""
        raise UserError(
            f"{folder} already holds a run{' and its result' if more else ''}",
            f"Go on with it (--resume_from_checkpoint latest{more}), or name another --output_dir.",
        )
    if names:
        raise UserError(
            f"the output folder {folder} is not empty",
            "Nothing in it was touched. Name an empty or new folder with --output_dir.",
        )

"""Checkpoints: written whole or not at all, verified before they are trusted."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from scumble.config import TrainConfig
from scumble.errors import UserError, first_line

MANIFEST = "manifest.json"
STATE = "training_state.pt"
NAME = re.compile(r"checkpoint-(\d+)")
BEST = "best"
"""Folder of the checkpoint that did best on held-out pictures."""
MAY_DIFFER = {
    "output_dir",
    "resume_from_checkpoint",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "report_to",
    "logging_dir",
    "dataloader_num_workers",
    "cuda_graph",
    "push_to_hub",
    "hub_model_id",
    "hub_private",
}
"""Settings that do not change what is learnt."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been verified.

    Args:
        folder: where it lies.
        step: optimizer steps done in the whole run.
        settings: the configuration it was written under.
        data_digest: fingerprint of the training data.
    """

    folder: Path
    step: int
    settings: dict[str, Any]
    data_digest: str

    def training_state(self) -> dict[str, Any]:
        """What was given to `CheckpointWriter.write`.

        Raises:
            UserError: it is something else; nothing of it was run.
        """
        path = self.folder / STATE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's own text advises to switch the protection off
            reason = "it is damaged, or holds more than tensors; nothing of it was run"
            raise UserError(f"{path} cannot be read: {reason}", ANOTHER) from error
        if not isinstance(state, dict) or not state.keys() >= STATE_KEYS:
            raise UserError(f"{path} holds no state of a training", ANOTHER)
        return state

    def differences(self, config: TrainConfig) -> list[str]:
        """Settings that change what is learnt and are not as they were, worded for the user."""
        now = config.to_dict()
        return [
            f"--{key} was {self.settings.get(key)} and is {value} now"
            for key, value in now.items()
            if key not in MAY_DIFFER and self.settings.get(key) != value
        ]


class CheckpointWriter:
    """Writes checkpoints of one run into its output folder.

    Args:
        config: the run's settings; its output folder and limit apply.
        data_digest: fingerprint of the training data.
    """

    def __init__(self, config: TrainConfig, data_digest: str) -> None:
        self.config = config
        self.root = Path(config.output_dir)
        self.data_digest = data_digest

    def make_way(self, step: int) -> None:
        """Set checkpoints beyond `step` aside under another name, and clear unfinished ones.

        They belong to what the run did before it was taken back to `step`; "latest" must not find
        them.
        """
        best = self.root / BEST
        for folder in [*_folders(self.root), *([best] if best.is_dir() else [])]:
            if _step_of(folder) > step:
                free = (self.root / f"superseded-{n}-{folder.name}" for n in count(1))
                folder.rename(next(path for path in free if not path.exists()))
        for pattern in (".checkpoint-*.tmp", f".{BEST}.*.tmp"):
            for draft in self.root.glob(pattern):
                shutil.rmtree(draft, ignore_errors=True)

    def write(
        self,
        step: int,
        save_results: Callable[[Path], object],
        state: Mapping[str, Any],
        name: str | None = None,
    ) -> Path:
        """Write one checkpoint, then remove the oldest beyond the limit.

        It appears under its name only once everything in it is on the disk.

        Args:
            step: optimizer steps done in the whole run.
            save_results: writes adapter files and the like into the folder that it is given.
            state: everything needed to go on.
            name: of a checkpoint that stays beside the numbered ones.

        Raises:
            UserError: the folder cannot be written; older checkpoints are still there then.
        """
        final = self.root / (name or f"checkpoint-{step}")
        draft = self.root / f".{final.name}.{os.getpid()}.tmp"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            save_results(draft)
            torch.save(dict(state), draft / STATE)
            manifest = {
                "step": step,
                "settings": self.config.to_dict(),
                "data_digest": self.data_digest,
                "files": {path.name: _fingerprint(path) for path in sorted(draft.iterdir())},
            }
            (draft / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
            for path in draft.iterdir():
                _sync(path)
            _replace(final, draft)
            if os.name != "nt":
                _sync(self.root)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError of a full disk
            shutil.rmtree(draft, ignore_errors=True)
            raise UserError(
                f"cannot write {final}: {first_line(error)}",
                "Older checkpoints are untouched. Make room, then go on with "
                "--resume_from_checkpoint latest.",
            ) from error
        self._remove_oldest()
        return final

    def _remove_oldest(self) -> None:
        limit = self.config.checkpoints_total_limit
        if limit is not None:
            for folder in _folders(self.root)[limit:]:
                shutil.rmtree(folder)


def find_checkpoint(config: TrainConfig) -> tuple[Checkpoint | None, list[str]]:
    """Find the checkpoint that --resume_from_checkpoint means.

    Returns:
        The checkpoint, None where "latest" finds none; and what was noticed on the way, such as
        damaged ones that were passed over.

    Raises:
        UserError: the path given is no intact checkpoint.
    """
    wanted = config.resume_from_checkpoint
    if wanted is None:
        return None, []
    notes: list[str] = []
    if wanted == "latest":
        for folder in _folders(Path(config.output_dir)):
            try:
                return open_checkpoint(folder), notes
            except UserError as error:
                notes.append(f"passed over {folder.name}: {error.message}")
        if notes:
            raise UserError(
                f"no checkpoint in {config.output_dir} is intact: {'; '.join(notes)}",
                "Nothing was changed. Name another --output_dir to start anew.",
            )
        notes.append(f"no checkpoint in {config.output_dir}: starting from the beginning")
        return None, notes
    folder = Path(wanted).expanduser()
    if not folder.is_dir():
        folder = Path(config.output_dir) / wanted
    if not folder.is_dir():
        names = ", ".join(found.name for found in _folders(Path(config.output_dir))) or "none"
        raise UserError(
            f"there is no checkpoint '{wanted}'", f"In {config.output_dir} there are: {names}."
        )
    return open_checkpoint(folder), notes


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint's files.

    Raises:
        UserError: one is missing or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        for name, fingerprint in manifest["files"].items():
            if _fingerprint(folder / name) != fingerprint:
                raise UserError(f"{name} in {folder} is damaged", "Resume from an older one.")
        return Checkpoint(
            folder, int(manifest["step"]), manifest["settings"], manifest["data_digest"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no complete checkpoint ({error})") from error


def _replace(final: Path, draft: Path) -> None:
    """Put a folder in the place of another, which is there until the new one is."""
    old = draft.with_name(f"{draft.name}.old.tmp")
    if final.exists():
        final.rename(old)
    draft.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(folder: Path) -> float:
    """The step that a checkpoint belongs to; beyond every step for a damaged best one."""
    if folder.name != BEST:
        return int(folder.name.partition("-")[2])
    try:
        return open_checkpoint(folder).step
    except UserError:
        return float("inf")


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

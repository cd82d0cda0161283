"""Checkpoints: written whole or not at all, verified before they are trusted."""

import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.drafts import draft_of, sweep, sync
from scumble.errors import UserError, first_line
from scumble.formats.pickled import restricted
from scumble.training.manifest import ANOTHER, read_manifest, write_manifest

STATE = "training_state.pt"
STATE_KEYS = {"parameters", "update", "average", "choice", "phase"}
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
    "debug_batches",
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
            state = restricted(path)
        except Exception as error:  # torch's own text advises to switch the protection off
            reason = "it is damaged, or holds more than tensors; nothing of it was run"
            raise UserError(f"{path} cannot be read: {reason}", ANOTHER) from error
        if not isinstance(state, dict) or not state.keys() >= STATE_KEYS:
            raise UserError(f"{path} holds no state of a training", ANOTHER)
        return state

    def differences(
        self, config: TrainConfig, besides: Collection[str] = frozenset(MAY_DIFFER)
    ) -> list[str]:
        """Settings that change what is learnt and are not as they were, worded for the user."""
        now = config.to_dict()
        return [
            f"--{key} was {self.settings.get(key)} and is {value} now"
            for key, value in now.items()
            if key not in besides and self.settings.get(key) != value
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
                aside = next(path for path in free if not path.exists())
                folder.rename(aside)
                console.say(f"beyond step {step} or damaged: {folder.name} is {aside.name} now")
        drafts = [path for path in self.root.glob(".*.tmp") if path.is_dir()]
        if not best.is_dir():
            _put_back(drafts, step, best)
        sweep(drafts)

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
            UserError: the folder cannot be written, or there is nothing good to write; older
                checkpoints are still there then.
        """
        _require_finite(step, state)
        final = self.root / (name or f"checkpoint-{step}")
        draft = draft_of(final)
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            save_results(draft)
            torch.save(dict(state), draft / STATE)
            about = {
                "step": step,
                "settings": self.config.to_dict(),
                "data_digest": self.data_digest,
            }
            write_manifest(draft, about)
            for path in (*draft.iterdir(), draft):
                sync(path)
            _replace(final, draft)
            sync(self.root)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError of a full disk
            shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, torch.OutOfMemoryError):
                raise  # of memory, which is explained elsewhere
            known = isinstance(error, OSError)
            words = first_line(error) if known else f"disk full? torch says: {first_line(error)}"
            raise UserError(
                f"cannot write {final}: {words}",
                "Older checkpoints are untouched. Make room, then go on with "
                "--resume_from_checkpoint latest.",
            ) from error
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
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


def newest_intact(root: Path) -> Path | None:
    """The newest checkpoint of a run whose files are whole; None where there is none."""
    for folder in _folders(root):
        with suppress(UserError):
            return open_checkpoint(folder).folder
    return None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint's files.

    Raises:
        UserError: one is missing or damaged.
    """
    manifest = read_manifest(folder)
    if STATE not in manifest["files"]:
        raise UserError(f"{folder} holds no state of a training", ANOTHER)
    named = NAME.fullmatch(folder.name)
    if named is not None and int(named[1]) != manifest["step"]:
        raise UserError(f"{folder} is of step {manifest['step']}, whatever its name", ANOTHER)
    return Checkpoint(folder, manifest["step"], manifest["settings"], manifest["data_digest"])


def _require_finite(step: int, state: Mapping[str, Any]) -> None:
    """Refuse what a step has ruined that no later one comes to find out.

    Raises:
        UserError: naming a parameter.
    """
    for part in ("parameters", "average"):
        for name, tensor in state.get(part, {}).items():
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"after step {step}, {name} holds NaN or infinite values",
                    "Older checkpoints are untouched. Lower --learning_rate, then go on with "
                    "--resume_from_checkpoint latest.",
                )


def _replace(final: Path, draft: Path) -> None:
    """Put a folder in the place of another; killed in between, `make_way` puts the old one back."""
    old = draft_of(final.with_name(f"{final.name}.before"))
    if final.exists():
        final.rename(old)
    draft.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(drafts: Iterable[Path], step: int, best: Path) -> None:
    """Give the best checkpoint its name again, where its writer was killed while replacing it."""
    found = {}
    for draft in drafts:
        with suppress(UserError):
            if draft.name.startswith(f".{BEST}.") and open_checkpoint(draft).step <= step:
                found[open_checkpoint(draft).step] = draft
    if found:
        found[max(found)].rename(best)


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

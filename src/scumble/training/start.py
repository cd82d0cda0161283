"""Where a run begins: at the beginning, at a checkpoint, or where its launcher started it anew."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scumble import console
from scumble.config import TrainConfig
from scumble.formats.witnesses import RECORD_NAME
from scumble.training.checkpoints import Checkpoint, find_checkpoint
from scumble.training.launch import launcher, restarts
from scumble.training.record import claim_output, is_finished
from scumble.training.sharing import check_destination

LAUNCHER = "launcher"
"""Fact of a run's record: which launcher started it."""


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Args:
        checkpoint: to go on from; None at the beginning.
        notes: what was noticed on the way, for the user.
        is_finished: whether nothing is left to do.
    """

    checkpoint: Checkpoint | None
    notes: list[str]
    is_finished: bool


def find_start(config: TrainConfig) -> Start:
    """Find where a run begins, and make sure that its output folder is its own.

    Raises:
        UserError: there is no such checkpoint, or the folder holds something else.
    """
    config = _after_restart(config)
    checkpoint, notes = find_checkpoint(config)
    claim_output(config, checkpoint)
    check_destination(config)
    return Start(checkpoint, notes, checkpoint is not None and is_finished(config))


def _after_restart(config: TrainConfig) -> TrainConfig:
    """Let a run go on by itself that its launcher has started anew."""
    folder = Path(config.output_dir)
    # Not with another run, whose folder the first attempt was refused.
    if not restarts() or _recorded_launcher(folder) != launcher():
        return config
    console.say(f"started anew by the launcher ({restarts()}): the run goes on by itself")
    if config.resume_from_checkpoint is not None and not any(folder.glob("checkpoint-*")):
        return config
    return replace(config, resume_from_checkpoint="latest")


def _recorded_launcher(folder: Path) -> Any:
    try:
        record = json.loads((folder / RECORD_NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record.get(LAUNCHER) if isinstance(record, dict) else None

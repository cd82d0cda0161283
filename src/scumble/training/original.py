"""What is to be reproduced: the settings, data and base of an adapter file or a run's folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from scumble import console
from scumble.config import METHOD_GROUPS, TrainConfig
from scumble.config.values import as_type
from scumble.errors import UserError
from scumble.formats.container import read_content, user_path
from scumble.formats.files import FILE_NAMES, adapter_file
from scumble.formats.training_facts import training_facts
from scumble.formats.witnesses import MANIFEST, RECORD_NAME
from scumble.hub.pull import local_adapter
from scumble.training.blueprint import BLUEPRINT, deciding
from scumble.training.checkpoints import newest_intact, open_checkpoint
from scumble.training.picture_list import PictureSets, read_list
from scumble.training.record import result_of


@dataclass(frozen=True)
class Original:
    """A run as its files describe it.

    Args:
        name: for the folder of the new run.
        settings: options that decide what is learnt, in the types of their fields.
        lacking: flag -> last part of a path that the files do not tell.
        plan: see `blueprint.BLUEPRINT`; empty where the run is older than that.
        pictures: the list in the run's folder; None where it is not at hand.
        result: the adapter file or the model's folder; None where the run came to none.
        place: folder of the result inside the run's folder: "" for the final one; None where only
            the number of steps tells.
        steps: after which the result was taken; None where it is the final one.
        unknown: settings that this version does not have.
    """

    name: str
    settings: dict[str, Any]
    lacking: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    pictures: PictureSets | None = None
    result: Path | None = None
    place: str | None = ""
    steps: int | None = None
    unknown: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """What was taught, and how."""
        return str(self.settings["method"])

    @property
    def output_dir(self) -> str:
        """Where the new run goes if nothing is said: a folder here, named after the old one."""
        return f"{self.name}-reproduced"

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of flags that the user does not give."""
        settings = {name: value for name, value in self.settings.items() if name != "method"}
        # So that the very step that is to be compared leaves a checkpoint.
        step = {} if self.steps is None else {"checkpointing_steps": self.steps}
        return {**settings, **step, "output_dir": self.output_dir}


def open_original(source: str) -> Original:
    """Find out how something was trained.

    Args:
        source: an adapter file, the folder of a run or of a checkpoint, or a Hub id.

    Raises:
        UserError: there is nothing, or it does not say how it was trained.
    """
    path = user_path(source)
    if (path / MANIFEST).is_file():
        return _of_checkpoint(path)
    if (path / RECORD_NAME).is_file():
        return _of_run(path)
    file = adapter_file(local_adapter(source))
    metadata = read_content(file, outline=True).metadata
    plan = _parsed(metadata.get(BLUEPRINT), str(file))
    if not plan:
        raise UserError(
            f"{file} does not say how it was trained",
            "Only files that this version of scumble has trained do; a run's folder says it too.",
        )
    lacking = dict(plan.get("lacking", {}))
    told = {k: v for k, v in plan.get("settings", {}).items() if k not in lacking}
    settings, unknown = _typed(told, str(file))
    name = file.parent.resolve().name if file.name in FILE_NAMES else file.stem
    steps = training_facts(metadata).get("steps")
    return Original(
        name, settings, lacking, plan, None, file, None, int(steps) if steps else None, unknown
    )


def _of_checkpoint(folder: Path) -> Original:
    checkpoint = open_checkpoint(folder)
    run = folder.resolve().parent
    file = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
    metadata = {} if file is None else read_content(file, outline=True).metadata
    settings, unknown = _typed(deciding(checkpoint.settings), str(folder))
    return Original(
        run.name,
        settings,
        plan=_parsed(metadata.get(BLUEPRINT), str(file)) or _plan_of(run),
        pictures=read_list(run),
        result=file,
        place=folder.resolve().name,
        steps=checkpoint.step,
        unknown=unknown,
    )


def _plan_of(run: Path) -> dict[str, Any]:
    """What the record of a checkpoint's run says; nothing where it has gone."""
    try:
        record = json.loads((run / RECORD_NAME).read_text("utf-8"))
        return _parsed(json.dumps(record[BLUEPRINT]), str(run))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _of_run(folder: Path) -> Original:
    try:
        record = json.loads((folder / RECORD_NAME).read_text("utf-8"))
        status, told = record["status"], deciding(record["settings"])
        plan = dict(record.get(BLUEPRINT, {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        newest = newest_intact(folder)
        if newest is None:
            message = f"{folder / RECORD_NAME} is damaged, and there is no checkpoint"
            raise UserError(message, "Reproduce the adapter's file instead.") from error
        console.say(f"{folder / RECORD_NAME} is damaged: {newest.name} is taken instead")
        return _of_checkpoint(newest)
    settings, unknown = _typed(told, str(folder / RECORD_NAME))
    name = folder.resolve().name
    whole = Original(name, settings, plan=plan, pictures=read_list(folder), unknown=unknown)
    if status == "finished":
        return replace(whole, result=result_of(folder))
    newest = newest_intact(folder)
    if newest is None:
        return whole
    console.say(f"the run in {folder} is not finished: {newest.name} is compared")
    part = _of_checkpoint(newest)
    return replace(whole, result=part.result, place=part.place, steps=part.steps)


def _parsed(text: str | None, where: str) -> dict[str, Any]:
    try:
        plan = json.loads(text or "{}")
        if isinstance(plan, dict) and all(isinstance(plan.get(k, {}), dict) for k in DICTS):
            return plan
    except (ValueError, RecursionError):
        pass
    raise UserError(f"what {where} says of its training is damaged", "Take another copy of it.")


DICTS = ("settings", "lacking", "pictures", "base", "versions", "machine")


def _typed(told: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings in the types of their fields, and those that this version does not know.

    Raises:
        UserError: one of another type, or no known method.
    """
    hints = get_type_hints(TrainConfig)
    known = {
        name: as_type(value, hints[name], f"{where}: '{name}'")
        for name, value in told.items()
        if name in hints
    }
    if known.get("method") not in METHOD_GROUPS:
        raise UserError(
            f"{where} names no known method of training", "It may be of a later version."
        )
    return known, tuple(f"--{name} {value}" for name, value in told.items() if name not in hints)

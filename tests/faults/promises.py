"""What a run promises at every moment, and what it owes in the end."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fork_server import TRACEBACK, Outcome
from recipes import Workplace

from scumble.errors import UserError
from scumble.runs.listing import read_run
from scumble.training.checkpoints import open_checkpoint
from scumble.training.lock import LOCK_NAME

TIMED = ("run.json", "log.jsonl", "events.jsonl", "manifest.json", LOCK_NAME)
"""Files that say when and how; what else a run leaves has the same bytes every time."""


@dataclass(frozen=True)
class Standard:
    """What an undisturbed run left behind.

    Args:
        files: path in the output folder -> sha256, of everything but `TIMED`.
        log: what every step and measurement gave.
        lines: of each phase.
    """

    files: dict[str, str]
    log: list[dict[str, Any]]
    lines: dict[str, int]


def standard(place: Workplace, lines: dict[str, int]) -> Standard:
    """Take what an undisturbed run has left in its workplace."""
    return Standard(files(place.out), log(place.out), lines)


def files(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of what a run leaves, without what `make_way` set aside."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.name not in TIMED and not path.relative_to(folder).parts[0].startswith("superseded")
    }


def log(folder: Path) -> list[dict[str, Any]]:
    """What every whole line of the log says was computed or drawn."""
    path = folder / "log.jsonl"
    lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []
    wanted = ("step", "loss", "lr", "grad_norm", "held_out_loss", "samples")
    return [
        {name: value for name, value in json.loads(line).items() if name in wanted}
        for line in lines
    ]


def newest(folder: Path) -> int:
    """The step of the newest intact checkpoint; 0 where there is none."""
    return max((open_checkpoint(path).step for path in folder.glob("checkpoint-*")), default=0)


def broken_in_between(
    place: Workplace, good: Standard, before: int, statuses: Sequence[str]
) -> list[str]:
    """What is not as promised behind an early end.

    Args:
        place: of the run.
        good: what an undisturbed run leaves.
        before: the newest checkpoint's step when the run was started.
        statuses: that the run may have.
    """
    out, broken = place.out, []
    for path in [*out.glob("checkpoint-*"), *out.glob("best")]:
        try:
            open_checkpoint(path)
        except UserError as error:
            broken.append(error.message)
    if not broken and newest(out) < before:
        broken.append(f"the checkpoint of step {before} is gone, {newest(out)} is the newest")
    now = files(out)
    lost = pictures_failed(place)
    for name, digest in good.files.items():
        told = "/" in name or (lost and name == "README.md")
        if not told and now.get(name, digest) != digest:
            broken.append(f"{name} is neither absent nor whole")
    entries, wanted = _numbers(log(out), lost), _numbers(good.log, lost)
    if entries != wanted[: len(entries)]:
        broken.append("the log tells of other steps than were taken")
    if not (out / "run.json").exists():
        return broken
    status = read_run(out).status
    if status not in statuses:
        broken.append(f"the run counts as {status}")
    if status == "finished" and now.keys() != good.files.keys():
        broken.append("the run counts as finished, and is not")
    return broken


def broken_in_the_end(place: Workplace, good: Standard, last: Outcome) -> list[str]:
    """What is not as in the undisturbed run, where it came to its end at last."""
    broken = []
    if last.code:
        kind = "a traceback" if last.code == TRACEBACK else f"code {last.code}"
        return [f"resuming ended with {kind}: {last.output.strip()[-300:]}"]
    now = files(place.out)
    lost, stops = pictures_failed(place), checkpoints_of_stops(place)
    for name in sorted(now.keys() | good.files.keys()):
        if lost and (name.endswith(".png") or name == "README.md"):
            continue
        if name not in good.files and name.partition("/")[0] in stops:
            continue
        if now.get(name) != good.files.get(name):
            state = "left over" if name not in good.files else "different"
            broken.append(f"{name} is {state if name in now else 'missing'}")
    if _numbers(log(place.out), lost) != _numbers(good.log, lost):
        broken.append("the log differs")
    if read_run(place.out).status != "finished":
        broken.append(f"the run counts as {read_run(place.out).status}")
    left = [*place.folder.rglob("*.tmp"), *place.out.glob(LOCK_NAME)]
    broken += [f"{path.name} is left over" for path in left]
    return broken


def pictures_failed(place: Workplace) -> bool:
    """Whether a sitting said that pictures failed and that it goes on: they cost no training."""
    return "pictures failed" in _said(place)


def checkpoints_of_stops(place: Workplace) -> set[str]:
    """The checkpoints that sittings said they left where they were stopped."""
    return set(re.findall(r"stopped after step .* is in \S*(checkpoint-\d+)", _said(place)))


def _said(place: Workplace) -> str:
    paths = sorted(place.folder.parent.glob(f"{place.folder.name}-said-*.txt"))
    return "\n".join(path.read_text("utf-8", "replace") for path in paths)


def _numbers(entries: list[dict[str, Any]], without_pictures: bool) -> list[dict[str, Any]]:
    return [entry for entry in entries if not (without_pictures and "samples" in entry)]

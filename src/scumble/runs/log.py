"""A run's log as others read it: from where they were, or its end. A torn line does no harm."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

LOG_NAME = "log.jsonl"
TAIL_BYTES = 64 * 1024
"""So much of a log's end says how a run is doing: some 200 steps."""
PACE_STEPS = 50
"""The pace of a run is that of so many steps."""


@dataclass(frozen=True)
class Position:
    """How far a log has been read.

    Args:
        offset: bytes read.
        file: which file it was: a resumed run puts a new one in the place of the old.
    """

    offset: int = 0
    file: int = 0


@dataclass(frozen=True)
class News:
    """What a log has got since it was last read.

    Args:
        entries: new ones, oldest first.
        position: to go on from.
        restarted: the log was replaced: `entries` are all there are, forget those from before.
    """

    entries: list[dict[str, Any]]
    position: Position
    restarted: bool


def follow(folder: str | Path, since: Position | None = None) -> News:
    """Read what a run has logged since the last time.

    Entries of a step have "loss" and "elapsed_s", measurements "held_out_loss", drawn pictures
    "samples"; all have "step".

    Args:
        folder: of the run.
        since: where the last reading ended; None reads from the beginning.
    """
    since = since or Position()
    try:
        with (Path(folder) / LOG_NAME).open("rb") as file:
            stat = _stat(file)
            restarted = since.file not in (0, stat.file) or stat.offset < since.offset
            start = 0 if restarted else since.offset
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return News([], Position(), since != Position())
    whole = content[: content.rfind(b"\n") + 1]
    return News(_parsed(whole), Position(start + len(whole), stat.file), restarted)


def read_tail(folder: Path) -> list[dict[str, Any]]:
    """The last entries of a run's log, as many as fit into `TAIL_BYTES`; none if it has no log."""
    try:
        with (folder / LOG_NAME).open("rb") as file:
            start = max(0, _stat(file).offset - TAIL_BYTES)
            file.seek(start)
            content = file.read()
    except OSError:
        return []
    return _parsed(content if start == 0 else content.partition(b"\n")[2])


def recent_steps(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last steps that were taken one after another in one sitting."""
    steps = [entry for entry in entries if _is_step(entry)]
    start = max(0, len(steps) - PACE_STEPS)
    for number, (one, other) in enumerate(pairwise(steps), start=1):
        if other["elapsed_s"] < one["elapsed_s"] or other["step"] <= one["step"]:
            start = max(start, number)
    return steps[start:]


def _is_step(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("step"), int) and all(
        isinstance(entry.get(name), int | float) for name in ("loss", "elapsed_s")
    )


def _stat(file: Any) -> Position:
    """The whole of an open file, as a position."""
    stat = os.fstat(file.fileno())
    return Position(stat.st_size, stat.st_ino)


def _parsed(content: bytes) -> list[dict[str, Any]]:
    entries = []
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut short when the run was killed
        if isinstance(entry, dict):
            entries.append(entry)
    return entries

"""The runs in a folder and how far each of them is, read from their files; no torch is needed."""

import json
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scumble.errors import UserError
from scumble.runs.log import read_tail, recent_steps
from scumble.training.lock import holder_of

RECORD_NAME = "run.json"
MAX_DEPTH = 3
"""So many folders deep runs are looked for."""
MEAN_OF = 20
"""The loss that is shown is the mean of so many steps, as on the progress bar."""
QUIET_S = 900.0
"""A run on another machine counts as interrupted once it has written nothing for so long."""

Status = Literal["running", "stopped", "failed", "finished", "interrupted", "unreadable"]


@dataclass(frozen=True)
class RunView:
    """What is known of a run from outside; it changes nothing and needs no process to answer.

    Args:
        folder: the run's output folder.
        status: `stopped` by the user; `failed` by itself; `interrupted` where its process is gone
            and could not say why; `unreadable` where run.json is damaged.
        step: optimizer steps done.
        total: steps of the whole run; it may finish earlier.
        loss: mean of the last steps.
        eta_s: seconds to the last step, of a running run.
        memory_mib: most memory used so far.
        base: the base model, as it was named.
        started: when it was last started or resumed, in seconds since 1970.
        updated: when it last wrote, likewise.
        pid: of the process that trains, of a running run.
        samples: pictures drawn while training, oldest first, then those of the result.
        before_after: the grid of the base and the result.
        result: the adapter file, or the folder of a model, of a finished run.
        checkpoint: the newest one.
        error: why the run failed or cannot be read.
        settings: the flags of the run.
    """

    folder: Path
    status: Status
    step: int = 0
    total: int | None = None
    loss: float | None = None
    eta_s: float | None = None
    samples_per_s: float | None = None
    memory_mib: float | None = None
    base: str = ""
    method: str = ""
    started: float = 0.0
    updated: float = 0.0
    pid: int | None = None
    samples: tuple[Path, ...] = ()
    before_after: Path | None = None
    result: Path | None = None
    checkpoint: Path | None = None
    error: str | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def can_resume(self) -> bool:
        """Whether `--resume_from_checkpoint latest` has something to do."""
        return self.status in ("stopped", "failed", "interrupted")

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        plain = {"name": self.name, **asdict(self)}
        plain["samples"] = [str(path) for path in self.samples]
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


def find_runs(folders: Iterable[str | Path]) -> list[RunView]:
    """Every run in these folders and those below, the one started last first.

    Args:
        folders: each holds runs, or is one.

    Raises:
        UserError: one of them is no folder.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}", "Name one that runs were written to.")
        found |= {path.resolve(): path for path in _run_folders(folder, MAX_DEPTH)}
    views = [view for path in found.values() if (view := _view(path)) is not None]
    return sorted(views, key=lambda view: view.started, reverse=True)


def read_run(folder: str | Path) -> RunView:
    """What is known of one run.

    Raises:
        UserError: the folder holds none.
    """
    view = _view(Path(folder))
    if view is None:
        raise UserError(f"{folder} holds no run", "A run's folder has a run.json.")
    return view


def is_alive(process: Mapping[str, Any] | None) -> bool | None:
    """Whether the process that a record names still runs.

    Args:
        process: "pid", "started" and "host", from run.json.

    Returns:
        None if it cannot be known: it was started on another machine.
    """
    import psutil

    match process:
        case {"pid": int(pid), "started": float(started), "host": str(host)}:
            if host != platform.node():
                return None
            try:
                found = psutil.Process(pid)
                # Numbers of processes are used again; clocks are put right by some seconds.
                same = abs(found.create_time() - started) < 60
                return bool(same and found.status() != psutil.STATUS_ZOMBIE)
            except (psutil.Error, ValueError, OverflowError):
                return False
    return False


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a record, not looking into them, hidden ones or links."""
    if (folder / RECORD_NAME).is_file():
        yield folder
        return
    if depth == 0:
        return
    try:
        inner = sorted(
            entry.name
            for entry in os.scandir(folder)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )
    except OSError:
        return  # not ours to read
    for name in inner:
        yield from _run_folders(folder / name, depth - 1)


def _view(folder: Path) -> RunView | None:
    """None where there is no record, or one that another program wrote."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        when = path.stat().st_mtime
        return RunView(
            folder, "unreadable", started=when, updated=when, error=f"{path} is damaged: {error}"
        )
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        return None
    return _of_record(folder, record)


def _of_record(folder: Path, record: dict[str, Any]) -> RunView:
    updated = _last_write(folder)
    writer = holder_of(folder)
    status = _status(record, updated, writer)
    entries = read_tail(folder)
    steps = recent_steps(entries)
    last = steps[-1] if steps else {}
    losses = [loss for entry in entries if (loss := _number(entry.get("loss"))) is not None]
    losses = losses[-MEAN_OF:]
    total, step = _integer(record.get("total_steps")), _integer(last.get("step")) or 0
    return RunView(
        folder,
        status,
        step=step,
        total=total,
        loss=sum(losses) / len(losses) if losses else None,
        eta_s=_time_left(steps, total) if status == "running" else None,
        samples_per_s=_number(last.get("samples_per_s")),
        memory_mib=_number(record.get("peak_memory_mib")) or _number(last.get("memory_mib")),
        base=str(record.get("base") or record["settings"].get("pretrained_model_name_or_path", "")),
        method=str(record["settings"].get("method", "")),
        started=_number(record.get("started")) or updated,
        updated=updated,
        pid=_integer((writer or record["process"]).get("pid")) if status == "running" else None,
        samples=_samples(folder),
        before_after=_existing(folder, "before_after.png"),
        result=_existing(folder, record.get("result")),
        checkpoint=_newest_checkpoint(folder),
        error=record["error"] if isinstance(record.get("error"), str) else None,
        settings=record["settings"],
    )


def _status(record: Mapping[str, Any], updated: float, writer: Mapping[str, Any] | None) -> Status:
    if writer is not None and record.get("status") != "finished":
        return "running"
    ended: tuple[Status, ...] = ("stopped", "failed", "finished")
    for status in ended:
        if record.get("status") == status:
            return status
    alive = is_alive(record.get("process"))
    if alive is None:
        alive = abs(time.time() - updated) < QUIET_S
    return "running" if alive else "interrupted"


def _last_write(folder: Path) -> float:
    times = [0.0]
    for name in (RECORD_NAME, "log.jsonl"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _time_left(steps: list[dict[str, Any]], total: int | None) -> float | None:
    """Seconds to the last step at the pace of the recent ones; None where there is no pace yet."""
    if total is None or len(steps) < 2:
        return None
    first, last = steps[0], steps[-1]
    pace: float = (last["elapsed_s"] - first["elapsed_s"]) / (last["step"] - first["step"])
    remaining: int = total - last["step"]
    return max(0.0, pace * remaining)


def _samples(folder: Path) -> tuple[Path, ...]:
    drawn = sorted((folder / "samples").glob("step_*.png"), key=_numbers)
    return (*drawn, *sorted(folder.glob("sample_*.png"), key=_numbers))


def _newest_checkpoint(folder: Path) -> Path | None:
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return max(found, key=_numbers, default=None)


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _existing(folder: Path, name: Any) -> Path | None:
    """A file beside the record; never one outside, whatever the record says."""
    last = Path(name).name if isinstance(name, str) and "\0" not in name else ""
    try:
        return folder / last if last not in ("", "..") and (folder / last).exists() else None
    except OSError:  # too long
        return None


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None

"""A list of runs as a table that fits on a terminal."""

from collections.abc import Sequence
from pathlib import PureWindowsPath

from scumble.runs.listing import RunView
from scumble.tools.table import number, page, table

HEAD = ("run", "status", "step ", "loss ", "left ", "memory ", "base", "started ")
UNITS = ((86400, "day"), (3600, "h"), (60, "min"), (1, "s"))
LONGEST = 24
"""A longer path is cut at its front, so that all of it fits on a line."""


def runs_text(runs: Sequence[RunView], now: float) -> str:
    """One line for each run, then what went wrong with some.

    Args:
        runs: in the order to show.
        now: in seconds since 1970.
    """
    errors = (f"{run.folder}: {run.error}" for run in runs if run.error)
    return page(table(HEAD, [_row(run, now) for run in runs]), "\n".join(errors))


def duration(seconds: float) -> str:
    """A time span in its largest unit: "40 s", "3 min", "2 h", "5 days"."""
    for length, name in UNITS:
        if seconds >= length:
            count = round(seconds / length)
            plural = "s" if name == "day" and count > 1 else ""
            return f"{count} {name}{plural}"
    return "0 s"


def _row(run: RunView, now: float) -> tuple[str, ...]:
    return (
        _cut(str(run.folder)),
        run.status,
        str(run.step) if run.total is None else f"{run.step}/{run.total}",
        "-" if run.loss is None else number(run.loss),
        "-" if run.eta_s is None else duration(run.eta_s),
        "-" if run.memory_mib is None else f"{run.memory_mib / 1024:.1f} GiB",
        _cut(PureWindowsPath(run.base).name) or "-",  # it parts at either slash
        f"{duration(max(0.0, now - run.started))} ago",
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"...{text[3 - LONGEST :]}"

"""A run in HTML: how far it is, its loss as a curve, and what it said."""

import html
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from scumble.runs.listing import RunView
from scumble.runs.log import Position, follow
from scumble.runs.queue import Job

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 220, 52, 24
COLUMNS = 160
"""The curve is drawn through so many points, each the mean of the steps that fall on it."""
SMOOTHING = 0.85

STOPPED = (130, -15)
"""Exit codes of a run that was asked to end."""

WORDS = {
    "waiting": "waits for its turn",
    "running": "is training",
    "stopping": "saves and stops",
    "cancelled": "was taken out of the queue",
    "starting": "is starting",
    "stopped": "stopped",
    "failed": "failed",
    "finished": "finished",
    "interrupted": "was interrupted",
    "unreadable": "cannot be read",
}
"""State -> the words for it."""


class Curves:
    """The losses of the runs that are looked at; what is in a log is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Position | None, list[tuple[int, float]]]] = {}
        self._lock = Lock()

    def points(self, folder: Path) -> list[tuple[int, float]]:
        """(step, loss) of every step that a run has logged."""
        with self._lock:
            since, points = self._known.get(folder, (None, []))
            news = follow(folder, since)
            if news.restarted:
                points = []
            points += [
                (entry["step"], entry["loss"])
                for entry in news.entries
                if isinstance(entry.get("loss"), int | float) and isinstance(entry.get("step"), int)
            ]
            self._known[folder] = (news.position, points)
            return list(points)


def state_of(job: Job, view: RunView | None) -> str:
    """How a job is, in one word: the queue knows until it has ended, then the run's record."""
    if job.state == "running" and (view is None or view.step == 0):
        return "starting"
    if job.state != "ended":
        return job.state
    if job.code not in (0, None, *STOPPED):
        return "failed"
    if view is None:
        return "stopped" if job.code in STOPPED else "failed"
    return "interrupted" if view.status == "running" else view.status


def status_html(job: Job, view: RunView | None) -> str:
    """State, progress and numbers of a run."""
    state = state_of(job, view)
    head = (
        f'<div class="run-head"><span class="badge {state}">{WORDS[state]}</span>'
        f"<strong>{html.escape(job.name)}</strong> "
        f"<span>{html.escape(job.method.replace('_', ' '))}</span></div>"
    )
    return f'<div class="run" role="status">{head}{_progress(view)}{_trouble(job, view)}</div>'


def _progress(view: RunView | None) -> str:
    if view is None:
        return ""
    done = view.step / view.total if view.total else 0.0
    numbers = {
        "step": f"{view.step:,} of {view.total:,}" if view.total else f"{view.step:,}",
        "loss": "" if view.loss is None else f"{view.loss:.4f}",
        "time left": "" if view.eta_s is None else duration(view.eta_s),
        "memory": "" if view.memory_mib is None else f"{view.memory_mib / 1024:.2f} GiB",
        "pictures / s": "" if view.samples_per_s is None else f"{view.samples_per_s:.1f}",
    }
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in numbers.items() if text
    )
    return (
        f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{done:.0%}"><i style="width:{done:.1%}"></i></div><dl>{cells}</dl>'
    )


def _trouble(job: Job, view: RunView | None) -> str:
    if state_of(job, view) != "failed":
        return ""
    said = job.complaint() or (view.error if view is not None and view.error else "")
    return f'<pre class="alert" role="alert">{html.escape(said)}</pre>'


def duration(seconds: float) -> str:
    """A time in the two largest units that it has."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def curve_html(points: Sequence[tuple[int, float]]) -> str:
    """The loss over the steps: each column's mean pale, and a running mean through them."""
    if len(points) < 2:
        return '<div class="curve empty">The loss will be drawn here.</div>'
    columns = _columns(points)
    smooth, level = [], columns[0][1]
    for step, loss in columns:
        level = SMOOTHING * level + (1 - SMOOTHING) * loss
        smooth.append((step, level))
    low, high = min(loss for _, loss in columns), max(loss for _, loss in columns)
    span = (high - low) or 1.0
    first, last = points[0][0], points[-1][0]

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (point[0] - first) / ((last - first) or 1) * (WIDTH - LEFT - 8)
        y = 8 + (high - point[1]) / span * (HEIGHT - BOTTOM - 16)
        return f"{x:.1f},{y:.1f}"

    grid = "".join(_grid_line(high - span * part / 3, part / 3) for part in range(4))
    lines = "".join(
        f'<polyline class="{name}" points="{" ".join(map(place, line))}"/>'
        for name, line in (("raw", columns), ("mean", smooth))
    )
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Loss from step {first} to step {last}" data-points="{len(points)}">'
        f'{grid}{lines}<text x="{LEFT}" y="{HEIGHT - 6}">step {first:,}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{last:,}</text></svg>'
    )


def _columns(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    width = max(1, -(-len(points) // COLUMNS))
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    return [
        (sum(step for step, _ in part) / len(part), sum(loss for _, loss in part) / len(part))
        for part in parts
    ]


def _grid_line(value: float, part: float) -> str:
    y = 8 + part * (HEIGHT - BOTTOM - 16)
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    )


def output_html(job: Job) -> str:
    """The last lines that a run said."""
    text = "\n".join(job.output()[-40:])
    return f'<pre class="output">{html.escape(text) or "nothing yet"}</pre>'

"""A run as it goes: its state, its loss, its samples, and the buttons that act on it."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scumble.errors import UserError
from scumble.runs.listing import RECORD_NAME, RunView, read_run
from scumble.runs.queue import Job, Queue
from scumble.ui.folders import Folders
from scumble.ui.run_text import (
    WORDS,
    Curves,
    curve_html,
    output_html,
    state_of,
    status_html,
)

POLL_S = 1.0
MAX_SAMPLES = 12
"""So many of the newest pictures are shown."""


@dataclass(frozen=True)
class Seen:
    """What a visitor's page shows already, so that what has not changed is not sent again.

    Args:
        name: of the run.
        names: of all runs, with their states.
        samples: the pictures in the gallery.
        file: what the download button gives.
    """

    name: str | None = None
    names: tuple[tuple[str, str], ...] = ()
    samples: tuple[Path, ...] = ()
    file: Path | None = None


def build_run(folders: Folders, queue: Queue) -> Any:
    """Make the panel inside the column that is open.

    Returns:
        The widget that holds the name of the run that is shown.
    """
    import gradio

    curves, views = Curves(), Views()
    seen = gradio.State(Seen())
    chosen = gradio.Dropdown(
        [],
        value=None,
        label="Run",
        elem_id="run",
        allow_custom_value=True,
    )
    status = gradio.HTML(elem_id="status")
    with gradio.Row(elem_id="acts"):
        stop = gradio.Button(
            "Stop", variant="stop", interactive=False, elem_id="stop", min_width=90
        )
        resume = gradio.Button("Resume", interactive=False, elem_id="resume", min_width=90)
        download = gradio.DownloadButton(
            "Download", interactive=False, elem_id="download", min_width=110
        )
    curve = gradio.HTML(elem_id="curve")
    gallery = gradio.Gallery(
        label="Samples", columns=4, height="auto", object_fit="contain", elem_id="samples",
        interactive=False, buttons=["fullscreen"],
    )  # fmt: skip
    with gradio.Accordion("What it says", open=False):
        output = gradio.HTML(elem_id="output")
    outputs = [seen, chosen, status, curve, output, stop, resume, download, gallery]

    def look(name: str | None, before: Seen) -> list[Any]:
        looks = [(job, views.of(job)) for job in reversed(queue.jobs())]
        return _look(folders, looks, curves, name, before)

    gradio.Timer(POLL_S).tick(look, [chosen, seen], outputs, show_progress="hidden")
    chosen.input(look, [chosen, seen], outputs, show_progress="hidden")
    for button, act in ((stop, queue.stop), (resume, queue.resume)):
        button.click(_acting(act), chosen, None).then(
            look, [chosen, seen], outputs, show_progress="hidden"
        )
    return chosen


def _acting(act: Callable[[str], Job]) -> Callable[[str | None], None]:
    """A button's work on the run that is shown."""

    def work(name: str | None) -> None:
        import gradio

        try:
            act(name or "")
        except UserError as error:
            raise gradio.Error(str(error)) from error

    return work


def _look(
    folders: Folders,
    looks: Sequence[tuple[Job, RunView | None]],
    curves: Curves,
    name: str | None,
    before: Seen,
) -> list[Any]:
    """What every widget of the panel shows now; most of them stay as they are."""
    import gradio

    names = tuple((job.name, state_of(job, view)) for job, view in looks)
    found = {job.name: (job, view) for job, view in looks}
    if name not in found:
        active = [job.name for job, _ in looks if job.state in ("running", "stopping")]
        name = next(iter([*active, *(job.name for job, _ in looks)]), None)
    now = replace(before, name=name, names=names)
    chooser = gradio.skip()
    if (now.name, now.names) != (before.name, before.names):
        choices = [(f"{one} ({WORDS[state]})", one) for one, state in names]
        chooser = gradio.Dropdown(choices=choices, value=name)
    if name is None:
        empty = '<div class="run empty">No run yet. Choose pictures and press Start.</div>'
        return [now, chooser, empty, curve_html([]), *[gradio.skip()] * 5]
    job, view = found[name]
    samples, now = _new_samples(view, now)
    button, now = _download(folders, job, view, now)
    return [
        now,
        chooser,
        status_html(job, view),
        curve_html(curves.points(job.output_dir)),
        output_html(job),
        gradio.Button(interactive=job.state in ("waiting", "running")),
        gradio.Button(interactive=_can_resume(job, view)),
        button,
        samples,
    ]


class Views:
    """What is known of the runs; of those that have ended it is read once."""

    def __init__(self) -> None:
        self._ended: dict[tuple[Path, int], RunView | None] = {}

    def of(self, job: Job) -> RunView | None:
        """The record of a job's run; None where it has none yet."""
        if job.state != "ended":
            return _read(job)
        try:
            key = (job.output_dir, (job.output_dir / RECORD_NAME).stat().st_mtime_ns)
        except OSError:
            return None
        if key not in self._ended:
            self._ended[key] = _read(job)
        return self._ended[key]


def _read(job: Job) -> RunView | None:
    try:
        return read_run(job.output_dir)
    except UserError:
        return None


def _can_resume(job: Job, view: RunView | None) -> bool:
    return not job.is_open and (view is None or view.status != "finished")


def _new_samples(view: RunView | None, seen: Seen) -> tuple[Any, Seen]:
    """The newest pictures, opened here: the page may fetch nothing from the folders of runs."""
    import gradio
    from PIL import Image

    paths: Sequence[Path] = view.samples if view is not None else ()
    if view is not None and view.before_after is not None:
        paths = (*paths, view.before_after)
    newest = tuple(paths[-MAX_SAMPLES:])
    if newest == seen.samples:
        return gradio.skip(), seen
    pictures = []
    for path in reversed(paths[-MAX_SAMPLES:]):
        try:
            with Image.open(path) as image:
                pictures.append((image.convert("RGB"), _moment(path)))
        except OSError:
            newest = ()  # being written, or gone: the next look will tell
    return pictures, replace(seen, samples=newest)


def _moment(path: Path) -> str:
    words = path.stem.split("_")
    if words[0] == "step" and words[1].isdigit():
        return f"step {int(words[1])}"
    return "base | result" if path.stem == "before_after" else "result"


def _download(folders: Folders, job: Job, view: RunView | None, seen: Seen) -> tuple[Any, Seen]:
    """The button for the result, which gives a copy under the run's name."""
    import gradio

    result = view.result if view is not None else None
    if result == seen.file:
        return gradio.skip(), seen
    if result is None or not result.is_file():
        return gradio.DownloadButton(value=None, interactive=False), replace(seen, file=result)
    copy = (
        folders.served / "results" / str(result.stat().st_mtime_ns) / f"{job.name}{result.suffix}"
    )
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result, partial := copy.with_suffix(".partial"))
        partial.replace(copy)
    button = gradio.DownloadButton(value=str(copy), interactive=True)
    return button, replace(seen, file=result)

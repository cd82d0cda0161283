"""The Train tab: pictures, settings, and the runs as they go."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scumble.config import METHOD_GROUPS, TrainConfig
from scumble.config.train import field_names
from scumble.data.scan import ScanReport, scan
from scumble.data.sources import image_folder
from scumble.errors import UserError
from scumble.runs.queue import Queue
from scumble.ui.answers import problem
from scumble.ui.check_panel import check_html, examined, failed
from scumble.ui.folders import Folders, plain_name
from scumble.ui.forms import BASIC, Entry, FormError, entries, start_value, train_config, widget
from scumble.ui.pictures_panel import Shown, build_pictures, write_captions
from scumble.ui.push_panel import build_push
from scumble.ui.run_panel import build_run
from scumble.ui.style import heading

METHODS = {
    "text_to_image": "A style or a world, from captioned pictures",
    "dreambooth": "One subject, from a few pictures of it",
    "textual_inversion": "A new word; the model stays as it is",
    "pivotal_tuning": "A new word, and adapters on top of it",
    "full": "The whole model, for comparison",
}
"""Method -> what a visitor chooses it for."""
FIRST_METHOD = "text_to_image"
UNNAMED = "unnamed"
"""What a run is checked as that has no name yet."""


def build(folders: Folders) -> None:
    """Fill the tab."""
    import gradio

    queue = Queue(folders.queue)
    queue.wake()  # what waited when the machine was switched off
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=6, min_width=320):
            gradio.HTML(heading(1, "Pictures"))
            pictures = build_pictures(folders)
            gradio.HTML(heading(2, "What to teach"))
            method, form = _build_form()
            gradio.HTML(heading(3, "Start"))
            name = gradio.Textbox(
                label="Name of the run",
                info="Of its folder and of the file that you get.",
                placeholder="my-style",
                elem_id="name",
            )
            with gradio.Row():
                start = gradio.Button(
                    "Start", variant="primary", size="lg", elem_id="start", scale=3
                )
                check = gradio.Button("Check", size="lg", elem_id="check", min_width=90)
            answer = gradio.Markdown(elem_id="answer")
            checked = gradio.HTML(elem_id="checked")
        with gradio.Column(scale=5, min_width=320, elem_id="run-column"):
            gradio.HTML(heading(4, "Watch it learn"))
            chosen = build_run(folders, queue)
            build_push(folders, queue, chosen)

    def begin(method: str, name: str, shown: Shown, *values: Any) -> list[Any]:
        captions, fields = values[: len(pictures.captions)], values[len(pictures.captions) :]
        shown = write_captions(shown, dict(enumerate(captions)))
        try:
            job = _begin(folders, queue, method, name, shown, dict(zip(form, fields, strict=True)))
        except UserError as error:
            wrong = error if isinstance(error, FormError) else FormError(error)
            return [shown, problem(wrong, folders), gradio.skip(), *_marks(form, wrong)]
        line = f"**{job}** is in the queue. It goes on when this page is closed."
        return [shown, line, job, *_marks(form, None)]

    def look(method: str, name: str, shown: Shown, *values: Any) -> list[Any]:
        captions, fields = values[: len(pictures.captions)], values[len(pictures.captions) :]
        shown = write_captions(shown, dict(enumerate(captions)))
        settings = dict(zip(form, fields, strict=True))
        try:
            found = examined(_config(folders, method, name.strip() or UNNAMED, shown, settings))
        except UserError as error:
            wrong = error if isinstance(error, FormError) else FormError(error)
            found = failed(wrong.message, wrong.hint)
            return [shown, check_html(found, folders), *_marks(form, wrong)]
        return [shown, check_html(found, folders), *_marks(form, None)]

    inputs = [method, name, pictures.shown, *pictures.captions, *form.values()]
    start.click(begin, inputs, [pictures.shown, answer, chosen, *form.values()])
    check.click(look, inputs, [pictures.shown, checked, *form.values()], api_name="check")


def _build_form() -> tuple[Any, dict[str, Any]]:
    """The choice of a method, and a widget for every field of any method."""
    import gradio

    method = gradio.Radio(
        [(METHODS.get(name, name), name) for name in METHOD_GROUPS],
        value=FIRST_METHOD,
        label="Method",
        elem_id="method",
    )
    found = entries()
    with gradio.Group(elem_classes="fields"):
        form = {name: widget(found[name], FIRST_METHOD) for name in BASIC}
    groups: dict[str, list[Entry]] = {}
    for entry in found.values():
        if entry.name not in BASIC:
            groups.setdefault(entry.group, []).append(entry)
    boxes = []
    with gradio.Accordion("More settings", open=False, elem_id="advanced"):
        for title, inside in groups.items():
            seen = _has_any(FIRST_METHOD, inside)
            box = gradio.Accordion(title, open=False, visible=seen)
            with box, gradio.Group(elem_classes="fields"):
                form |= {entry.name: widget(entry, FIRST_METHOD) for entry in inside}
            boxes.append(box)

    def change(method: str) -> list[Any]:
        own = field_names(method)
        values = [
            gradio.update(visible=name in own, value=start_value(found[name], method))
            if name not in own or name in _depending()
            else gradio.update(visible=True)
            for name in form
        ]
        return [
            *values,
            *(gradio.update(visible=_has_any(method, inside)) for inside in groups.values()),
        ]

    method.change(change, method, [*form.values(), *boxes], show_progress="hidden")
    return method, form


def _depending() -> set[str]:
    """Fields whose defaults depend on the method."""
    from scumble.config.method_groups import METHOD_DEFAULTS

    return {name for defaults in METHOD_DEFAULTS.values() for name in defaults}


def _has_any(method: str, inside: Sequence[Entry]) -> bool:
    own = field_names(method)
    return any(entry.name in own for entry in inside)


def _begin(
    folders: Folders,
    queue: Queue,
    method: str,
    name: str,
    shown: Shown,
    values: Mapping[str, Any],
) -> str:
    """Check everything and queue a run.

    Returns:
        Its name.

    Raises:
        UserError: the first thing that is wrong.
    """
    if not name.strip():
        raise UserError("the run has no name", "Give it one: its file will be called so.")
    config = _config(folders, method, name, shown, values)
    output = Path(config.output_dir)
    if output.exists():
        raise UserError(f"there is a run called {output.name} already", "Choose another name.")
    if shown.pictures is not None:
        _check_pictures(shown.pictures.folder, config)
    return queue.add(config).name


def _config(
    folders: Folders, method: str, name: str, shown: Shown, values: Mapping[str, Any]
) -> TrainConfig:
    """The run that the form describes.

    Raises:
        UserError: a value that cannot be meant.
    """
    if method not in METHOD_GROUPS:
        raise UserError(f"unknown method '{method}'")
    pictures = None if shown.pictures is None else str(shown.pictures.folder)
    output = folders.runs / plain_name(name)
    return train_config(method, values, folders, pictures=pictures, output_dir=str(output))


def _check_pictures(folder: Path, config: Any) -> None:
    """Look at every picture as the run will.

    Raises:
        UserError: a bad picture, or a missing caption.
    """
    ready = config.instance_prompt or config.placeholder_token
    for _ in scan(
        image_folder(folder, config.caption_column),
        ScanReport(),
        on_bad_image=config.on_bad_image,
        on_missing_caption=config.on_missing_caption,
        default_captions=(ready,) if ready else (),
        masks=config.masked_loss,
    ):
        pass


def _marks(form: Mapping[str, Any], error: FormError | None) -> list[Any]:
    """The widgets with those that an error is about marked."""
    import gradio

    wrong = error.fields if error is not None else []
    return [gradio.update(elem_classes=["wrong"] if name in wrong else []) for name in form]

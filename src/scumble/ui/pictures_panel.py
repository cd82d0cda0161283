"""The pictures of a run: uploads or a folder, what is remarkable about them, their captions."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scumble.errors import UserError
from scumble.ui.answers import plain
from scumble.ui.folders import Folders
from scumble.ui.picture_sets import (
    PictureSet,
    keep_uploads,
    names_of_sets,
    open_set,
    thumbnail,
)

ROWS = 8
"""Pictures whose captions are seen at once."""


@dataclass(frozen=True)
class Shown:
    """What the panel shows to one visitor.

    Args:
        pictures: the set that is open.
        first: number of the picture in the first row.
        may_write: whether captions are written; into a visitor's own folder only if asked to.
        notes: what there is to know of the pictures.
    """

    pictures: PictureSet | None = None
    first: int = 0
    may_write: bool = False
    notes: tuple[str, ...] = ()

    def visible(self) -> list[int | None]:
        """The number of the picture in each row; None where there is none."""
        count = len(self.pictures.examples) if self.pictures else 0
        return [n if n < count else None for n in range(self.first, self.first + ROWS)]


@dataclass(frozen=True)
class PicturesPanel:
    """The widgets that others need.

    Args:
        shown: state of the visitor, a `Shown`.
        captions: the boxes of the rows, from the top.
    """

    shown: Any
    captions: Sequence[Any]


def build_pictures(folders: Folders) -> PicturesPanel:
    """Make the panel inside the column that is open."""
    import gradio

    shown = gradio.State(Shown())
    with gradio.Group():
        upload = gradio.File(
            label="Drop pictures here, with .txt captions of the same names if there are any",
            file_count="multiple",
            file_types=["image", ".txt"],
            elem_id="upload",
            height=168,
        )
        with gradio.Row():
            earlier = gradio.Dropdown(
                names_of_sets(folders),
                value=None,
                label="Or pictures that were uploaded before",
                min_width=240,
                elem_id="earlier",
            )
            typed = gradio.Textbox(
                label="Or a folder on this machine",
                placeholder="press Enter to open it",
                min_width=240,
                elem_id="folder",
            )
    findings = gradio.HTML(elem_id="findings")
    write_own = gradio.Checkbox(
        label="Write captions into this folder, as .txt files beside the pictures",
        value=False,
        visible=False,
        elem_id="write_own",
    )
    rows = [_row(number) for number in range(ROWS)]
    thumbs, captions = [row[1] for row in rows], [row[2] for row in rows]
    with gradio.Row(visible=False, elem_id="pager") as pager:
        back = gradio.Button("Previous", size="sm", min_width=80)
        place = gradio.Markdown(elem_id="place")
        onward = gradio.Button("Next", size="sm", min_width=80)
    row_boxes = [row[0] for row in rows]
    outputs = [shown, findings, write_own, *row_boxes, *thumbs, *captions, pager, place]

    acts = _Acts(folders, len(outputs))
    upload.upload(acts.receive, upload, [*outputs, upload, earlier], show_progress="minimal")
    earlier.input(acts.open_earlier, earlier, outputs)
    typed.submit(acts.open_typed, typed, outputs)
    back.click(lambda state: acts.turn(state, -ROWS), shown, outputs)
    onward.click(lambda state: acts.turn(state, ROWS), shown, outputs)
    write_own.input(acts.allow_writing, [shown, write_own], outputs)
    for number, caption in enumerate(captions):
        caption.blur(
            lambda state, text, row=number: acts.write(state, row, text),
            [shown, caption],
            [shown, findings],
            show_progress="hidden",
        )
    return PicturesPanel(shown, captions)


@dataclass(frozen=True)
class _Acts:
    """What visitors do in the panel; each answers with the values of all its widgets.

    Args:
        folders: of the page.
        count: of the widgets.
    """

    folders: Folders
    count: int

    def receive(self, files: Sequence[str] | None) -> list[Any]:
        """Take uploads in, and open the set that they make."""
        import gradio

        if not files:
            return [gradio.skip()] * (self.count + 2)
        paths = [Path(name) for name in files]
        folder = self.folders.new_set(paths[0].stem if len(paths) == 1 else "pictures")
        refused = keep_uploads(self.folders, paths, folder)
        names = names_of_sets(self.folders)
        return [*self._open(folder, refused), None, gradio.Dropdown(names, value=folder.name)]

    def open_earlier(self, name: str | None) -> list[Any]:
        """Open a set of uploads again."""
        import gradio

        if not name or name not in names_of_sets(self.folders):
            return [gradio.skip()] * self.count
        return self._open(self.folders.pictures / name)

    def open_typed(self, text: str) -> list[Any]:
        """Open a folder that was typed."""
        try:
            folder = self.folders.inside(text)
        except UserError as error:
            return self._say(error)
        return self._open(folder)

    def turn(self, state: Shown, by: int) -> list[Any]:
        """Show other rows."""
        count = len(state.pictures.examples) if state.pictures else 0
        first = state.first + by if 0 <= state.first + by < count else state.first
        return self._show(replace(state, first=first))

    def allow_writing(self, state: Shown, allowed: bool) -> list[Any]:
        """Let captions be written into a visitor's own folder, or not."""
        return self._show(replace(state, may_write=allowed))

    def write(self, state: Shown, row: int, text: str) -> list[Any]:
        """Keep the caption of a row, and look at the pictures again."""
        state = write_captions(state, {row: text})
        return [state, findings_html(state.notes, self.folders)]

    def _show(self, state: Shown) -> list[Any]:
        return [state, *_values(state, self.folders)]

    def _open(self, folder: Path, refused: Sequence[str] = ()) -> list[Any]:
        try:
            pictures = open_set(self.folders, folder)
        except UserError as error:
            return self._say(error, refused)
        notes = (*pictures.findings(), *refused)
        return self._show(Shown(pictures, may_write=pictures.is_ours, notes=notes))

    def _say(self, error: UserError, notes: Sequence[str] = ()) -> list[Any]:
        """An error in the place of findings; no set is open."""
        state, _, *rest = self._show(Shown())
        lines = [f"{error.message}. {error.hint}".strip(), *notes]
        return [state, findings_html(lines, self.folders, "findings alert"), *rest]


def write_captions(state: Shown, texts: dict[int, str]) -> Shown:
    """Write what stands in rows beside the pictures, where it differs from what is there.

    Args:
        state: of the visitor.
        texts: row -> caption.

    Returns:
        The state with the captions as they are now.
    """
    import gradio

    if state.pictures is None or not state.may_write:
        return state
    numbers = state.visible()
    changed = False
    for row, text in texts.items():
        number = numbers[row]
        if number is not None and _caption(state.pictures, number) != text.strip():
            try:
                state.pictures.write_caption(number, text)
                changed = True
            except UserError as error:
                gradio.Warning(str(error))
    if not changed:
        return state
    pictures = state.pictures.again()
    return replace(state, pictures=pictures, notes=tuple(pictures.findings()))


def _row(number: int) -> tuple[Any, Any, Any]:
    import gradio

    with gradio.Row(visible=False, elem_classes="picture-row", equal_height=False) as row:
        thumb = gradio.HTML(min_width=80, elem_classes="picture")
        caption = gradio.Textbox(
            label="Caption", lines=2, max_lines=4, elem_id=f"caption-{number}", scale=6
        )
    return row, thumb, caption


def _values(state: Shown, folders: Folders) -> list[Any]:
    """What every widget but the state shows."""
    import gradio

    pictures = state.pictures
    count = len(pictures.examples) if pictures else 0
    rows, thumbs, captions = [], [], []
    for number in state.visible():
        rows.append(gradio.Row(visible=number is not None))
        if pictures is None or number is None:
            thumbs.append("")
            captions.append(gradio.Textbox(value=""))
            continue
        example = pictures.examples[number]
        thumbs.append(thumbnail(example))
        captions.append(
            gradio.Textbox(
                value=_caption(pictures, number),
                label=f"Caption of {example.id}",
                interactive=state.may_write,
            )
        )
    last = min(state.first + ROWS, count)
    return [
        findings_html(state.notes, folders),
        gradio.Checkbox(
            value=state.may_write, visible=pictures is not None and not pictures.is_ours
        ),
        *rows,
        *thumbs,
        *captions,
        gradio.Row(visible=count > ROWS),
        f"{state.first + 1} to {last} of {count}",
    ]


def findings_html(notes: Sequence[str], folders: Folders, classes: str = "findings") -> str:
    """Lines about pictures as a list."""
    items = "".join(f"<li>{html.escape(plain(note, folders))}</li>" for note in notes)
    return f'<ul class="{classes}" role="status">{items}</ul>' if items else ""


def _caption(pictures: PictureSet, number: int) -> str:
    captions = pictures.examples[number].captions
    return captions[0] if captions else ""

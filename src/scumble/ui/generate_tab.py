"""The Generate tab: pictures with adapters on top of a base, and what the adapters change."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scumble.errors import UserError
from scumble.ui.answers import problem
from scumble.ui.folders import Folders
from scumble.ui.shelf import Shelf
from scumble.ui.studio import BEFORE_AFTER, GRID, Shown, Studio, factors_of
from scumble.ui.wishes import Demo, build_wishes


def build(folders: Folders, demo: Demo | None = None) -> None:
    """Fill the tab.

    Args:
        folders: of the page.
        demo: for a page that shows one adapter to visitors.
    """
    import gradio

    studio, shelf = Studio(folders), Shelf(folders)
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=5, min_width=320):
            wishes, draw, stop = build_wishes(shelf, demo)
        with gradio.Column(scale=6, min_width=320):
            results = _results()

    def on_draw(
        values: dict[Any, Any],
        request: gradio.Request,
        progress: Any = gradio.Progress(),  # noqa: B008 - how Gradio knows that it is wanted
    ) -> Iterator[list[Any]]:
        mode = values[wishes.mode]
        try:
            config = wishes.config(values, folders, demo)
            factors = factors_of(mode, values[wishes.columns], bool(config.adapter))
        except UserError as error:
            yield [problem(error, folders), *_answer([], ())]
            return
        shown: list[Shown] = []
        line = ""
        for shown, line in studio.draw(
            config, factors, studio.visit(str(request.session_hash), progress)
        ):
            yield [line, *_answer(shown, factors)]
        if mode == GRID and len(shown) % len(factors) == 0 and shown:
            sheet = studio.sheet(shown, headings(shown, factors))
            yield [line, *_answer(shown, factors, sheet)]

    draw.click(
        on_draw,
        wishes.widgets,
        results,
        api_name="generate",
        concurrency_limit=1,
        scroll_to_output=True,
        show_progress_on=results[-1],
    )

    def on_stop(request: gradio.Request) -> None:
        studio.stop(str(request.session_hash))

    stop.click(on_stop, show_progress="hidden", api_visibility="private")
    wishes.mode.change(
        lambda mode: gradio.Textbox(visible=mode == GRID),
        wishes.mode,
        wishes.columns,
        show_progress="hidden",
        api_visibility="private",
    )
    wishes.chooser.keep_fresh(choose_first=demo is not None)


def headings(shown: Sequence[Shown], factors: Sequence[float]) -> list[str]:
    """What each column of a grid shows: the strength of one adapter, or what all are times."""
    strongest = max(factors, key=abs)
    acting = shown[factors.index(strongest)].drawn.adapters
    if len(acting) == 1 and strongest:
        strength = acting[0][1] / strongest
        return [f"strength {strength * factor:g}" for factor in factors]
    return [f"all strengths x {factor:g}" for factor in factors]


def _results() -> list[Any]:
    """What `_answer` fills, with the line for the visitor first."""
    import gradio

    line = gradio.Markdown(
        "Choose adapters, say what to draw, and press **Draw**.", elem_id="generate_status"
    )
    # Gradio's button for sharing would send pictures to a server of its maker.
    buttons = ["download", "fullscreen"]
    slider = gradio.ImageSlider(
        label="Base | with adapters",
        type="filepath",
        interactive=False,
        visible=False,
        buttons=buttons,
        elem_id="before_after",
    )
    sheet = gradio.Image(
        label="Grid",
        show_label=False,
        type="filepath",
        format="png",
        interactive=False,
        visible=False,
        buttons=buttons,
        elem_id="sheet",
    )
    gallery = gradio.Gallery(
        label="Pictures",
        show_label=False,
        columns=2,
        object_fit="contain",
        height="auto",
        format="png",
        buttons=buttons,
        interactive=False,
        elem_id="drawn",
    )
    return [line, slider, sheet, gallery]


def _answer(
    shown: Sequence[Shown], factors: Sequence[float], sheet: Path | None = None
) -> list[Any]:
    """Values of the widgets for pictures.

    Args:
        shown: all that were drawn.
        factors: what the strengths were multiplied by, picture by picture.
        sheet: the grid of all of them.
    """
    import gradio

    pairs = len(shown) // 2 if tuple(factors) == BEFORE_AFTER else 0
    pair = tuple(str(item.path) for item in shown[2 * pairs - 2 : 2 * pairs]) if pairs else None
    pictures = [(str(item.path), _caption(item, is_narrow=len(factors) > 2)) for item in shown]
    return [
        gradio.ImageSlider(value=pair, visible=pair is not None),
        gradio.Image(value=None if sheet is None else str(sheet), visible=sheet is not None),
        gradio.Gallery(value=pictures, columns=max(2, len(factors))),
    ]


def _caption(item: Shown, *, is_narrow: bool) -> str:
    drawn = item.drawn
    acting = " + ".join(f"{weight:g}" for _, weight in drawn.adapters) or "base"
    return acting if is_narrow else f"seed {drawn.seed} · {acting}"

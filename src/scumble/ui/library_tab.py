"""The Library tab: every adapter in the page's folders, and what can be done with them."""

from pathlib import Path
from typing import Any

from scumble.ui.adapter_chooser import AdapterChooser
from scumble.ui.folders import Folders
from scumble.ui.library import AS_IT_IS, CONVERSIONS, DTYPES, MERGED, Library
from scumble.ui.shelf import Shelf

COLUMNS = ("Name", "Base", "Type", "Rank", "Size", "Written", "Trigger words")
WIDTHS = ("250px", "190px", "100px", "80px", "110px", "180px", "266px")
"""In all the width of the page on a desktop; on a phone the table is pushed aside."""
METHODS = ("sum", "ties", "dare", "dare_ties")
QUIET = {"api_visibility": "private", "show_progress": "hidden"}


def build(folders: Folders) -> None:
    """Fill the tab."""
    import gradio
    from gradio.context import Context

    library = Library(folders, Shelf(folders))
    tab = Context.block
    table = gradio.Dataframe(
        headers=list(COLUMNS),
        datatype="str",
        type="array",
        column_count=len(COLUMNS),
        column_widths=list(WIDTHS),
        interactive=False,
        wrap=True,
        max_height=320,
        show_search="search",
        buttons=[],
        label="Adapters in the page's folders",
        elem_id="adapters",
    )
    notes = gradio.Markdown(elem_id="library_notes")
    with gradio.Tabs():
        with gradio.Tab("Inspect"):
            inspected = _inspect(library)
        with gradio.Tab("Compare"):
            compared = _compare(library)
        with gradio.Tab("Merge"):
            chooser, merged = _merge(library)
        with gradio.Tab("Convert and download"):
            converted, written = _convert(library)

    lists = [inspected, *compared, converted, chooser.chosen]

    def look() -> list[Any]:
        rows, said = library.table()
        names = [row[0] for row in rows]
        return [rows, said, *(gradio.Dropdown(choices=names) for _ in lists)]

    def choose(event: gradio.SelectData) -> list[Any]:
        name = str(event.row_value[0]) if event.row_value else None
        return [name, name, name]

    gradio.on(None, look, None, [table, notes, *lists], **QUIET)
    for done in (merged, written):
        done.then(look, None, [table, notes, *lists], **QUIET)
    if isinstance(tab, gradio.Tab):
        tab.select(look, None, [table, notes, *lists], **QUIET)
    table.select(choose, None, [inspected, compared[0], converted], **QUIET)


def _list(label: str, elem_id: str) -> Any:
    import gradio

    return gradio.Dropdown([], value=None, label=label, min_width=240, elem_id=elem_id)


def _inspect(library: Library) -> Any:
    import gradio

    with gradio.Row(equal_height=True):
        chosen = _list("Adapter", "inspect_adapter")
        measure = gradio.Checkbox(label="Measure how much each layer is changed")
    page = _page("inspection")
    gradio.on(
        [chosen.change, measure.change],
        lambda name, norms: library.inspect(name, measure=bool(norms)) if name else "",
        [chosen, measure],
        page,
        api_name="inspect",
        trigger_mode="always_last",
    )
    return chosen


def _compare(library: Library) -> tuple[Any, Any]:
    import gradio

    with gradio.Row():
        first, second = _list("First", "compare_first"), _list("Second", "compare_second")
    button = gradio.Button("Compare", variant="primary")
    button.click(library.compare, [first, second], _page("comparison"), api_name="compare")
    return first, second


def _merge(library: Library) -> tuple[AdapterChooser, Any]:
    import gradio

    chooser = AdapterChooser.build(library.shelf, "Adapters to merge", typed=False)
    with gradio.Row():
        title = gradio.Textbox(label="Name of the new adapter", elem_id="merge_name")
        format = gradio.Dropdown(list(MERGED), value="for diffusers", label="Format")
    with gradio.Row():
        method = gradio.Dropdown(
            list(METHODS),
            value="sum",
            label="Method",
            info="ties and dare thin changes out where adapters disturb each other.",
        )
        rank = gradio.Number(
            0, label="Rank", info="0 keeps everything.", precision=0, minimum=0, maximum=1024
        )
    button = gradio.Button("Merge", variant="primary", elem_id="merge")
    said, file = _outcome("merge")

    def merge(values: dict[Any, Any]) -> list[Any]:
        strengths = [float(values[slider]) for slider in chooser.sliders]
        return _shown(
            *library.merge(
                list(zip(values[chooser.chosen], strengths, strict=False)),
                str(values[title] or ""),
                MERGED[values[format]],
                values[method],
                int(values[rank] or 0) or None,
            )
        )

    inputs = {*chooser.widgets, title, format, method, rank}
    return chooser, button.click(merge, inputs, [said, file], api_name="merge")


def _convert(library: Library) -> tuple[Any, Any]:
    import gradio

    with gradio.Row():
        chosen = _list("Adapter", "convert_adapter")
        title = gradio.Textbox(
            label="Name of the new file", placeholder="the same", elem_id="convert_name"
        )
    with gradio.Row():
        format = gradio.Dropdown(
            list(CONVERSIONS), value=AS_IT_IS, label="Format", elem_id="convert_format"
        )
        dtype = gradio.Dropdown(list(DTYPES), value=AS_IT_IS, label="Numbers")
    button = gradio.Button("Prepare the file", variant="primary", elem_id="convert")
    said, file = _outcome("convert")

    def convert(name: str, new_name: str, to: str, numbers: str) -> list[Any]:
        return _shown(*library.convert(name, new_name or "", CONVERSIONS[to], DTYPES[numbers]))

    done = button.click(convert, [chosen, title, format, dtype], [said, file], api_name="convert")
    return chosen, done


def _page(elem_id: str) -> Any:
    """A place for what the tools print."""
    import gradio

    return gradio.Code(
        language=None,
        interactive=False,
        show_label=False,
        show_line_numbers=False,
        lines=1,
        max_lines=30,
        elem_id=elem_id,
    )


def _outcome(elem_id: str) -> tuple[Any, Any]:
    """A line for the visitor, and the button that fetches the file once there is one."""
    import gradio

    said = gradio.Markdown(elem_id=f"{elem_id}_status")
    file = gradio.DownloadButton("Download", visible=False, elem_id=f"{elem_id}_download")
    return said, file


def _shown(said: str, path: Path | None) -> list[Any]:
    import gradio

    if path is None:
        return [said, gradio.DownloadButton(visible=False)]
    label = f"Download {path.name}"
    return [said, gradio.DownloadButton(label=label, value=str(path), visible=True)]

"""The Train tab."""

from scumble.ui.folders import Folders


def build(folders: Folders) -> None:
    """Fill the tab."""
    import gradio

    gradio.Markdown(f"Runs are kept in {folders.runs}.")

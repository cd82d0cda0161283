"""A page that shows one adapter to anyone: what the `app.py` of a Space runs."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from scumble import console
from scumble.ui import app, generate_tab
from scumble.ui.folders import Folders
from scumble.ui.wishes import Demo

SETTINGS = "space.json"
ADAPTERS = "adapter"
"""Folder of a Space that holds its adapter."""


def run(folder: Path) -> None:
    """Serve the Space in a folder until Ctrl-C.

    The Hub says through Gradio's own variables where it is to listen; elsewhere it is this machine.

    Raises:
        UserError: Gradio is not installed, or the port is taken.
    """
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    with tempfile.TemporaryDirectory(prefix="space-") as work:
        folders = Folders(Path(work).resolve(), (folder.resolve() / ADAPTERS,))
        app.keep_files_in(folders)
        page = build(folder, folders)
        app.serve(page, folders, host, port)
        console.say(f"the page is at {page.local_url}")
        page.block_thread()


def build(folder: Path, folders: Folders) -> Any:
    """Make the page of a Space.

    Args:
        folder: of the Space.
        folders: that it works in.

    Returns:
        A `gradio.Blocks`.
    """
    gradio = app.open_gradio()
    settings = json.loads((folder / SETTINGS).read_text("utf-8"))
    demo = Demo(settings["base"], tuple(settings["prompts"]), settings["guidance_scale"])
    with gradio.Blocks(title=settings["title"], analytics_enabled=False) as page:
        gradio.Markdown(f"# {settings['title']}")
        generate_tab.build(folders, demo)
    return page

"""`scumble ui`: the web page."""

import os
from collections.abc import Sequence

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config.ui import UiConfig


def main(arguments: Sequence[str]) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: bad settings, or Gradio is not installed.
    """
    description = "Train, draw and look after adapters in a web page."
    flags = parse_flags((UiConfig,), arguments, "scumble ui", description)
    flags["auth"] = flags["auth"] or os.environ.get("SCUMBLE_UI_AUTH")
    config = UiConfig(**flags)
    from scumble.ui.app import launch

    page = launch(config)
    console.say(f"the page is at {page.local_url}; Ctrl-C ends it, and no run that it started")
    page.block_thread()

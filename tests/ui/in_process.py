"""The page served by the test's own process, which is quicker to start than one of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scumble.config.ui import UiConfig
from scumble.ui.app import launch


@contextmanager
def served_page(folder: Path, **options: Any) -> Iterator[Any]:
    """A page on a free port; gives the `gradio.Blocks`."""
    before = dict(os.environ)
    page = launch(UiConfig(folder=str(folder), port=0, **options))
    try:
        yield page
    finally:
        page.close(verbose=False)
        os.environ.clear()
        os.environ.update(before)

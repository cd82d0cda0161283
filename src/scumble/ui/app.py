"""The page as a whole: its tabs, how it is served, and what it may show."""

import os
import socket
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scumble.config.ui import UiConfig
from scumble.errors import UserError
from scumble.ui import style
from scumble.ui.folders import Folders

TABS = {"Train": "train_tab", "Generate": "generate_tab", "Library": "library_tab"}
"""Title of a tab -> its module, whose `build(folders)` fills it."""

KEPT_S = 24 * 3600
"""Copies of what was sent to or by a browser are deleted after so long."""


def folders_of(config: UiConfig) -> Folders:
    """The folders of a page; its own is made.

    Raises:
        UserError: one that is to be read does not exist, or the page's own cannot be made.
    """
    allowed = tuple(Path(name).expanduser() for name in config.allow)
    for folder in allowed:
        if not folder.is_dir():
            raise UserError(f"--allow {folder} is no folder", "Name one that exists.")
    work = Path(config.folder).expanduser().resolve()
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--folder {work} cannot be made: {error.strerror}") from error
    return Folders(work, allowed, config.max_upload_mb * 2**20)


def build(config: UiConfig) -> Any:
    """Make the page, not served yet.

    Returns:
        A `gradio.Blocks`.

    Raises:
        UserError: Gradio is not installed, or a folder is not there.
    """
    gradio = _gradio()
    folders = folders_of(config)
    titles = ["Generate"] if config.generate_only else list(TABS)
    with gradio.Blocks(
        title="scumble", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)
    ) as page:
        gradio.HTML(style.TITLE)
        for title in titles:
            if find_spec(f"scumble.ui.{TABS[title]}") is None:
                continue
            with gradio.Tab(title, id=title.lower()):
                import_module(f"scumble.ui.{TABS[title]}").build(folders)
    return page


def launch(config: UiConfig) -> Any:
    """Serve the page in the background of this process.

    Returns:
        The `gradio.Blocks`; its `local_url` is the address, and `block_thread` waits for Ctrl-C.

    Raises:
        UserError: Gradio is not installed, or the port is taken.
    """
    folders = folders_of(config)
    # Gradio keeps uploads and what it serves here, not in a folder that others can read.
    os.environ["GRADIO_TEMP_DIR"] = str(folders.served)
    page = build(config)
    try:
        page.queue(default_concurrency_limit=4).launch(
            server_name=config.host,
            server_port=config.port or _free_port(config.host),
            auth=config.credentials,
            max_file_size=folders.max_upload_bytes,
            inbrowser=config.open_browser,
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            **style.options(),
        )
    except OSError as error:
        raise UserError(
            f"the page cannot be served at {config.host}, port {config.port}",
            "Choose another port: --port 7861.",
        ) from error
    return page


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "the page needs Gradio", "Install it: pip install 'scumble[ui]'."
        ) from error
    return gradio

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
    gradio = open_gradio()
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
    keep_files_in(folders)
    page = build(config)
    serve(
        page,
        folders,
        config.host,
        config.port,
        auth=config.credentials,
        inbrowser=config.open_browser,
    )
    return page


def keep_files_in(folders: Folders) -> None:
    """Let Gradio keep uploads and what it serves here, not in a folder that others can read.

    Its widgets take note of that when they are made.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folders.served)


def serve(page: Any, folders: Folders, host: str, port: int, **options: Any) -> None:
    """Serve a page in the background of this process.

    Args:
        page: a `gradio.Blocks`.
        folders: that it works in.
        host: address to listen at.
        port: 0 takes a free one.
        **options: further ones of `gradio.Blocks.launch`.

    Raises:
        UserError: the port is taken.
    """
    try:
        page.queue(default_concurrency_limit=4).launch(
            server_name=host,
            server_port=port or _free_port(host),
            max_file_size=folders.max_upload_bytes,
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            **options,
            **style.options(),
        )
    except OSError as error:
        raise UserError(
            f"the page cannot be served at {host}, port {port}",
            "Choose another port: --port 7861.",
        ) from error


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def open_gradio() -> Any:
    """Import Gradio, with its reports to its maker turned off.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "the page needs Gradio", "Install it: pip install 'scumble[ui]'."
        ) from error
    return gradio

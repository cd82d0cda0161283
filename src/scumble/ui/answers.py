"""What the page tells a visitor: errors as text, files as copies that the browser may fetch."""

import os
import re
import shutil
import uuid
from pathlib import Path

from scumble.errors import UserError
from scumble.ui.folders import Folders

FLAG = re.compile(r"--(\w+)")
"""How errors name settings, which have no dashes on the page."""


def problem(error: UserError, folders: Folders) -> str:
    """An error as Markdown: what is wrong, and what to do.

    Args:
        error: that a visitor can put right.
        folders: whose place on this machine is left out.
    """
    said = FLAG.sub(lambda flag: flag[1].replace("_", " "), plain(error.message, folders))
    hint = f"  \n{escaped(plain(error.hint, folders))}" if error.hint else ""
    return f"**{escaped(said)}**{hint}"


def plain(text: str, folders: Folders) -> str:
    """A text for the page: places in its folders without where those are on this machine."""
    for root in (folders.work, *folders.allowed):
        for place in (root.resolve(), root):
            text = text.replace(f"{place}{os.sep}", "")
    return text


def served(path: Path, folders: Folders, name: str = "") -> Path:
    """A copy of a file in the one folder that the browser may fetch from.

    Args:
        path: the file.
        folders: of the page.
        name: what to call the copy; its own name if empty.

    Raises:
        OSError: it cannot be written.
    """
    place = folders.served / uuid.uuid4().hex
    place.mkdir(parents=True)
    return Path(shutil.copy2(path, place / (name or path.name)))


def escaped(text: str) -> str:
    """A text that Markdown and HTML show as it is: files and errors may say anything."""
    for sign in "\\`*_[]<>":
        text = text.replace(sign, f"\\{sign}")
    return text

"""Processes that outlive whoever started them, known again by number and time of birth."""

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scumble.runs.listing import is_alive

QUIET = {"TQDM_MININTERVAL": "5", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
"""A progress bar in a file needs few lines, and they are to be there at once."""


def start_detached(arguments: Sequence[str], output: Path) -> "subprocess.Popen[bytes]":
    """Start Python in a process of its own, which no Ctrl-C or closed terminal here reaches.

    Args:
        arguments: behind the name of the interpreter.
        output: file that gets what it says, after what is there already.
    """
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        options = {"creationflags": flags}
    with output.open("ab") as file:
        process = subprocess.Popen(
            # -P: a stray json.py where the page was started must not be taken for Python's own.
            [sys.executable, "-P", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | QUIET,
            **options,
        )
    # Somebody has to ask for the exit code, or the dead process stays in the system's list.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from a later one with the same number, as plain values for JSON."""
    import psutil

    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:
        started = 0.0
    return {"pid": pid, "started": started, "host": platform.node()}


def ask_to_stop(process: dict[str, Any]) -> bool:
    """Ask a process to end in good order; while it trains, it saves a checkpoint first.

    SIGTERM, and not SIGINT: a process whose ancestors ran in the background ignores that one. On
    Windows it ends at once, and what came after the last checkpoint is lost.

    Args:
        process: its `identity`.

    Returns:
        Whether there was one to ask.
    """
    import psutil

    if not is_alive(process):
        return False
    try:
        psutil.Process(process["pid"]).terminate()
    except psutil.Error:
        return False
    return True

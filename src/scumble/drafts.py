"""Names for what is not yet whole, and what is left of writers that were killed.

A draft bears the machine and the process that writes it, so that others know whether it still does.
"""

import errno
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

ABANDONED_S = 7 * 24 * 3600.0
"""A draft of another machine that is older than this is nobody's any more."""

_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_DRAFT = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)\.tmp")


def draft_of(path: Path) -> Path:
    """Where this process writes what is to be put in the place of `path`."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.tmp")


def is_draft(path: Path) -> bool:
    """Whether a file or folder is somebody's draft, by its name."""
    return _DRAFT.fullmatch(path.name) is not None


def sweep(paths: Iterable[Path]) -> None:
    """Remove those of these paths that are drafts of processes which are no more.

    Nobody may be writing into these places from this process.
    """
    for path in paths:
        with suppress(OSError):  # somebody else was faster, or may and we may not
            if _is_abandoned(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or which files a folder holds, is on the disk and outlasts a power cut.

    Some network disks cannot say that of a folder: they do as they do.
    """
    if os.name == "nt" and path.is_dir():
        return  # a folder cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT):
            raise
    finally:
        os.close(descriptor)


@cache
def _machine() -> str:
    """Where numbers of processes mean the same: a machine, or one of the containers on it."""
    numbers = ""
    with suppress(OSError):  # not on Linux
        numbers = os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(f'{platform.node()}{numbers}'.encode()):08x}"


def _is_abandoned(path: Path) -> bool:
    named = _DRAFT.fullmatch(path.name)
    if named is None:
        return False
    if named["machine"] != _machine():
        return time.time() - path.stat().st_mtime > ABANDONED_S
    pid = int(named["pid"])
    return pid == os.getpid() or not _is_running(pid)


def _is_running(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError, OverflowError):
        return False

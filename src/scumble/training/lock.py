"""One run at a time writes into an output folder; a lock that ends with its process, however."""

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scumble import console
from scumble.errors import UserError

LOCK_NAME = ".scumble.lock"
PATIENCE_S = 1.0
"""So long is tried: whoever looks whether a run is alive holds its lock for a moment too."""
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


@contextmanager
def locked(folder: Path, holder: dict[str, Any]) -> Iterator[None]:
    """Keep other runs out of a folder, which is made, and unmade if nothing was put into it.

    Args:
        folder: the output folder.
        holder: "pid" and "host" of this process, for those who are kept out.

    Raises:
        UserError: another run writes there, or nobody can.
    """
    from scumble.formats.container import require_writable

    require_writable(folder, "--output_dir")
    path = folder / LOCK_NAME
    made = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    except OSError as error:
        raise UserError(
            f"the output folder {folder} cannot be written: {error.strerror}",
            "Choose another with --output_dir.",
        ) from error
    try:
        _name_holder(descriptor, holder)
        yield
    finally:
        with suppress(OSError):  # on Windows a file in use stays
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):  # it is not empty
            for one in made:
                one.rmdir()


def holder_of(folder: Path) -> dict[str, Any] | None:
    """Who writes into a folder at this moment; None where nobody does, or it cannot be known."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _try(descriptor, alone=False) else _content(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def require_free(folder: Path) -> None:
    """Make sure that nobody writes into a folder now; it is not locked.

    Raises:
        UserError: another run does.
    """
    holder = holder_of(folder)
    if holder is not None:
        raise _taken(folder, holder)


def _take(path: Path) -> int:
    """Open the lock file and lock it, for as long as the process lives or it is closed."""
    end = time.monotonic() + PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _try(descriptor) and _is_still(path, descriptor):
                return descriptor
            taken = _taken(path.parent, _content(descriptor))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
            console.say(
                f"the disk of {path.parent} knows no locks ({error.strerror}): start no second run "
                "there"
            )
            return descriptor
        os.close(descriptor)
        if time.monotonic() > end:
            raise taken
        time.sleep(PATIENCE_S / 10)


def _try(descriptor: int, *, alone: bool = True) -> bool:
    """Lock an open file if nobody else has; others may look at the same time unless `alone`."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # what is locked there cannot be read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether it was not removed, by the one who had it, between opening and locking."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _name_holder(descriptor: int, holder: dict[str, Any]) -> None:
    with suppress(OSError):  # a full disk: what matters is the lock
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(holder).encode())


def _content(descriptor: int) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 4096))
        if isinstance(found, dict):
            return found
    return {}


def _taken(folder: Path, holder: dict[str, Any]) -> UserError:
    return UserError(
        f"another run is writing into {folder}: {_worded(holder)}",
        "Wait for its end or stop it, or name another --output_dir.",
    )


def _worded(holder: dict[str, Any]) -> str:
    match holder:
        case {"pid": int(pid), "host": str(host)}:
            return f"process {pid} on {host}"
    return "a process that has not said which"

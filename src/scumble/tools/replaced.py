"""A file or folder that takes its place when it is whole, and leaves no trace until then."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from scumble.formats.streaming import write_errors


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a place beside `path` to write at, from where the new file or folder moves to it.

    Whatever goes wrong, Ctrl-C included, what was there stays, and folders that were made above it
    go again.

    Args:
        path: to write; an older one goes when the new one is in its place.

    Raises:
        UserError: it cannot be written.
    """
    with write_errors(path), new_parents(path):
        holder = Path(mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        new, old = holder / "new", holder / "old"
        try:
            yield new
            if path.is_dir():  # which, unlike a file, nothing can replace in one step
                path.rename(old)
            new.replace(path)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def new_parents(path: Path) -> Iterator[None]:
    """Make the folders above a path, and take those that were missing away again on failure."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # such as one that something else was put into
            for folder in missing:
                folder.rmdir()
        raise

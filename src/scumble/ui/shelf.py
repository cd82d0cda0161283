"""The adapters in the folders of the page, by names that visitors see and send back."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from scumble.errors import UserError
from scumble.ui.answers import plain
from scumble.ui.folders import Folders

if TYPE_CHECKING:
    from scumble.tools.inspect import Inspection

MAX_DEPTH = 4
"""So many folders deep adapters are looked for."""
MAX_ADAPTERS = 1000
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Entry:
    """An adapter on the shelf.

    Args:
        name: its place in the page's folders, the same for everyone who looks.
        path: the file.
        base: that it was trained on, as far as it says so.
        type: adapter types in it.
        rank: of its layers.
        bytes: its size.
        written: when, in seconds since 1970.
        trigger: words that call it.
    """

    name: str
    path: Path
    base: str
    type: str
    rank: str
    bytes: int
    written: float
    trigger: str

    @property
    def date(self) -> str:
        """When it was written, to the minute."""
        return datetime.fromtimestamp(self.written).strftime("%Y-%m-%d %H:%M")


@dataclass
class Shelf:
    """What lies in the folders; files are read once, and again when they change.

    Args:
        folders: of the page.
    """

    folders: Folders
    _known: dict[Path, tuple[object, Entry | str]] = field(default_factory=dict)

    def look(self) -> tuple[list[Entry], list[str]]:
        """Find every adapter, the newest first.

        Returns:
            The adapters, and a line for each file that lies there and cannot be used.
        """
        entries, problems = [], []
        for name, path in self._named():
            found = self._read(name, path)
            if isinstance(found, Entry):
                entries.append(found)
            elif found:
                problems.append(found)
        return sorted(entries, key=lambda entry: entry.written, reverse=True), problems

    def names(self) -> list[str]:
        """What `look` finds, by name."""
        return [entry.name for entry in self.look()[0]]

    def source(self, name: str) -> str:
        """The file that a name means, or a path or Hub id that a visitor typed.

        Raises:
            UserError: there is none, or it is outside of the page's folders.
        """
        known = dict(self._named()).get(name)
        if known is not None:
            return str(known)
        from scumble.hub.pull import local_adapter

        return str(local_adapter(self.folders.model(name)))

    def _named(self) -> Iterator[tuple[str, Path]]:
        """Every file that may be an adapter, under its place in the first root that has it."""
        seen: set[Path] = set()
        taken: set[str] = set()
        for root in (self.folders.work, *self.folders.allowed):
            for path in _files(root.resolve(), MAX_DEPTH):
                if path in seen or len(seen) >= MAX_ADAPTERS:
                    continue
                seen.add(path)
                name = _name(path, root.resolve())
                if name in taken:
                    name = f"{root.resolve().name}/{name}"
                taken.add(name)
                yield name, path

    def _read(self, name: str, path: Path) -> Entry | str:
        """An adapter, or what is wrong with it; nothing is wrong with a base model."""
        from scumble.tools.inspect import inspect_adapter

        try:
            status = path.stat()
            stamp = name, status.st_mtime_ns, status.st_size
            if path not in self._known or self._known[path][0] != stamp:
                entry = _entry(name, path, inspect_adapter(path), status.st_mtime)
                self._known[path] = stamp, entry
        except UserError as error:
            is_model = error.message.endswith("not an adapter")
            self._known[path] = (
                stamp,
                "" if is_model else f"{name}: {plain(error.message, self.folders)}",
            )
        except OSError as error:
            return f"{name}: {error.strerror}"
        return self._known[path][1]


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Files that may be adapters, without checkpoints, whole models, hidden files and links."""
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # not ours to read
    visible = [entry for entry in found if not entry.name.startswith(".")]
    files = [entry.name for entry in visible if entry.is_file(follow_symlinks=False)]
    if "model_index.json" in files:
        return
    yield from (folder / name for name in _without_parts(files))
    for entry in visible:
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder and depth and not entry.name.startswith("checkpoint-"):
            yield from _files(folder / entry.name, depth - 1)


def _without_parts(names: Iterable[str]) -> list[str]:
    """Leave out a run's separate files where one lies beside them that holds all of them."""
    from scumble.formats.files import BUNDLE_NAME, EMBEDS_NAME, WEIGHT_NAME

    found = [name for name in names if name.lower().endswith(SUFFIX)]
    parts = (WEIGHT_NAME, EMBEDS_NAME) if BUNDLE_NAME in found else ()
    return [name for name in found if name not in parts]


def _name(path: Path, root: Path) -> str:
    """A run's folder where files of runs are all called alike, otherwise the file."""
    from scumble.formats.files import FILE_NAMES

    place = path.relative_to(root)
    is_run = path.name in FILE_NAMES and place.parent != Path()
    return (place.parent if is_run else place.with_suffix("")).as_posix()


def _entry(name: str, path: Path, found: "Inspection", written: float) -> Entry:
    from scumble.tools.table import spread

    ranks = [module.rank for module in found.modules]
    types = sorted({module.type for module in found.modules}) + ["word"] * bool(found.tokens)
    words = found.notes.trigger_words or tuple(dict.fromkeys(t.token for t in found.tokens))
    return Entry(
        name=name,
        path=path,
        base=found.notes.base_model or "",
        type=" + ".join(types),
        rank=spread(ranks) if ranks else "-",
        bytes=found.bytes,
        written=written,
        trigger=", ".join(words),
    )

"""Where examples come from: a folder of pictures, or a data set in Hugging Face's formats.

Captions are read at once and pictures only when asked for, so a source is cheap to build.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from scumble.data.addresses import picture_bytes, places_of
from scumble.data.caption_files import (
    CAPTION_SUFFIXES,
    METADATA_NAMES,
    as_captions,
    metadata_captions,
    read_file,
    sidecar_captions,
)
from scumble.data.masks import pair_masks
from scumble.data.wording import listed, unknown_column
from scumble.errors import UserError, first_line

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"}
)
# Column types that may hold an encoded picture, or its path, besides datasets.Image itself.
_ENCODED = frozenset(("binary", "large_binary", "string", "large_string"))


_FOLDER_HINT = "Or, for a folder of pictures with text files beside them: --train_data_dir."


@dataclass(frozen=True)
class Example:
    """A picture that has not been opened yet, and its captions.

    Args:
        id: the file's name relative to the folder, or "name[17]" for a row of a data set.
        captions: none where the source has no caption for it.
        read: gives the bytes of the image file.
        read_mask: gives the bytes of the mask file; None where there is none.
    """

    id: str
    captions: tuple[str, ...]
    read: Callable[[], bytes] = field(repr=False)
    read_mask: Callable[[], bytes] | None = field(default=None, repr=False)


class Source(Protocol):
    """A place that examples come from, in the same order at each iteration."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def streaming(self) -> bool:
        """Whether going through it again would fetch everything again."""

    @property
    def notes(self) -> list[str]:
        """Findings that belong to no example, such as a caption without a picture."""

    def __iter__(self) -> Iterator[Example]:
        """Yield every example once."""


@dataclass(frozen=True)
class _Folder:
    name: str
    examples: list[Example]
    notes: list[str]
    streaming: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def image_folder(path: Path, caption_column: str = "text") -> Source:
    """List the pictures of a folder and its subfolders, with their captions.

    Captions come from `metadata.jsonl` or `metadata.csv` (a `file_name` relative to that file and
    the caption column), else from a text file beside the picture: cat.png and cat.txt or
    cat.caption. The whole text file is one caption. A mask for cat.png is cat.mask.png or
    cat-masklabel.png, and no picture itself.

    Args:
        path: of the folder. Hidden files and folders are passed over.
        caption_column: of the metadata files.

    Raises:
        UserError: there is no such folder, no picture in it, or a caption cannot be read.
    """
    files, linked = _visible_files(path)
    notes = _ignored(files)
    if linked:  # they may lead back to where they are
        notes.append(f"linked folders are passed over: {listed(linked)}")
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    pictures, masks = pair_masks(images, notes)
    if not pictures:
        message = " and ".join([f"there are no pictures in {path}", *notes])
        raise UserError(message, "Pictures are PNG, JPEG, WebP and the like.")
    from_metadata = metadata_captions(path, files, pictures, caption_column, notes)
    from_sidecars = sidecar_captions(path, files, pictures, notes)
    both = [str(file) for file in pictures if file in from_metadata and file in from_sidecars]
    if both:
        notes.append(f"captions in metadata and in text files, metadata is used: {listed(both)}")
    captions = from_sidecars | from_metadata
    examples = [
        Example(
            # As text: some names are no UTF-8.
            os.fsencode(file.as_posix()).decode("utf-8", "backslashreplace"),
            captions.get(file, ()),
            partial(read_file, path / file),
            partial(read_file, path / masks[file]) if file in masks else None,
        )
        for file in pictures
    ]
    return _Folder(str(path), examples, notes)


def _visible_files(root: Path) -> tuple[list[Path], list[str]]:
    """The files below a folder, and the links to folders, which are not followed."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    if not root.exists():
        raise UserError(f"there is no folder {root}", "Check the path.")
    if not root.is_dir():
        raise UserError(f"{root} is a file, not a folder", "Name the folder that holds it.")
    files, linked = [], []
    for parent, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(parent).relative_to(root)
        files += [here / name for name in names if not name.startswith(".")]
        linked += [str(here / name) for name in folders if Path(parent, name).is_symlink()]
    return sorted(files, key=Path.as_posix), linked


def _ignored(files: list[Path]) -> list[str]:
    known = IMAGE_SUFFIXES.union(CAPTION_SUFFIXES)
    suffixes = Counter(
        file.suffix.lower() or "no extension"
        for file in files
        if file.suffix.lower() not in known and file.name not in METADATA_NAMES
    )
    counts = [f"{count} x {suffix}" for suffix, count in suffixes.most_common()]
    return [f"files of other types are ignored: {listed(counts)}"] if counts else []


@dataclass(frozen=True)
class _Table:
    name: str
    streaming: bool
    rows: Any
    image_column: str
    caption_column: str | None
    places: tuple[Path, ...]
    notes: list[str] = field(default_factory=list)

    def __length_hint__(self) -> int:
        return 0 if self.streaming else len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        for number, row in enumerate(self._light_rows()):
            where = f"{self.name}[{number}]"
            captions = as_captions(row.get(self.caption_column or ""), where)
            if self.streaming:
                read = partial(picture_bytes, row[self.image_column], self.places)
            else:
                read = partial(self._read, number)
            yield Example(where, captions, read)

    def _light_rows(self) -> Iterator[dict[str, Any]]:
        if self.streaming:
            return iter(self.rows)
        if self.caption_column is None:
            return iter([{}] * len(self.rows))
        return iter(self.rows.select_columns([self.caption_column]))

    def _read(self, number: int) -> bytes:
        return picture_bytes(self.rows[number][self.image_column], self.places)


def huggingface_dataset(
    name: str,
    *,
    config_name: str | None = None,
    split: str = "train",
    image_column: str = "image",
    caption_column: str | None = "text",
    needs_captions: bool = True,
    revision: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> Source:
    """Open a data set: a Hub id, or a local folder of pictures, Parquet, CSV or tar files.

    Args:
        name: Hub id or local folder.
        config_name: the subset, where the data set has several.
        split: such as "train" or "train[:10%]".
        image_column: holds the pictures.
        caption_column: holds a caption or a list of captions. None where there is no such column.
        needs_captions: whether a missing caption column is an error.
        revision: branch, tag or commit on the Hub.
        cache_dir: where `datasets` keeps downloads; None for its default.
        streaming: fetch rows while reading instead of downloading first.

    Raises:
        UserError: the data set cannot be reached or read, or a column is missing.
    """
    rows = _load(name, config_name, split, revision, cache_dir, streaming)
    columns = rows.column_names or list(next(iter(rows), {}))
    if caption_column not in columns and not needs_captions:
        caption_column = None
    for flag, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column is not None and column not in columns:
            error = unknown_column(f"the data set {name}", flag, column, columns)
            if columns == ["text"]:  # of the text files beside pictures
                error = UserError(error.message, f"{error.hint} {_FOLDER_HINT}")
            raise error
    wanted = [image_column] if caption_column is None else [image_column, caption_column]
    rows = _undecoded(rows.select_columns(wanted), image_column, name)
    places = places_of(name, cache_dir)
    return _Table(name, streaming, rows, image_column, caption_column, places)


def _load(
    name: str,
    config_name: str | None,
    split: str,
    revision: str | None,
    cache_dir: str | None,
    streaming: bool,
) -> Any:
    # Imported here because it takes most of a second and image folders do without it.
    try:
        import datasets
    except ImportError as error:
        message = "--dataset_name needs the datasets library, which is not installed"
        hint = "Run: pip install 'scumble[datasets]', or use --train_data_dir for a folder."
        raise UserError(message, hint) from error
    try:
        return datasets.load_dataset(
            name,
            config_name,
            split=split,
            revision=revision,
            cache_dir=cache_dir,
            streaming=streaming,
        )
    except (ConnectionError, FileNotFoundError) as error:
        message = f"the data set {name} cannot be found or reached: {first_line(error)}"
        hint = "Give a folder that exists, or check the Hub id, the network and the log-in."
        raise UserError(message, hint) from error
    except Exception as error:  # The readers of its many formats meet damage with any type.
        reason = error if error.__cause__ is None else error.__cause__
        raise UserError(
            f"the data set {name} cannot be loaded: {first_line(reason)}",
            f"Repair or remove the file that is at fault. {_FOLDER_HINT}",
        ) from error


def _undecoded(rows: Any, image_column: str, name: str) -> Any:
    import datasets

    kind = (rows.features or {}).get(image_column, datasets.Image())
    if not isinstance(kind, datasets.Image | dict) and getattr(kind, "dtype", "") not in _ENCODED:
        message = f"the column '{image_column}' of the data set {name} holds {kind}, no pictures"
        raise UserError(message, "Name the right one with --image_column.")
    return rows.cast_column(image_column, datasets.Image(decode=False))

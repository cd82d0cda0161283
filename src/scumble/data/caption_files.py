"""Captions from files: `metadata.jsonl`, `metadata.csv` and single caption files."""

import csv
import errno
import io
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import normalize

from scumble.data.wording import listed, unknown_column
from scumble.errors import UserError, first_line

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_SUFFIXES = (".txt", ".caption")

NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What no text contains: NUL, and halves of characters."""


def as_captions(value: object, where: str) -> tuple[str, ...]:
    """Turn a caption cell into captions: a text, a list of texts, or nothing at all.

    Args:
        value: the cell. None means that there is no caption; blank texts are kept as "".
        where: names the row in the error.

    Raises:
        UserError: the cell holds something that is not text.
    """
    values: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        raise UserError(f"{where}: the caption is not text: {value!r}", "Use text or a text list.")
    for text in values:
        if broken := NO_CHARACTER.search(text):
            message = f"{where}: the caption holds {broken[0]!a}, which is no character"
            raise UserError(message, "Write the text anew, in UTF-8.")
    return tuple(text.strip() for text in values)


def metadata_captions(
    root: Path, files: list[Path], pictures: list[Path], caption_column: str, notes: list[str]
) -> dict[Path, tuple[str, ...]]:
    """Collect the captions that metadata files give to the pictures of a folder.

    Args:
        root: the folder; all other paths are relative to it.
        files: everything in it.
        pictures: those of the files that may get captions.
        caption_column: of the metadata files.
        notes: gets a line about rows whose picture is not there.

    Raises:
        UserError: a row cannot be read, or names a file outside of the folder.
    """
    # macOS stores names decomposed, people type them composed.
    by_name = {normalize("NFC", file.as_posix()): file for file in pictures}
    captions: dict[Path, tuple[str, ...]] = {}
    absent = []
    for metadata in (file for file in files if file.name in METADATA_NAMES):
        for name, texts in _read_metadata(root / metadata, caption_column):
            inside = Path(os.path.normpath(metadata.parent / name))
            if inside.anchor or inside.parts[:1] == ("..",):
                message = f"{root / metadata} names '{name}', which is outside of {root}"
                raise UserError(message, "Give file names relative to the metadata file.")
            picture = by_name.get(normalize("NFC", inside.as_posix()))
            if picture is None:
                absent.append(inside.as_posix())
            elif texts:
                captions[picture] = captions.get(picture, ()) + texts
    if absent:
        notes.append(f"metadata rows without a picture: {listed(absent)}")
    return captions


def sidecar_captions(
    root: Path, files: list[Path], pictures: list[Path], notes: list[str]
) -> dict[Path, tuple[str, ...]]:
    """Collect the captions that text files give to the pictures beside them.

    Args:
        root: the folder; all other paths are relative to it.
        files: everything in it.
        pictures: those of the files that may get captions.
        notes: gets a line for each way in which files do not pair up.

    Raises:
        UserError: a caption file cannot be read.
    """
    sidecars = [file for file in files if file.suffix.lower() in CAPTION_SUFFIXES]
    # .txt comes last and so wins over .caption.
    by_stem = {
        file.with_suffix(""): file for file in sorted(sidecars, key=lambda f: f.suffix.lower())
    }
    sharing = Counter(picture.with_suffix("") for picture in pictures)
    orphans = [str(file) for file in sidecars if not sharing[file.with_suffix("")]]
    unused = [str(file) for file in sidecars if by_stem[file.with_suffix("")] != file]
    shared = [str(file) for stem, file in by_stem.items() if sharing[stem] > 1]
    for finding, names in (
        ("caption files without a picture", orphans),
        ("caption files unused because another one has the same name", unused),
        ("caption files shared by pictures of the same name", shared),
    ):
        if names:
            notes.append(f"{finding}: {listed(names)}")
    return {
        picture: (_read_text(root / sidecar).strip(),)
        for picture in pictures
        if (sidecar := by_stem.get(picture.with_suffix("")))
    }


def _read_metadata(path: Path, caption_column: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the file name and the captions of every row of a metadata file.

    Raises:
        UserError: a row cannot be read, or a column is missing from all rows.
    """
    rows = list(_csv_rows(path) if path.suffix == ".csv" else _json_rows(path))
    columns = list(dict.fromkeys(column for _, row in rows for column in row if column))
    if "file_name" not in columns:
        raise UserError(f"{path} names no picture", "Every row needs a file_name.")
    if caption_column not in columns:
        raise unknown_column(str(path), "caption_column", caption_column, columns)
    for where, row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} has no file_name", "Every row needs a file_name.")
        yield name, as_captions(row.get(caption_column), where)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines(): JSON strings may hold U+2028, which it would take for the end of a line.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # the latter where it nests without end
            reason = getattr(error, "msg", None) or first_line(error)
            raise UserError(f"{where} is not JSON: {reason}", "One object per line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object", 'Use {"file_name": ..., "text": ...}.')
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    try:
        for row in reader:
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def read_file(path: Path) -> bytes:
    """Read a file, and only a file: pipes and devices may never come to an end.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "it is a pipe or device, not a file", str(path))
    return path.read_bytes()


def _read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        UserError: the file cannot be read, or is in another encoding.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, error.start) from error
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise UserError(message, "Repair or remove it.") from error
    if "\0" in text:  # plain English in UTF-16 is valid UTF-8, with a NUL in every other place
        raise _wrong_encoding(path, len(text[: text.index("\0")].encode()))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _wrong_encoding(path: Path, byte: int) -> UserError:
    message = f"{path} is not valid UTF-8 text (byte {byte})"
    return UserError(message, "Save the file again with UTF-8 encoding.")

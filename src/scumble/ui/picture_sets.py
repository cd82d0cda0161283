"""Sets of pictures: uploads checked and kept, captions written, thumbnails for the page."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scumble.data.caption_files import METADATA_NAMES
from scumble.data.pictures import BadPictureError, decode
from scumble.data.scan import ScanReport, scan
from scumble.data.sources import IMAGE_SUFFIXES, Example, image_folder
from scumble.errors import UserError, first_line
from scumble.formats.container import write_atomically
from scumble.ui.folders import Folders, plain_name

MAX_UPLOADS = 1000
"""Of one set: more belong into a folder that the page may read."""
MAX_CAPTION_BYTES = 64 * 1024
THUMBNAIL_PX = 112


@dataclass(frozen=True)
class PictureSet:
    """A folder of pictures that the page may train on.

    Args:
        folder: of the pictures.
        examples: what is in it.
        is_ours: whether it is one that the page made of uploads.
    """

    folder: Path
    examples: Sequence[Example]
    is_ours: bool

    @property
    def has_metadata(self) -> bool:
        """Whether a table holds captions, which count more than files beside pictures."""
        return any((self.folder / name).exists() for name in METADATA_NAMES)

    def write_caption(self, number: int, text: str) -> None:
        """Write the caption of a picture beside it.

        Raises:
            UserError: it cannot be written, or would not count.
        """
        if self.has_metadata:
            raise UserError(
                f"the captions of {self.folder.name} are in a table", "Edit its metadata file."
            )
        path = self.folder / self.examples[number].id
        write_atomically(path.with_suffix(".txt"), (text.strip() + "\n").encode())

    def again(self) -> "PictureSet":
        """The set as it is now."""
        return PictureSet(self.folder, list(image_folder(self.folder)), self.is_ours)

    def findings(self) -> list[str]:
        """What there is to know of the pictures before training on them, in lines."""
        report = ScanReport()
        try:
            for _ in scan(
                image_folder(self.folder), report, on_bad_image="skip", on_missing_caption="empty"
            ):
                pass
        except UserError as error:
            return [*report.lines(), error.message]
        return report.lines()


def open_set(folders: Folders, folder: Path) -> PictureSet:
    """Look into a folder that may be read.

    Raises:
        UserError: it is not there, holds no picture, or a link in it leads out of the folders.
    """
    examples = list(image_folder(folder))
    for example in examples:
        if not folders.contains(folder / example.id):
            raise UserError(
                f"{example.id} is a link to somewhere outside of the folders that this page may "
                "read",
                "Start the page with --allow FOLDER to let it read that one.",
            )
    is_ours = folder.resolve().is_relative_to(folders.pictures.resolve())
    return PictureSet(folder, examples, is_ours)


def names_of_sets(folders: Folders) -> list[str]:
    """The sets made of uploads, the newest first."""
    if not folders.pictures.is_dir():
        return []
    found = [path for path in folders.pictures.iterdir() if path.is_dir()]
    return [path.name for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]


def keep_uploads(folders: Folders, files: Sequence[Path], folder: Path) -> list[str]:
    """Copy uploaded pictures and captions into a set, under plain names.

    Args:
        folders: of the page.
        files: where the browser's files were put, under the names that they had.
        folder: of the set.

    Returns:
        A line for each file that was not taken, with the reason.
    """
    refused = []
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    pictures = [path for path in files if path not in texts]
    if len(pictures) > MAX_UPLOADS:
        refused.append(f"only the first {MAX_UPLOADS} of {len(pictures)} pictures were taken")
    captions = {path.stem: path for path in texts}
    for path in pictures[:MAX_UPLOADS]:
        try:
            target = _keep_picture(folders, path, folder)
            if path.stem in captions:
                text = _caption_text(captions[path.stem])
                write_atomically(target.with_suffix(".txt"), text.encode())
        except (BadPictureError, UnicodeDecodeError, OSError) as error:
            refused.append(f"{path.name}: {first_line(error)}")
    stems = {path.stem for path in pictures}
    refused += [f"{path.name}: no picture of this name" for path in texts if path.stem not in stems]
    return refused


def _keep_picture(folders: Folders, path: Path, folder: Path) -> Path:
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise OSError("not the name of a picture")
    if path.stat().st_size > folders.max_upload_bytes:
        raise OSError(f"more than {folders.max_upload_bytes // 2**20} MiB")
    data = path.read_bytes()
    decode(data)
    taken = {file.stem for file in folder.iterdir()}
    name = plain_name(path.stem)
    number = 2
    while name in taken:
        name, number = f"{plain_name(path.stem)}-{number}", number + 1
    write_atomically(folder / f"{name}{suffix}", data)
    return folder / f"{name}{suffix}"


def _caption_text(path: Path) -> str:
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise OSError(f"a caption of more than {MAX_CAPTION_BYTES // 1024} KiB")
    return path.read_text("utf-8-sig")


def thumbnail(example: Example) -> str:
    """A small picture as an HTML element that carries its own pixels: nothing has to be served."""
    try:
        source = _small(example.read())
    except (OSError, BadPictureError) as error:
        return f'<div class="thumb broken">{html.escape(first_line(error))}</div>'
    return f'<img class="thumb" alt="{html.escape(example.id)}" src="{source}">'


def _small(data: bytes) -> str:
    image, _ = decode(data)
    image.thumbnail((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

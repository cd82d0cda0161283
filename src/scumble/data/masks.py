"""Masks beside pictures: which file is the mask of which picture, and whether it can be used.

White is learned, black is not; greys are in between.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scumble.data.pictures import BadPictureError, decode_mask
from scumble.data.wording import listed
from scumble.errors import UserError

# What follows the picture's name: cat.mask.png, or cat-masklabel.png as OneTrainer has it. Of two
# masks the first kind wins.
_MARKS = (".mask", "-masklabel")


class BadMaskError(Exception):
    """A mask that is not there or cannot be used; says why, without the picture's name."""


def pair_masks(files: list[Path], notes: list[str]) -> tuple[list[Path], dict[Path, Path]]:
    """Tell masks from pictures by their names, and find each picture's mask.

    Args:
        files: image files, sorted.
        notes: gets a line for each way in which files do not pair up.

    Returns:
        The pictures, and picture -> mask for those that have one.
    """
    marks = {file: mark for file in files if (mark := _mark(file)) is not None}
    pictures = [file for file in files if file not in marks]
    stem_of = {mask: mask.with_name(mask.stem[: -len(mark)]) for mask, mark in marks.items()}
    by_stem: dict[Path, Path] = {}
    for mask in sorted(marks, key=lambda file: _MARKS.index(marks[file])):
        by_stem.setdefault(stem_of[mask], mask)
    sharing = Counter(picture.with_suffix("") for picture in pictures)
    orphans = [str(mask) for mask in marks if not sharing[stem_of[mask]]]
    unused = [
        str(mask) for mask, stem in stem_of.items() if sharing[stem] and by_stem[stem] != mask
    ]
    shared = [str(mask) for stem, mask in by_stem.items() if sharing[stem] > 1]
    for finding, names in (
        ("masks without a picture", orphans),
        ("masks unused because the picture has another one", unused),
        ("masks shared by pictures of the same name", shared),
    ):
        if names:
            notes.append(f"{finding}: {listed(names)}")
    masks = {
        picture: by_stem[stem]
        for picture in pictures
        if (stem := picture.with_suffix("")) in by_stem
    }
    return pictures, masks


def _mark(file: Path) -> str | None:
    """The end of a name that makes the file a mask; a mark alone is no name of a mask."""
    stem = file.stem.lower()
    return next((mark for mark in _MARKS if stem.endswith(mark) and stem != mark), None)


def check_mask(read: Callable[[], bytes] | None, width_px: int, height_px: int) -> str:
    """Decode a mask and compare it with its picture.

    Args:
        read: gives the bytes of the mask file; None if there is none.
        width_px: of the upright picture.
        height_px: of the upright picture.

    Returns:
        The hex digest of the file's bytes.

    Raises:
        BadMaskError: there is no mask, or one that cannot be used.
    """
    if read is None:
        raise BadMaskError("it has no mask")
    try:
        data = read()
        mask = decode_mask(data)
    except (BadPictureError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadMaskError(f"its mask cannot be read: {reason}") from error
    if mask.size != (width_px, height_px):
        size = f"{mask.width} x {mask.height}"
        raise BadMaskError(f"its mask is {size}, the picture {width_px} x {height_px}")
    if mask.getextrema() == (0, 0):
        raise BadMaskError("its mask is entirely black, so nothing of it would be learned")
    return hashlib.sha256(data).hexdigest()


def bad_masks(faults: list[str]) -> UserError:
    """Build the error for pictures whose mask cannot be used, from a line for each."""
    names = "".join(f"\n    {line}" for line in faults)
    hint = (
        "--masked_loss needs a mask of the same size beside every picture, with white where it is "
        "to be learned: cat.mask.png for cat.png (or cat-masklabel.png). Only a folder "
        "(--train_data_dir) can have masks."
    )
    return UserError(f"pictures without a usable mask: {len(faults)}{names}", hint)

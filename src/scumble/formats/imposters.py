"""What is found in the place of a big file that was never fetched."""

from contextlib import suppress
from pathlib import Path

BEGINNINGS = {
    b"version https://git-lfs.github.com/": (
        "It is a Git LFS pointer, not the file itself: run git lfs pull in its folder."
    ),
    b"<!doctype html": "It is a web page, as a failed download leaves one: fetch it again.",
    b"<html": "It is a web page, as a failed download leaves one: fetch it again.",
}
"""How such files begin, in small letters -> what to do."""


def unmasked(path: Path) -> str:
    """What to do about a file that only has the name of a model; empty where it is none of them."""
    start = b""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    return next((advice for known, advice in BEGINNINGS.items() if start.startswith(known)), "")

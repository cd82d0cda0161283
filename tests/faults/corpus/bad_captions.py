"""Captions and masks that cannot be used, and odd ones that can."""

import json
import os
from collections.abc import Callable

from corpus import LFS_POINTER, WEB_PAGE, Case, Place, picture

Put = Callable[[Place], object]


def refused(name: str, put: Put, *says: str, words: tuple[str, ...] = ()) -> Case:
    def make(place: Place) -> list[str]:
        put(place)
        return place.train(*words)

    return Case(f"caption: {name}", make, says)


def beside(content: bytes | str, name: str = "cat.txt") -> Put:
    """A picture of a cat, and this as its caption file."""

    def put(place: Place) -> None:
        place.add("cat.png")
        place.write(f"pictures/{name}", content)

    return put


def rows(content: bytes | str, name: str = "metadata.jsonl") -> Put:
    """A picture of a cat, and this as the metadata of the folder."""
    return beside(content, name)


def row(**cells: object) -> str:
    return json.dumps(cells)


def captionless(place: Place) -> None:
    for number in range(3):
        place.add(f"alone{number}.png")


def nobody_has_one(place: Place) -> None:
    (place.pictures / "good.txt").write_text("")


def placed(make: Callable[[str], object], name: str) -> Put:
    def put(place: Place) -> None:
        place.add("cat.png")
        make(str(place.pictures / name))

    return put


def linked_outside(place: Place) -> None:
    place.write("secret/other.png", picture())
    os.symlink(place.root / "secret", place.pictures / "inside")
    place.write("pictures/metadata.jsonl", row(file_name="inside/../../secret/other.png", text="a"))


TEXT_FILES = [
    refused("missing", captionless, "alone0.png, alone1.png, alone2.png", "--on_missing_caption"),
    refused("empty everywhere", nobody_has_one, "no picture has a caption", "--instance_prompt"),
    refused("invalid UTF-8", beside(b"caf\xe9 at night"), "cat.txt", "byte 3", "UTF-8"),
    refused("UTF-16", beside("a cat".encode("utf-16")), "cat.txt", "UTF-8"),
    refused("UTF-16 without its mark", beside("a cat".encode("utf-16-le")), "cat.txt", "UTF-8"),
    refused("UTF-32", beside("a cat".encode("utf-32")), "cat.txt", "UTF-8"),
    refused("NUL", beside("a cat\0 at night"), "cat.txt", "byte 5"),
    refused("picture as text", beside(picture("JPEG")), "cat.txt", "UTF-8"),
    refused(
        "Japanese in an old encoding", beside("夜の猫".encode("shift_jis")), "cat.txt", "UTF-8"
    ),
    refused("in a .caption file", beside(b"\xff\xfe", "cat.caption"), "cat.caption", "UTF-8"),
    refused("link to itself", placed(lambda p: os.symlink(p, p), "cat.txt"), "cat.txt", "read"),
    refused("pipe", placed(os.mkfifo, "cat.txt"), "cat.txt", "pipe"),
    refused("device", placed(lambda p: os.symlink("/dev/zero", p), "cat.txt"), "cat.txt", "device"),
    refused("link to nothing", placed(lambda p: os.symlink("x", p), "cat.txt"), "cat.txt", "read"),
    refused("folder", placed(os.mkdir, "cat.txt"), "cat.png", "--on_missing_caption"),
]

ABSENT = ("metadata.jsonl", "outside of", "relative")
METADATA = [
    refused("row that is no JSON", rows('{"file_name": "cat.png", '), "metadata.jsonl, line 1"),
    refused(
        "second row that is no JSON", rows(row(file_name="cat.png", text="a") + "\n{'a'}"), "line 2"
    ),
    refused("row that is a list", rows('["cat.png", "a cat"]'), "line 1", "JSON object"),
    refused("row that is a number", rows("7"), "line 1", "JSON object"),
    refused("row nested without end", rows("[" * 100_000), "metadata.jsonl, line 1", "JSON"),
    refused("number without end", rows('{"file_name": ' + "9" * 5000 + "}"), "line 1", "JSON"),
    refused(
        "one list instead of rows",
        rows(json.dumps([{"file_name": "cat.png", "text": "a"}])),
        "JSON object",
        "line 1",
    ),
    refused(
        "rows over several lines", rows(json.dumps({"file_name": "cat.png"}, indent=2)), "line 1"
    ),
    refused("no file_name", rows(row(text="a cat")), "metadata.jsonl", "file_name"),
    refused(
        "no file_name in the second row",
        rows(row(file_name="cat.png", text="a") + "\n" + row(text="b")),
        "line 2",
        "file_name",
    ),
    refused("file_name is a number", rows(row(file_name=3, text="a")), "line 1", "file_name"),
    refused("file_name is empty", rows(row(file_name="", text="a")), "line 1", "file_name"),
    refused("no text", rows(row(file_name="cat.png", caption="a")), "caption", "--caption_column"),
    refused("text is a number", rows(row(file_name="cat.png", text=7)), "line 1", "7", "text"),
    refused("text is a table", rows(row(file_name="cat.png", text={"en": "a"})), "line 1", "text"),
    refused(
        "text is a list of numbers", rows(row(file_name="cat.png", text=[1])), "line 1", "text"
    ),
    refused(
        "text is half a character",
        rows('{"file_name": "cat.png", "text": "a \\ud800"}'),
        "line 1",
        "character",
    ),
    refused(
        "text holds NUL",
        rows('{"file_name": "cat.png", "text": "a \\u0000"}'),
        "line 1",
        "character",
    ),
    refused("file_name leads up", rows(row(file_name="../secret.png", text="a")), *ABSENT),
    refused(
        "file_name leads up and back",
        rows(row(file_name="../other/../../s.png", text="a")),
        *ABSENT,
    ),
    refused(
        "file_name leads down and up", rows(row(file_name="a/../../secret.png", text="a")), *ABSENT
    ),
    refused("file_name is absolute", rows(row(file_name="/etc/passwd", text="a")), *ABSENT),
    refused("file_name leads out through a link", linked_outside, *ABSENT),
    refused("empty", rows(""), "metadata.jsonl", "file_name"),
    refused(
        "UTF-16 rows",
        rows(row(file_name="cat.png", text="a").encode("utf-16-le")),
        "metadata.jsonl",
        "UTF-8",
    ),
    refused("invalid UTF-8 rows", rows(b'{"file_name": "caf\xe9.png"}'), "metadata.jsonl", "UTF-8"),
    refused("binary rows", rows(picture()), "metadata.jsonl", "UTF-8"),
    refused("web page", rows(WEB_PAGE), "metadata.jsonl", "line 1"),
    refused("LFS pointer", rows(LFS_POINTER), "metadata.jsonl", "line 1"),
    refused("pipe as metadata", placed(os.mkfifo, "metadata.jsonl"), "metadata.jsonl", "pipe"),
    refused(
        "csv without a file_name",
        rows("name,text\ncat.png,a\n", "metadata.csv"),
        "metadata.csv",
        "file_name",
    ),
    refused(
        "csv without a text",
        rows("file_name,tex\ncat.png,a\n", "metadata.csv"),
        "metadata.csv",
        "Did you mean",
        "tex",
    ),
    refused(
        "csv with too few cells",
        rows("file_name,text\n\n,\n", "metadata.csv"),
        "line 3",
        "file_name",
    ),
    refused(
        "csv with an endless cell",
        rows('file_name,text\ncat.png,"' + "a" * 200_000 + '"\n', "metadata.csv"),
        "metadata.csv, line",
    ),
    refused(
        "csv apart by semicolons",
        rows("file_name;text\ncat.png;a\n", "metadata.csv"),
        "metadata.csv",
        "file_name",
    ),
    refused(
        "csv leads out",
        rows("file_name,text\n../s.png,a\n", "metadata.csv"),
        "metadata.csv",
        "outside of",
    ),
]


def mask(content: bytes | Callable[[], bytes], name: str = "good.mask.png") -> Put:
    return lambda place: place.add(name, content if isinstance(content, bytes) else content())


def black_mask(place: Place) -> None:
    from PIL import Image

    Image.new("L", (64, 64)).save(place.pictures / "good.mask.png")


MASKED = ("--masked_loss",)
MASKS = [
    refused("mask: none", lambda _: None, "good.png: it has no mask", "cat.mask.png", words=MASKED),
    refused(
        "mask: of another size",
        mask(lambda: picture(size=(32, 64))),
        "good.png",
        "32 x 64",
        words=MASKED,
    ),
    refused("mask: black", black_mask, "good.png", "entirely black", words=MASKED),
    refused("mask: text", mask(b"white"), "good.png", "its mask cannot be read", words=MASKED),
    refused("mask: empty", mask(b""), "good.png", "its mask cannot be read", words=MASKED),
    refused(
        "mask: cut",
        mask(lambda: picture()[:300]),
        "good.png",
        "its mask cannot be read",
        words=MASKED,
    ),
    refused(
        "mask: pipe",
        lambda p: os.mkfifo(p.pictures / "good.mask.png"),
        "good.png",
        "pipe",
        words=MASKED,
    ),
    refused(
        "mask: of nobody", mask(picture, "other.mask.png"), "good.png: it has no mask", words=MASKED
    ),
    refused(
        "mask: floating point",
        mask(lambda: picture("TIFF", "F"), "good-masklabel.tiff"),
        "good.png",
        "floating",
        words=MASKED,
    ),
    refused(
        "mask: masks alone",
        lambda p: (p.pictures / "good.png").rename(p.pictures / "x.mask.png"),
        "no pictures",
        "x.mask.png",
        words=MASKED,
    ),
]

CASES = [*TEXT_FILES, *METADATA, *MASKS]


NAMES = ("empty", "long", "both", "marked", "windows", "twice", "shared")
ODD_PICTURES = len(NAMES) + 1


def odd(place: Place) -> None:
    """Fill the folder with captions that are odd and can be used; ODD_NOTES says what is said."""
    for name in NAMES:
        place.add(f"{name}.png")
    texts = {
        "empty.txt": "",
        "long.txt": "a " * 5000,
        "both.txt": "a caption",
        "both.caption": "another one",
        "marked.txt": "\ufeffa caption",
        "windows.txt": "a caption\r\nof two lines\r\n",
        "of_nobody.txt": "a caption",
        "shared.txt": "a caption",
        "unknown.docx": "a caption",
    }
    for name, text in texts.items():
        place.write(f"pictures/{name}", text)
    place.add("shared.jpg", picture("JPEG"))
    os.symlink(place.pictures, place.pictures / "linked")
    place.write("pictures/more/metadata.jsonl", row(file_name="gone.png", text="a"))
    place.write(
        "pictures/metadata.jsonl",
        "\n".join(row(file_name="twice.png", text=text) for text in ("a", "a", "b")),
    )
    place.write("pictures/twice.txt", "a caption")


ODD_NOTES = {
    "empty": "1 with an empty caption: empty.png",
    "10,000 characters": "tokens are more than the text encoder reads: 'a a a a a a",
    "two files": "caption files unused because another one has the same name: both.caption",
    "of no picture": "caption files without a picture: of_nobody.txt",
    "of two pictures": ", shared.txt,",
    "of another type": "files of other types are ignored: 1 x .docx",
    "in a row of no picture": "metadata rows without a picture: more/gone.png",
    "in metadata and a text file": "metadata is used: twice.png",
    "in a linked folder": "linked folders are passed over: linked",
}
"""What is odd -> what is said of it."""

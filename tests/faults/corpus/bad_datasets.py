"""Data sets on this machine that cannot be read, or hold no pictures or captions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus import LFS_POINTER, WEB_PAGE, Case, Place, picture

Put = Callable[[Path], object]


def refused(name: str, put: Put, *says: str, **changes: object) -> Case:
    """A folder named my_set, read by the datasets library."""

    def make(place: Place) -> list[str]:
        folder = place.root / "my_set"
        folder.mkdir()
        put(folder)
        settings = {"dataset_name": folder, "train_data_dir": None, "cache_dir": place.cache}
        return place.train(**(settings | changes))

    return Case(f"data set: {name}", make, ("my_set", *says))


def streamed(name: str, put: Put, *says: str) -> Case:
    case = refused(name, put, *says)
    return Case(case.name, lambda place: [*case.make(place), "--streaming"], case.says)


def file(name: str, content: bytes | str) -> Put:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return put


def rows(*rows: dict[str, Any]) -> Put:
    return file("train.jsonl", "\n".join(json.dumps(row) for row in rows))


def parquet(**columns: list[Any]) -> Put:
    def put(folder: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "train.parquet")

    return put


def cut_parquet(folder: Path) -> None:
    parquet(image=[picture()], text=["a"])(folder)
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def with_picture(content: bytes | None) -> Put:
    return parquet(image=[{"bytes": content, "path": None}], text=["a"])


def pictures_beside_rows(folder: Path) -> None:
    (folder / "cat.png").write_bytes(picture())
    file("metadata.jsonl", json.dumps({"file_name": "dog.png", "text": "a"}))(folder)


def pictures_of_no_caption(folder: Path) -> None:
    (folder / "cat.png").write_bytes(picture())


def rows_of_other_columns(folder: Path) -> None:
    file("a.jsonl", json.dumps({"image": "a.png", "text": "a"}))(folder)
    file("b.jsonl", json.dumps({"picture": 3, "words": ["a"]}))(folder)


GOOD = {"image": [{"bytes": picture(), "path": None}], "text": ["a cat"]}

CASES = [
    refused("empty folder", lambda _: None),
    refused("nothing it reads", file("notes.docx", "x")),
    refused("no image column", parquet(picture=[picture()], text=["a"]), "image", "picture"),
    refused("no caption column", parquet(image=[picture()], words=["a"]), "text", "words"),
    refused("another image column", parquet(**GOOD), "'photo'", image_column="photo"),
    refused("another caption column", parquet(**GOOD), "'words'", caption_column="words"),
    refused("another configuration", parquet(**GOOD), "'large'", dataset_config_name="large"),
    refused("no rows", parquet(image=[], text=[])),
    refused("no rows of text", rows()),
    refused("pictures are numbers", parquet(image=[3], text=["a"]), "'image'", "--image_column"),
    refused("pictures are lists", parquet(image=[[1, 2]], text=["a"]), "'image'"),
    refused("pictures are fractions", parquet(image=[1.5], text=["a"]), "'image'"),
    refused("pictures are paths to nothing", rows({"image": "gone.png", "text": "a"}), "[0]"),
    refused("pictures are paths to no picture", rows({"image": "/etc/passwd", "text": "a"}), "[0]"),
    refused("pictures are a device", rows({"image": "/dev/zero", "text": "a"}), "[0]"),
    refused("pictures are folders", rows({"image": "/etc", "text": "a"}), "[0]"),
    refused("pictures lead up", rows({"image": "../../etc/passwd", "text": "a"}), "[0]"),
    refused("a picture is missing", with_picture(None), "[0]"),
    refused("a picture is empty", with_picture(b""), "[0]", "empty"),
    refused("a picture is cut", with_picture(picture()[:300]), "[0]"),
    refused("a picture is text", with_picture(b"a cat"), "[0]"),
    refused("captions are numbers", parquet(image=[picture()], text=[3]), "[0]", "3"),
    refused("captions are lists of numbers", parquet(image=[picture()], text=[[3]]), "[0]"),
    refused("captions are missing", parquet(image=[picture()], text=[None]), "caption"),
    refused("captions are empty", parquet(image=[picture()], text=[""]), "caption"),
    refused(
        "captions are lists of nothing", parquet(image=[picture()] * 2, text=[[], ["a"]]), "[0]"
    ),
    refused("Parquet cut", cut_parquet),
    refused("Parquet is empty", file("train.parquet", b"")),
    refused("Parquet is an LFS pointer", file("train.parquet", LFS_POINTER)),
    refused("Parquet is a web page", file("train.parquet", WEB_PAGE)),
    refused("rows are no JSON", file("train.jsonl", '{"image": "a.png", ')),
    refused("rows are numbers", file("train.jsonl", "1\n2\n")),
    refused("rows are a web page", file("train.jsonl", WEB_PAGE)),
    refused("rows of other columns", rows_of_other_columns),
    refused("CSV of no columns", file("train.csv", "")),
    refused("CSV of binary", file("train.csv", picture())),
    refused("archive cut", file("train.tar", picture())),
    refused("zip of nothing", file("train.zip", b"PK\x05\x06" + bytes(18))),
    streamed("no rows, streamed", parquet(image=[], text=[])),
    streamed("no image column, streamed", parquet(picture=[picture()], text=["a"]), "picture"),
    streamed("a picture is cut, streamed", with_picture(picture()[:300]), "[0]"),
    streamed("captions are numbers, streamed", parquet(image=[picture()], text=[3]), "[0]", "3"),
    streamed("Parquet cut, streamed", cut_parquet),
    refused("code", file("my_set.py", "from pathlib import Path; Path('opened').touch()")),
    refused("rows of a picture that is not there", pictures_beside_rows),
    refused("pictures without captions", pictures_of_no_caption, "text"),
    Case(
        "data set: a folder that is not there",
        lambda place: place.train(dataset_name=place.root / "none", train_data_dir=None),
        ("none",),
    ),
    Case(
        "data set: a file",
        lambda place: place.train(dataset_name=place.write("a.csv", "x"), train_data_dir=None),
        ("a.csv",),
    ),
    Case(
        "data set: not on this machine",
        lambda place: place.train(dataset_name="user/my_set", train_data_dir=None),
        ("user/my_set",),
    ),
]

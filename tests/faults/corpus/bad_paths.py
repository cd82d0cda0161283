"""Paths that lead nowhere, in circles, or to where something else is."""

import os
from collections.abc import Callable
from pathlib import Path

from corpus import Case, Place, picture

from scumble.console import plain


def shown(name: str) -> str:
    """What a line shows of a name: its beginning, and what a terminal would obey is spelled."""
    return plain(name[:30].partition("\n")[0])


def data_at(name: str, put: Callable[[Path], object], *says: str) -> Case:
    """Something under this name, in the place of the picture folder."""

    def make(place: Place) -> list[str]:
        path = place.root / name
        put(path)
        return place.train(train_data_dir=path)

    return Case(f"path: pictures in {name[:30]!a}", make, (*says, shown(name)))


def out_at(name: str, put: Callable[[Path], object], *says: str) -> Case:
    """Something under this name, in the place of the output folder."""

    def make(place: Place) -> list[str]:
        path = place.root / name
        put(path)
        return place.train(output_dir=path)

    return Case(f"path: output in {name[:30]!a}", make, (*says, shown(name)))


def words(name: str, *says: str, method: str = "text_to_image", **changes: object) -> Case:
    return Case(f"path: {name}", lambda place: place.train(method=method, **changes), says)


def nothing(path: Path) -> None:
    """Leave it away."""


def folder_with(*names: str) -> Callable[[Path], object]:
    def put(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"x")

    return put


def circle(path: Path) -> None:
    """Two links, each to the other."""
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def linked_pictures(path: Path) -> None:
    path.mkdir()
    (path / "inside").symlink_to(path)
    (path / "others").symlink_to(path.parent / "pictures")


def in_pictures(name: str, find: Callable[[Place], Path]) -> Case:
    return Case(
        f"path: output {name}",
        lambda place: place.train(output_dir=find(place)),
        ("--train_data_dir", "--output_dir"),
    )


def link_into(place: Place) -> Path:
    link = place.root / "link"
    link.symlink_to(place.pictures)
    return link / "out"


CASES = [
    data_at("missing", nothing, "there is no folder"),
    data_at("a_file", lambda path: path.write_text("x"), "is a file"),
    data_at("a_picture.png", lambda path: path.write_bytes(picture()), "is a file"),
    data_at("empty", Path.mkdir, "no pictures"),
    data_at("texts_alone", folder_with("a.txt", "b.caption"), "no pictures"),
    data_at(
        "other_files", folder_with("a.mp4", "b.heic", "c.psd", "noend"), "no pictures", ".heic"
    ),
    data_at("hidden_alone", folder_with(".a.png", ".git/b.png"), "no pictures"),
    data_at("folder_as_picture", lambda path: (path / "x.png").mkdir(parents=True), "no pictures"),
    data_at("circle", circle, "there is no folder"),
    data_at("dangling", lambda path: path.symlink_to("gone"), "there is no folder"),
    data_at("pipe", os.mkfifo, "is a file"),
    data_at("linked_alone", linked_pictures, "linked folders", "inside", "others"),
    data_at("with\nline", nothing, "there is no folder"),
    data_at("with\x1b[31mcolour", nothing, "there is no folder"),
    data_at("Größe 大 🎨", nothing, "there is no folder"),
    data_at("x" * 300, nothing, "--train_data_dir", "too long"),
    data_at("/".join(["deep"] * 1000), nothing, "--train_data_dir", "too long"),
    data_at(os.fsdecode(b"caf\xe9"), nothing, "--train_data_dir", "UTF-8"),
    words(
        "pictures of nobody's home", "--train_data_dir", train_data_dir="~nobody-at-all/pictures"
    ),
    words("pictures at nothing", "--train_data_dir", train_data_dir=""),
    words("output at nothing", "--output_dir", output_dir=""),
    words("output too long", "--output_dir", "too long", output_dir="x" * 300),
    words("output in a device", "/dev/null", output_dir="/dev/null/out"),
    words("output at the root", "not empty", output_dir="/"),
    words("cache at a file", "/dev/null", latent_cache_dir="/dev/null/cache"),
    words("cache of nobody's home", "--latent_cache_dir", latent_cache_dir="~nobody-at-all/cache"),
    words("measured on nothing", "gone", validation_data_dir="gone"),
    words("checkpoint too long", "--resume_from_checkpoint", resume_from_checkpoint="x" * 300),
    words(
        "subject nowhere",
        "gone",
        method="dreambooth",
        train_data_dir=None,
        instance_data_dir="gone",
    ),
    out_at("file", lambda path: path.write_text("mine"), "a file", "--output_dir"),
    out_at("file/below", lambda path: path.parent.write_text("mine"), "a file", "--output_dir"),
    out_at("full", folder_with("mine.txt"), "not empty"),
    out_at("other_run", folder_with("run.json"), "already holds a run"),
    out_at("circle", circle, "--output_dir"),
    out_at("dangling", lambda path: path.symlink_to("gone/gone"), "--output_dir"),
    out_at("pictures_link", lambda path: path.symlink_to(path.parent / "pictures"), "output"),
    out_at(os.fsdecode(b"caf\xe9"), nothing, "--output_dir", "UTF-8"),
    in_pictures("is the picture folder", lambda place: place.pictures),
    in_pictures("inside the picture folder", lambda place: place.pictures / "out"),
    in_pictures("inside it by a detour", lambda place: place.root / "here/../pictures/a/out"),
    in_pictures("inside it by a link", link_into),
    Case(
        "path: output inside the class pictures",
        lambda place: place.train(
            "--with_prior_preservation",
            method="dreambooth",
            class_prompt="a dog",
            class_data_dir=place.root / "dogs",
            output_dir=place.root / "dogs" / "out",
        ),
        ("--class_data_dir", "--output_dir"),
    ),
    Case(
        "path: pictures drawn to a file",
        lambda place: place.generate(
            pretrained_model_name_or_path="scumble-tiny", output=place.write("file", "mine")
        ),
        ("file", "--output"),
    ),
    Case(
        "path: pictures drawn to too long a name",
        lambda place: place.generate(
            pretrained_model_name_or_path="scumble-tiny", output="x" * 300
        ),
        ("xxx", "too long"),
    ),
]

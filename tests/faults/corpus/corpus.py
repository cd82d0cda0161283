"""What a case of bad input is, and the place that it is made in."""

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

TINY = Path(str(files("scumble") / "assets" / "tiny"))


class Place:
    """A folder of one case: a good picture to begin with, and where the output belongs.

    Args:
        root: an empty folder. Nothing in it may change but `out` and `cache`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.here = root / "here"
        self.pictures = root / "pictures"
        self.out = root / "out"
        self.cache = root / "cache"
        self.here.mkdir()
        self.pictures.mkdir()
        self.add("good.png", caption="a good picture")

    def add(self, name: str, content: bytes | None = None, caption: str | None = None) -> Path:
        """Put a picture into the picture folder, with a caption file where one is given."""
        path = self.pictures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture() if content is None else content)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, "utf-8")
        return path

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a file beside the picture folder."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def base(self, name: str = "my_base") -> Path:
        """A copy of the built-in base, whose files may be taken away and replaced, not changed."""
        return Path(shutil.copytree(TINY, self.root / name, copy_function=linked))

    def train(self, *words: str, method: str = "text_to_image", **changes: object) -> list[str]:
        """The command line of one step; None leaves a flag away."""
        settings: dict[str, object] = {
            "pretrained_model_name_or_path": "scumble-tiny",
            "train_data_dir": self.pictures,
            "output_dir": self.out,
            "resolution": 64,
            "max_train_steps": 1,
            "train_batch_size": 1,
            "report_to": "none",
        }
        pairs = [
            word
            for name, value in (settings | changes).items()
            if value is not None
            for word in (f"--{name}", str(value))
        ]
        return ["train", method, *pairs, "--no_before_after", *words]

    def generate(self, *words: str, **changes: object) -> list[str]:
        """The command line of one small picture."""
        settings = {"output": self.out, "prompt": "a circle", "height": 64, "width": 64}
        settings |= {"num_inference_steps": 1} | changes
        pairs = [
            word for name, value in settings.items() for word in (f"--{name}", str(value)) if value
        ]
        return ["generate", *pairs, *words]


@dataclass(frozen=True)
class Case:
    """Input that something is wrong with.

    Args:
        name: says what.
        make: puts the input in place; gives the command line.
        says: words that must stand in the line, the culprit's name first.
        code: the exit code.
        dear: takes seconds, and is left out unless it is asked for.
    """

    name: str
    make: Callable[[Place], list[str]]
    says: tuple[str, ...]
    code: int = 1
    dear: bool = False


def linked(source: str, target: str) -> None:
    """Link a file where that is possible: a base is big and most cases change one file of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replaced(path: Path, content: bytes | str) -> Path:
    """Put another file in a file's place, so that what it was linked to stays as it is."""
    path.unlink()
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def picture(
    file_format: str = "PNG",
    mode: str = "RGB",
    size: tuple[int, int] = (64, 64),
    **options: Any,
) -> bytes:
    """The bytes of a picture that is no single colour, so that none of its bytes are idle."""
    image = Image.radial_gradient("L").resize(size)
    image = Image.merge("RGB", (image, image.rotate(90), Image.linear_gradient("L").resize(size)))
    stream = io.BytesIO()
    image.convert(mode).save(stream, file_format, **options)
    return stream.getvalue()


LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 134217728\n"
)
"""What lies in a clone of a repository in the place of a large file."""

WEB_PAGE = "<!DOCTYPE html>\n<html><head><title>404: Not Found</title></head></html>\n"
"""What a failed download leaves under the name of the file."""


class Harmful:
    """What a pickled file may do when it is opened: here, to leave a file where one stands."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("opened"),)

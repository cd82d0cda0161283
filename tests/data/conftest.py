"""Real image files of every awkward kind, made where a test asks for them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Turn a Pillow image into the bytes of a file."""
    return encoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name a folder with a space and a non-ASCII letter in its path."""
    path = tmp_path / "my pictures é"
    path.mkdir()
    return path


@pytest.fixture
def add_picture(folder: Path) -> Callable[..., Path]:
    """Write a picture of one colour into the folder, with a caption file where one is given."""

    def add(
        name: str,
        caption: str | None = None,
        size: tuple[int, int] = (12, 8),
        colour: tuple[int, ...] = (200, 30, 60),
    ) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
        path.write_bytes(encoded(Image.new("RGB", size, colour), kind))
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return add

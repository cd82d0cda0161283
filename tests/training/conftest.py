"""A small captioned picture set and a ready configuration for training tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from scumble import TrainConfig

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six captioned pictures, wider than high, so that crops and flips differ."""
    return _draw_pictures(tmp_path / "pictures")


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[[Path], Path]:
    """Draws the same pictures into a new folder."""
    return _draw_pictures


def _draw_pictures(folder: Path) -> Path:
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (96, 64), "black")
        ImageDraw.Draw(image).ellipse((8 + number, 12, 48, 52), colour)
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} circle at night")
    return folder


@pytest.fixture
def make_config(pictures: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Builds a quick configuration; keyword arguments override it."""

    def make(**changes: object) -> TrainConfig:
        settings = {
            "pretrained_model_name_or_path": "scumble-tiny",
            "train_data_dir": str(pictures),
            "output_dir": str(tmp_path / "out"),
            "train_batch_size": 2,
            "max_train_steps": 4,
            "learning_rate": 1e-3,
            "before_after": False,
        }
        return TrainConfig(**(settings | changes))

    return make

"""Pictures of two shapes with captions and masks, and the lines that train on them."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from ranks import Arguments

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five wide pictures and two tall ones: batches of three leave rests of two."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        size = (128, 64) if number < 5 else (64, 128)
        image = Image.new("RGB", size, "black")
        ImageDraw.Draw(image).ellipse((8 + number, 12, 48, 52), colour)
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} circle at night")
    return folder


@pytest.fixture
def arguments(pictures: Path, tmp_path: Path) -> Arguments:
    """Builds the words of a quick run; its output folder is the first."""

    def make(output: str, *words: object, method: str = "text_to_image") -> list[str]:
        data = "--instance_data_dir" if method == "dreambooth" else "--train_data_dir"
        return [
            *("train", method, "--pretrained_model_name_or_path", "scumble-tiny"),
            *(data, str(pictures), "--output_dir", str(tmp_path / output)),
            *("--max_train_steps", "4", "--learning_rate", "1e-3", "--report_to", "none"),
            "--no_before_after",
            *map(str, words),
        ]

    return make

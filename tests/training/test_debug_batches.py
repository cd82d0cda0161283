"""--debug_batches shows the very samples that the steps train on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import scumble
from scumble.inference.contact_sheet import Card, contact_sheet
from scumble.training.loop import StepWork


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, Any]]]:
    """The samples of each step, as the device gets them."""
    steps: list[list[tuple[str, Any]]] = []
    work = StepWork.__call__

    def noted(self: StepWork, parts: Any) -> Any:
        steps.append(list(parts))
        return work(self, parts)

    monkeypatch.setattr(StepWork, "__call__", noted)
    return steps


def test_what_is_written_is_what_is_trained(
    make_config: Any, tmp_path: Path, seen: list[Any], pictures: Path
) -> None:
    for path in pictures.glob("*.png"):
        Image.new("L", Image.open(path).size, 255).save(path.with_suffix(".mask.png"))
    options = {"with_prior_preservation": True, "prior_from": "base", "class_prompt": "a circle"}
    config = make_config(
        method="dreambooth",
        train_data_dir=None,
        instance_data_dir=str(pictures),
        debug_batches=2,
        max_train_steps=3,
        train_batch_size=2,
        gradient_accumulation_steps=2,
        random_flip=True,
        masked_loss=True,
        caption_dropout=0.5,
        shuffle_caption=True,
        **options,
    )
    scumble.train(config)
    folder = tmp_path / "out" / "debug"
    names = [f"step_00000{n}.{end}" for n in (1, 2) for end in ("json", "png")]
    assert sorted(path.name for path in folder.iterdir()) == names
    for number in (1, 2):
        facts = json.loads((folder / f"step_00000{number}.json").read_text())
        assert facts["step"] == number
        told = [(s["loss"], s["caption"], s["timestep"], s["has_mask"]) for s in facts["samples"]]
        trained = [
            (name, caption, int(timestep), samples.mask is not None)
            for name, samples in seen[number - 1]
            for caption, timestep in zip(samples.captions, samples.timesteps, strict=True)
        ]
        assert sorted(told) == sorted(trained)
        assert {s["loss"] for s in facts["samples"]} == {"subject", "prior"}
        assert all(s["bucket"] == [64, 64] for s in facts["samples"])
    assert {s["flip"] for s in facts["samples"]} <= {True, False}


def test_the_picture_shows_the_crop_and_the_flip_of_the_sample(
    make_config: Any, tmp_path: Path, pictures: Path
) -> None:
    for path in pictures.glob("*.png"):  # left black, right white, wider than high
        image = Image.new("RGB", (128, 64), "black")
        image.paste("white", (64, 0, 128, 64))
        image.save(path)
    config = make_config(debug_batches=3, max_train_steps=3, random_flip=True, train_batch_size=3)
    scumble.train(config)
    kinds = set()
    for number in (1, 2, 3):
        path = tmp_path / "out" / "debug" / f"step_00000{number}.png"
        sheet = np.asarray(Image.open(path).convert("L"), float)
        samples = json.loads(path.with_suffix(".json").read_text())["samples"]
        corners = card_corners(len(samples), sheet.shape)
        for (x, y), sample in zip(corners, samples, strict=True):
            halves = [sheet[y + 60 : y + 130, x + a : x + a + 40].mean() for a in (30, 130)]
            white_right = {0.0: (0, 0), 0.5: (0, 1), 1.0: (1, 1)}[sample["crop"]]
            expected = white_right[::-1] if sample["flip"] else white_right
            assert [half > 128 for half in halves] == [bool(e) for e in expected], sample
            kinds.add((sample["crop"], sample["flip"]))
    assert len(kinds) > 3


def card_corners(count: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where the cards of three samples stand: side by side, or in a second row."""
    width = 2 * (192 + 8) + 8 + 12
    columns = (shape[1] - 12) // width
    height = (shape[0] - 37) // -(-count // columns)
    return [(12 + n % columns * width, 37 + n // columns * height) for n in range(count)]


def test_a_sheet_takes_any_text_and_many_cards() -> None:
    pictures = [Image.new("RGB", (40, 80), "red"), Image.new("L", (40, 80))]
    cards = [Card(pictures, ["a" * 200, ""], "words " * 300 if n else "") for n in range(13)]
    sheet = contact_sheet(cards, "heading " * 40)
    assert 0.5 < sheet.width / sheet.height < 4
    assert contact_sheet(cards[:1], "").width > 0

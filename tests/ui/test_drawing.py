"""One base in memory whose adapters change from click to click."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_adapters import write_example
from PIL import Image

import scumble
from scumble.config import GenerateConfig
from scumble.errors import Stopped, UserError
from scumble.ui.drawing import Easel

PROMPT = "a red circle"
FAST: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}


def order(*adapters: str, **changes: Any) -> GenerateConfig:
    base = None if adapters else "scumble-tiny"
    settings = {"prompt": (PROMPT,), "adapter": adapters, "pretrained_model_name_or_path": base}
    return GenerateConfig(**settings | FAST | changes)


def pixels(easel: Easel, config: GenerateConfig, factor: float = 1.0) -> np.ndarray:
    return np.asarray(easel.draw(config, PROMPT, 5, factor).image).astype(int)


@pytest.fixture
def first(tmp_path: Path) -> str:
    return str(write_example(tmp_path / "first.safetensors", 1, trigger_phrase="sks style"))


@pytest.fixture
def second(tmp_path: Path) -> str:
    return str(write_example(tmp_path / "second.safetensors", 2))


def test_adapters_change_on_a_base_that_stays(first: str, second: str) -> None:
    easel = Easel()
    plain = pixels(easel, order())
    pipeline = easel._pipeline
    both = pixels(easel, order(first, f"{second}:0.5"))
    alone = pixels(easel, order(second))
    weaker = pixels(easel, order(f"{second}:0.5"))
    assert easel._pipeline is pipeline
    assert np.array_equal(pixels(easel, order()), plain)
    for a, b in ((plain, both), (both, alone), (alone, weaker)):
        assert np.abs(a - b).max() > 2
    (wanted,) = scumble.generate(PROMPT, adapter=(first, f"{second}:0.5"), seed=5, **FAST)
    assert np.abs(both - np.asarray(wanted)).max() <= 1


def test_a_factor_of_nothing_draws_the_base(first: str) -> None:
    easel = Easel()
    assert np.array_equal(pixels(easel, order(first), 0), pixels(easel, order()))
    assert np.array_equal(pixels(easel, order(first), 0.5), pixels(easel, order(f"{first}:0.5")))


def test_a_file_that_was_written_anew_is_read_anew(first: str) -> None:
    easel = Easel()
    before = pixels(easel, order(first))
    write_example(Path(first), 3)
    assert np.abs(pixels(easel, order(first)) - before).max() > 2


def test_what_the_user_should_know_is_said(first: str) -> None:
    lines = Easel().prepare(order(first))
    assert lines == [
        "Base model: scumble-tiny, which the adapter names.",
        'first: trigger phrase: "sks style"',
    ]


def test_an_error_leaves_an_easel_that_draws(first: str, tmp_path: Path) -> None:
    easel = Easel()
    before = pixels(easel, order(first))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(Path(first).read_bytes()[:-9])
    for config in (order(first, str(damaged)), order(first, height=60)):
        with pytest.raises(UserError):
            easel.draw(config, PROMPT, 5)

    def stop(step: int) -> None:
        raise Stopped(f"after step {step}")

    with pytest.raises(Stopped, match="after step 1"):
        easel.draw(order(first), PROMPT, 5, after_step=stop)
    assert np.array_equal(pixels(easel, order(first)), before)


def test_a_saved_picture_says_what_it_was_drawn_from(first: str, tmp_path: Path) -> None:
    drawn = Easel().draw(order(f"{first}:0.5", negative_prompt="blue"), PROMPT, 5)
    drawn.save(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as image:
        notes = dict(image.text)
    said = json.loads(notes["scumble"])
    assert said["adapters"] == {"first": 0.5}
    assert (said["prompt"], said["seed"], said["base"]) == (PROMPT, 5, "scumble-tiny")
    assert notes["parameters"].startswith(f"{PROMPT} <lora:first:0.5>\nNegative prompt: blue\n")
    assert "Seed: 5, Size: 64x64, Model: scumble-tiny" in notes["parameters"]
    assert str(tmp_path) not in str(notes)

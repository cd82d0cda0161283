"""A file of early 2023, as the article's own script wrote it, draws what it was trained to draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import scumble
from scumble.adapters import LoRA
from scumble.adapters.inject import Target, inject
from scumble.cli.main import run
from scumble.errors import UserError
from scumble.formats import AdapterWeights
from scumble.formats.weights import module_weights

PARTS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}


@pytest.fixture
def weights(tiny_pipeline: Any) -> AdapterWeights:
    """A LoRA on every attention of the built-in base, at the scale of those files: 1."""
    targets = [Target.parse(part, 4, None) for part in PARTS]
    adapters = inject(tiny_pipeline.unet, "made", LoRA, targets, seed=5)
    torch.manual_seed(5)
    for adapter in adapters.adapters.values():
        torch.nn.init.normal_(adapter.up, std=0.1)
    made = module_weights(adapters, "lora")
    adapters.eject()
    return AdapterWeights({"unet": made})


@pytest.fixture
def old(weights: AdapterWeights, tmp_path: Path) -> Path:
    """The same as diffusers 0.12 saved it: keys of attention processors, no component, pickled."""
    tensors = {}
    for path, entry in weights.components["unet"].items():
        part = next(part for part in PARTS if path.endswith(f".{part}"))
        stem = f"{path.removesuffix(f'.{part}')}.processor.{PARTS[part]}_lora"
        tensors |= {f"{stem}.{side}.weight": entry.tensors[side] for side in ("down", "up")}
    file = tmp_path / "old" / "pytorch_lora_weights.bin"
    file.parent.mkdir()
    torch.save(tensors, file)
    return file


@pytest.fixture
def new(weights: AdapterWeights, tmp_path: Path) -> Path:
    return scumble.write_adapter(weights, tmp_path / "new.safetensors")


@pytest.fixture
def draw(tiny_pipeline: Any) -> Callable[..., np.ndarray]:
    """Draws with an adapter on the pipeline, or without, and takes it off again."""

    def draw_with(source: Path | None = None, **options: Any) -> np.ndarray:
        if source is not None:
            scumble.load_adapter(tiny_pipeline, source, **options)
        generator = torch.Generator().manual_seed(3)
        drawn = tiny_pipeline(
            "a red circle", num_inference_steps=2, generator=generator, output_type="np"
        )
        scumble.unload_adapters(tiny_pipeline)
        return drawn.images[0]

    return draw_with


def test_it_draws_what_its_numbers_draw_in_todays_format(old, new, draw):
    wanted = draw(new)
    assert np.array_equal(draw(old, allow_pickle=True), wanted)
    assert np.array_equal(draw(old.parent, allow_pickle=True), wanted)
    assert np.abs(draw() - wanted).max() > 0.05


def test_it_is_not_opened_unasked(old, draw, tiny_pipeline):
    before = draw()
    with pytest.raises(UserError, match=r"pytorch_lora_weights\.bin is a pickled file"):
        scumble.load_adapter(tiny_pipeline, old)
    assert np.array_equal(draw(), before)


def generate(adapter: Path, output: Path, *flags: str) -> int:
    base = ["--pretrained_model_name_or_path", "scumble-tiny", "--prompt", "a red circle"]
    shown = ["--num_inference_steps", "2", "--seed", "3", "--output", str(output)]
    return run(["generate", "--adapter", str(adapter), *base, *shown, *flags])


def test_the_command_line_draws_the_same(old, new, tmp_path):
    assert generate(new, tmp_path / "a") == 0
    assert generate(old, tmp_path / "b", "--allow_pickle") == 0
    pictures = [
        {file.name: np.asarray(Image.open(file)) for file in (tmp_path / name).glob("*.png")}
        for name in ("a", "b")
    ]
    assert pictures[0]
    assert pictures[0].keys() == pictures[1].keys()
    single = next(name for name in pictures[0] if "grid" not in name)
    assert np.array_equal(pictures[0][single], pictures[1][single])


def test_the_command_line_asks_before_it_opens_one(old, capsys, tmp_path):
    assert generate(old, tmp_path / "a") == 1
    said = capsys.readouterr().err
    assert said.startswith("scumble: ")
    assert "is a pickled file" in said
    assert "--allow_pickle" in said
    assert said.count("\n") == 2
    assert not list(tmp_path.glob("a/*"))

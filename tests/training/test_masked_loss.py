"""Masked loss: only what a mask shows is learnt, and its size does not matter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

import scumble
from scumble.diffusion.weighting import MIN_AREA, masked_mean
from scumble.errors import UserError
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.runtime import prepare_runtime


def test_only_the_white_counts_and_its_area_does_not() -> None:
    error = torch.ones(2, 3, 4, 4)
    error[:, :, :2] = 5.0
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :2] = 1
    mask[1, :, :1, :2] = 1
    torch.testing.assert_close(masked_mean(error, mask, 0.0), torch.tensor([5.0, 5.0]))


def test_the_black_counts_as_much_as_it_is_told() -> None:
    error = torch.ones(1, 1, 2, 2)
    error[..., 0, :] = 5.0
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    wanted = (2 * 5 + 2 * 0.5 * 1) / (2 + 2 * 0.5)
    torch.testing.assert_close(masked_mean(error, mask, 0.5), torch.tensor([wanted]))
    everything = masked_mean(error, torch.ones_like(mask), 0.5)
    torch.testing.assert_close(everything, error.mean().view(1))


def test_a_speck_does_not_count_without_limit() -> None:
    error = torch.ones(1, 1, 10, 10)
    mask = torch.zeros(1, 1, 10, 10)
    assert masked_mean(error, mask, 0.0).item() == 0
    mask[..., 0, 0] = 1
    torch.testing.assert_close(masked_mean(error, mask, 0.0), torch.tensor([0.01 / MIN_AREA]))


@pytest.fixture
def masked_pictures(pictures: Path) -> Path:
    """A white ellipse where each picture has its own."""
    for path in sorted(pictures.glob("?.png")):
        mask = Image.new("L", (96, 64))
        ImageDraw.Draw(mask).ellipse((8 + int(path.stem), 12, 48, 52), 255)
        mask.save(path.with_suffix(".mask.png"))
    return pictures


def begin(config: scumble.TrainConfig) -> tuple[Any, Any]:
    workshop = open_workshop(config, prepare_runtime(config))
    (phase,) = METHODS[config.method](workshop)
    return workshop, phase


def test_the_loss_of_a_run_is_the_masked_one(make_config: Any, masked_pictures: Path) -> None:
    workshop, phase = begin(make_config(masked_loss=True, unmasked_weight=0.1, random_flip=True))
    plan = phase.plan.step(0)
    loss = phase.losses["pictures"]
    samples = loss.draws.samples(plan, range(2))
    assert samples.mask.shape == (2, 1, *samples.latents.shape[2:])
    assert 0 < samples.mask.mean() < 0.6
    error = (workshop.denoising.predict(samples) - workshop.denoising.target(samples)).square()
    wanted = masked_mean(error, samples.mask, 0.1)
    torch.testing.assert_close(loss(loss.samples(plan, range(2))), wanted)
    assert not torch.allclose(wanted, error.mean((1, 2, 3)))


def test_masks_are_cropped_and_flipped_with_their_pictures(
    make_config: Any, masked_pictures: Path
) -> None:
    workshop, _ = begin(make_config(masked_loss=True, random_flip=True))
    (example, *_) = workshop.gathered.train.examples
    assert len(example.mask_keys) == len(example.latent_keys) == 6
    store = workshop.gathered.train.resident
    masks = [store.require(key)["mask"] for key in example.mask_keys]
    for straight, flipped in zip(masks[::2], masks[1::2], strict=True):
        torch.testing.assert_close(straight.flip(-1), flipped)


def test_missing_masks_are_named(make_config: Any, masked_pictures: Path) -> None:
    (masked_pictures / "3.mask.png").unlink()
    with pytest.raises(UserError, match=r"3\.png"):
        scumble.train(make_config(masked_loss=True))


def test_unused_masks_are_said(make_config: Any, masked_pictures: Path, capsys: Any) -> None:
    scumble.train(make_config(max_train_steps=1))
    assert "6 masks not used: --masked_loss" in capsys.readouterr().out

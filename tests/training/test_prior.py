"""Prior preservation, with class pictures and against the base itself, by its definition."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import scumble
from scumble.errors import UserError
from scumble.training import class_pictures
from scumble.training.denoising import Denoising
from scumble.training.loop import train_steps
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.optimizers import Update
from scumble.training.runtime import prepare_runtime
from scumble.training.words import trigger_phrase

CLASS = {"with_prior_preservation": True, "class_prompt": "a circle", "prior_loss_weight": 0.7}


@pytest.fixture
def subject(make_config: Any, pictures: Path, tmp_path: Path) -> Any:
    """Builds a DreamBooth configuration."""

    def make(**changes: Any) -> scumble.TrainConfig:
        settings = {
            "method": "dreambooth",
            "train_data_dir": None,
            "instance_data_dir": str(pictures),
            "num_inference_steps": 2,
        }
        return make_config(**(settings | changes))

    return make


@pytest.fixture
def with_pictures(tmp_path: Path) -> dict[str, Any]:
    folder = str(tmp_path / "class")
    return {**CLASS, "class_data_dir": folder, "num_class_images": 3, "sample_batch_size": 2}


def begin(config: scumble.TrainConfig) -> tuple[Any, Any]:
    workshop = open_workshop(config, prepare_runtime(config))
    (phase,) = METHODS["dreambooth"](workshop)
    phase.begin([phase])
    with torch.no_grad():
        for number, parameter in enumerate(phase.parameters()):
            torch.manual_seed(number)
            parameter.add_(0.05 * torch.randn_like(parameter))
    return workshop, phase


def test_with_pictures_it_is_the_weighted_loss_of_class_samples(
    subject: Any, with_pictures: Any
) -> None:
    workshop, phase = begin(subject(**with_pictures))
    plan = phase.plan.step(0)
    prior = phase.losses["prior"]
    samples = prior.draws.samples(plan, range(2))
    unet, objective = workshop.components["unet"], workshop.objective
    alpha, sigma = objective.schedule.alpha_sigma(samples.timesteps)
    alpha, sigma = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    noisy = alpha * samples.latents + sigma * samples.noise
    velocity = alpha * samples.noise - sigma * samples.latents
    states = workshop.texts(["a circle"] * 2)["states"]
    answer = unet(noisy, samples.timesteps, states).sample
    wanted = 0.7 * (answer - velocity).square().mean((1, 2, 3))
    torch.testing.assert_close(prior(prior.samples(plan, range(2))), wanted)


def test_against_the_base_it_is_the_weighted_distance_of_two_answers(subject: Any) -> None:
    workshop, phase = begin(subject(**CLASS, prior_from="base"))
    plan = phase.plan.step(0)
    prior = phase.losses["prior"]
    samples = prior.draws.samples(plan, range(2))
    unet = workshop.components["unet"]
    noisy = workshop.objective.noised(samples.latents, samples.noise, samples.timesteps)
    states = workshop.texts(["a circle"] * 2)["states"]
    ours = unet(noisy, samples.timesteps, states).sample
    got = prior(prior.samples(plan, range(2)))
    for adapters in phase.taught.adapters.values():
        adapters.eject()
    base = unet(noisy, samples.timesteps, states).sample
    torch.testing.assert_close(got, 0.7 * (ours - base).square().mean((1, 2, 3)))
    assert (got > 0).all()


def test_a_fresh_adapter_is_at_no_distance_from_the_base(subject: Any) -> None:
    config = subject(**CLASS, prior_from="base", train_text_encoder=True)
    workshop = open_workshop(config, prepare_runtime(config))
    (phase,) = METHODS["dreambooth"](workshop)
    prior = phase.losses["prior"]
    assert torch.equal(prior(prior.samples(phase.plan.step(0), range(2))), torch.zeros(2))


def test_prior_samples_have_noise_of_their_own(subject: Any) -> None:
    _, phase = begin(subject(**CLASS, prior_from="base"))
    plan = phase.plan.step(0)
    own = phase.losses["subject"].draws.samples(plan, range(2))
    prior = phase.losses["prior"].draws.samples(plan, range(2))
    assert not torch.equal(own.noise, prior.noise)


def test_both_losses_are_logged_and_add_up(subject: Any, tmp_path: Path) -> None:
    scumble.train(subject(**CLASS, prior_from="base"))
    for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert entry["loss"] == pytest.approx(entry["loss subject"] + entry["loss prior"])


def test_the_prior_keeps_the_class(subject: Any) -> None:
    """The answer about the class stays nearer to the base's with it than without."""
    drift = {}
    for preserve in (True, False):
        options = {**CLASS, "prior_from": "base"} if preserve else {}
        config = subject(**options, max_train_steps=20, learning_rate=3e-3)
        workshop = open_workshop(config, prepare_runtime(config))
        (phase,) = METHODS["dreambooth"](workshop)
        phase.begin([phase])
        runtime = workshop.runtime
        update = Update(phase.groups, config, 20, 2, runtime.dtype, runtime.device)
        for _ in train_steps(phase, update, runtime, 0):
            pass
        samples = phase.losses["subject"].draws.samples(phase.plan.step(99), range(2))
        encoder = open_workshop(subject(**CLASS, prior_from="base"), runtime).texts
        asked = Denoising(
            config, workshop.family, workshop.components, workshop.objective, encoder, runtime
        )
        samples = samples._replace(captions=["a circle"] * 2)
        with torch.no_grad():
            after = asked.predict(samples)
            with phase.taught.adapters_off():
                drift[preserve] = float((after - asked.predict(samples)).square().mean())
    assert drift[True] < 0.7 * drift[False]


class Counter:
    """Counts the pictures that are drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: list[int] = []
        original = class_pictures.draw_together

        def counting(pipeline: Any, prompts: Any, seeds: Any, sampling: Any) -> Any:
            self.drawn.append(len(prompts))
            return original(pipeline, prompts, seeds, sampling)

        monkeypatch.setattr(class_pictures, "draw_together", counting)


def test_class_pictures_are_drawn_once(
    subject: Any, with_pictures: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    counter = Counter(monkeypatch)
    scumble.train(subject(**with_pictures))
    assert counter.drawn == [2, 1]
    first = {p.name: p.read_bytes() for p in (tmp_path / "class").glob("*.png")}
    scumble.train(subject(**with_pictures, output_dir=str(tmp_path / "again"), seed=5))
    assert counter.drawn == [2, 1]
    more = {**with_pictures, "num_class_images": 4, "output_dir": str(tmp_path / "more")}
    scumble.train(subject(**more))
    assert counter.drawn == [2, 1, 1]
    now = {p.name: p.read_bytes() for p in (tmp_path / "class").glob("*.png")}
    assert len(now) == 4
    assert first.items() <= now.items()


def test_an_interrupted_drawing_goes_on(
    subject: Any, with_pictures: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    original = class_pictures.draw_together
    calls = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(class_pictures, "draw_together", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scumble.train(subject(**with_pictures))
    assert len(list((tmp_path / "class").glob("*.png"))) == 2
    counter = Counter(monkeypatch)
    scumble.train(subject(**with_pictures))
    assert counter.drawn == [1]


def test_a_changed_class_picture_is_drawn_anew_and_said(
    subject: Any, with_pictures: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    scumble.train(subject(**with_pictures))
    broken = tmp_path / "class" / "drawn_00001.png"
    before = broken.read_bytes()
    Image.new("RGB", (64, 64)).save(broken)
    counter = Counter(monkeypatch)
    scumble.train(subject(**with_pictures, output_dir=str(tmp_path / "again")))
    assert counter.drawn == [1]
    assert broken.read_bytes() == before
    assert "drawn_00001.png is gone or changed" in capsys.readouterr().out


def test_own_class_pictures_count_but_other_files_do_not(
    subject: Any, with_pictures: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 90, 40)).save(folder / f"mine{number}.png")
    (folder / "notes.md").write_text("not a picture")
    counter = Counter(monkeypatch)
    scumble.train(subject(**with_pictures))
    assert counter.drawn == [1]
    assert "2 of your own" in capsys.readouterr().out


def test_pictures_of_another_class_are_not_taken(subject: Any, with_pictures: Any) -> None:
    scumble.train(subject(**with_pictures))
    other = {**with_pictures, "class_prompt": "a star", "output_dir": "elsewhere"}
    with pytest.raises(UserError, match="class_prompt 'a circle', not 'a star'"):
        scumble.train(subject(**other))


def test_the_instance_prompt_serves_pictures_without_captions(subject: Any, pictures: Path) -> None:
    (pictures / "0.txt").unlink()
    config = subject(instance_prompt="a sks blob")
    examples = open_workshop(config, prepare_runtime(config)).gathered.train.examples
    assert examples[0].captions == ("a sks blob",)
    assert examples[1].captions == ("a green circle at night",)


def test_the_subject_is_not_taken_for_its_class(
    subject: Any, with_pictures: Any, pictures: Path
) -> None:
    with pytest.raises(UserError, match="pictures of the subject are among those of its class"):
        scumble.train(subject(**{**with_pictures, "class_data_dir": str(pictures)}))


def test_a_prompt_that_no_picture_used_is_no_trigger(subject: Any, pictures: Path) -> None:
    config = subject(instance_prompt="a sks blob")
    assert trigger_phrase(open_workshop(config, prepare_runtime(config))) is None
    (pictures / "0.txt").unlink()
    assert trigger_phrase(open_workshop(config, prepare_runtime(config))) == "a sks blob"


def test_fewer_class_pictures_leave_the_others_out(
    subject: Any, with_pictures: Any, tmp_path: Path, capsys: Any
) -> None:
    scumble.train(subject(**with_pictures))
    fewer = {**with_pictures, "num_class_images": 2, "output_dir": str(tmp_path / "fewer")}
    workshop, _ = begin(subject(**fewer))
    ids = [example.id for example in workshop.gathered.class_pictures.examples]
    assert ids == ["drawn_00000.png", "drawn_00001.png"]
    assert "not used: drawn_00002.png" in capsys.readouterr().out


def test_own_class_pictures_may_have_any_shape(
    subject: Any, with_pictures: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    for number, size in enumerate(((64, 64), (128, 64), (64, 128))):
        Image.new("RGB", size, (number, 90, 40)).save(folder / f"mine{number}.png")
    scumble.train(subject(**with_pictures, aspect_ratio_buckets=True, max_train_steps=6))

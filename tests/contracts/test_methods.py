"""What every training method must keep: it learns, nothing else moves, and nothing is lost."""

import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

import scumble
from scumble.errors import Stopped
from scumble.families import text_encoders
from scumble.training.held_out import HeldOut
from scumble.training.loop import train_steps
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.optimizers import Update
from scumble.training.runtime import prepare_runtime
from scumble.training.sitting import Sitting
from scumble.training.taught import together

WORD = {
    "placeholder_token": "<blob>",
    "initializer_token": "circle",
    "learnable_property": "object",
    "num_vectors": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "text_to_image": {"train_text_encoder": True, "rank": 2},
    "dreambooth": {
        "train_text_encoder": True,
        "with_prior_preservation": True,
        "prior_from": "base",
        "class_prompt": "a circle",
    },
    "textual_inversion": {**WORD, "learning_rate": 5e-3},
    "pivotal_tuning": {**WORD, "row_learning_rate": 5e-3, "train_text_encoder": True},
    "full": {"learning_rate": 3e-4},
}
"""Method -> settings that use all it has; a new method needs a line here."""

HARD = {
    "max_train_steps": 6,
    "checkpointing_steps": 100,
    "random_flip": True,
    "caption_dropout": 0.3,
    "noise_offset": 0.1,
    "lr_scheduler": "cosine",
    "ema_decay": 0.9,
}


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., scumble.TrainConfig]:
    """Build a method's quick configuration over five pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "yellow", "purple")):
        image = Image.new("RGB", (64, 64), "black")
        ImageDraw.Draw(image).ellipse((8 + number, 12, 48, 52), colour)
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} circle at night")

    def build(method: str, output: str = "out", **changes: Any) -> scumble.TrainConfig:
        source = "instance_data_dir" if method == "dreambooth" else "train_data_dir"
        settings = {
            "method": method,
            "pretrained_model_name_or_path": "scumble-tiny",
            source: str(folder),
            "output_dir": str(tmp_path / output),
            "train_batch_size": 2,
            "learning_rate": 2e-3,
            "before_after": False,
        }
        return scumble.TrainConfig(**(settings | CASES[method] | changes))

    return build


def results(folder: Path) -> dict[str, str]:
    """Digest of every file of weights that a run left."""
    files = [*folder.glob("*.safetensors"), *folder.glob("model/*/*.safetensors")]
    assert files
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    between = Sitting._between_steps

    def stopping(self: Sitting, result: Any, update: Any, average: Any, stop: Any) -> None:
        stop.requested = self.done == step
        between(self, result, update, average, stop)

    monkeypatch.setattr(Sitting, "_between_steps", stopping)


def test_every_method_is_tried() -> None:
    assert set(CASES) == set(METHODS)


def run_phases(workshop: Any, phases: list[Any]) -> None:
    config, runtime = workshop.config, workshop.runtime
    for phase in phases:
        phase.begin(phases)
        update = Update(
            phase.groups,
            config,
            phase.max_steps,
            workshop.batch_size,
            runtime.dtype,
            runtime.device,
        )
        for _ in train_steps(phase, update, runtime, 0):
            pass
        phase.at_rest()


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(method: str, configure: Any) -> None:
    config = configure(method, max_train_steps=24, train_batch_size=4)
    workshop = open_workshop(config, prepare_runtime(config))
    phases = METHODS[method](workshop)
    measure = HeldOut(workshop.denoising, workshop.gathered.train, seed=3)
    losses = [measure.loss()]
    for phase in phases:
        run_phases(workshop, [phase])
        losses.append(measure.loss())
    for before, after in pairwise(losses):
        assert after < before * 0.99


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_declared_moves(method: str, configure: Any) -> None:
    config = configure(method, max_train_steps=4)
    workshop = open_workshop(config, prepare_runtime(config))
    phases = METHODS[method](workshop)
    components = [workshop.denoiser_name, *text_encoders(workshop.family)]
    modules = [workshop.components[name] for name in components if name in workshop.components]
    for phase in phases:
        declared = phase.taught.named_parameters()
        own = {id(parameter) for parameter in declared.values()}
        everything = {
            f"{number}.{name}": parameter
            for number, module in enumerate(modules)
            for name, parameter in module.named_parameters()
        }
        assert own <= {id(parameter) for parameter in everything.values()}
        before = {name: parameter.detach().clone() for name, parameter in everything.items()}
        phase.begin(phases)
        run_phases(workshop, [phase])
        moved = {
            name for name, parameter in everything.items() if not parameter.equal(before[name])
        }
        strangers = {name for name in moved if id(everything[name]) not in own}
        assert strangers == set()
        assert len(moved) == len(own)


STOPS = [
    # Where a method has one phase, one stop stands for all unless there is time.
    pytest.param(
        *(method, step),
        marks=pytest.mark.long if step != 3 and method != "pivotal_tuning" else (),
    )
    for method in METHODS
    for step in (1, 3, 4)
]


@pytest.mark.parametrize(("method", "step"), STOPS)
def test_a_stop_in_any_phase_changes_nothing(
    method: str, step: int, configure: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Of six steps, the third is the pivot: before it, on it, behind it."""
    scumble.train(configure(method, "whole", **HARD))
    config = configure(method, "parts", **HARD)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Stopped, match=f"step {step} of 6"):
            scumble.train(config)
    config.resume_from_checkpoint = "latest"
    scumble.train(config)
    assert f"checkpoint-{step}, step {step}" in capsys.readouterr().out
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_parts_equal_the_whole_batch(method: str, configure: Any) -> None:
    learnt = []
    for batch, accumulation in ((4, 1), (1, 4)):
        config = configure(
            method,
            max_train_steps=4,
            train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            adam_epsilon=1e-6,
        )
        workshop = open_workshop(config, prepare_runtime(config))
        phases = METHODS[method](workshop)
        run_phases(workshop, phases)
        parameters = together(phase.taught for phase in phases).named_parameters()
        learnt.append(torch.cat([p.detach().flatten() for p in parameters.values()]))
    whole, parts = learnt
    assert (whole - parts).norm() / whole.norm() < 1e-5

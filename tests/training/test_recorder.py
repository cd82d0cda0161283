"""A recorded step does what the step itself does: on a recorder that records by remembering."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import scumble
from scumble.families import Components
from scumble.lean.count import on_meta
from scumble.training import recorder as recorder_module
from scumble.training.forecast import _on_meta
from scumble.training.loop import train_steps
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.optimizers import Update
from scumble.training.phase import Phase
from scumble.training.recorder import WARM_UP_STEPS, Recorded, recorder_for
from scumble.training.runtime import prepare_runtime

CPU = torch.device("cpu")


class Remembering:
    """Plays work back by doing it again, on the very memory it was recorded on."""

    def __init__(self) -> None:
        self.recorded = self.played = self.inside = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        self.inside += 1
        yield
        self.inside -= 1

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        assert self.inside == 1
        self.recorded += 1

        def play() -> None:
            assert self.inside == 1
            self.played += 1
            work()

        return play


class Failing(Remembering):
    """A device that cannot record."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        del work
        self.recorded += 1
        raise RuntimeError("operation not permitted when stream is capturing")


def trained(config: Any, recorder: Any) -> tuple[list[torch.Tensor], list[float], Any]:
    """All parameters after training, and the loss of every step."""
    runtime = prepare_runtime(config)
    workshop = open_workshop(config, runtime)
    (phase,) = METHODS[config.method](workshop)
    phase.begin([phase])
    update = Update(phase.groups, config, phase.max_steps, 2, torch.float32, CPU)
    results = train_steps(phase, update, runtime, 0, recorder)
    losses = [float(result.loss) + float(result.grad_norm) for result in results]
    return [p.detach().clone() for p in phase.parameters()], losses, phase


@pytest.fixture
def settings(pictures: Path) -> dict[str, Any]:
    """Two picture shapes and masks; an epoch ends in a smaller batch of each shape."""
    from PIL import Image

    for number in range(5):
        Image.new("RGB", (64, 96), (number * 40, 90, 0)).save(pictures / f"tall{number}.png")
        (pictures / f"tall{number}.txt").write_text(f"a tall field {number}")
    return {
        "aspect_ratio_buckets": True,
        "train_batch_size": 2,
        "max_train_steps": 14,
        "lr_scheduler": "linear",
        "lr_warmup_steps": 3,
        "caption_dropout": 0.3,
        "random_flip": True,
        "snr_gamma": 5.0,
    }


def test_a_played_step_is_the_step_itself(make_config: Any, settings: dict[str, Any]) -> None:
    usual, losses, _ = trained(make_config(**settings), None)
    recorder = Remembering()
    played, played_losses, _ = trained(make_config(**settings), recorder)
    assert recorder.recorded >= 2
    assert recorder.played > recorder.recorded
    assert played_losses == losses
    assert all(torch.equal(a, b) for a, b in zip(usual, played, strict=True))


@pytest.mark.parametrize("prior", ["images", "base"])
def test_two_losses_and_accumulation_are_played_back(
    make_config: Any, tmp_path: Path, prior: str
) -> None:
    options = {
        "method": "dreambooth",
        "instance_prompt": "a red circle",
        "with_prior_preservation": True,
        "class_prompt": "a circle",
        "prior_from": prior,
        "gradient_accumulation_steps": 2,
        "max_train_steps": 8,
        "train_batch_size": 1,
    }
    if prior == "images":
        options |= {"class_data_dir": str(tmp_path / "class"), "num_class_images": 2}
    usual, losses, _ = trained(make_config(**options), None)
    recorder = Remembering()
    played, played_losses, _ = trained(make_config(**options), recorder)
    assert recorder.played == 8 - WARM_UP_STEPS
    assert played_losses == losses
    assert all(torch.equal(a, b) for a, b in zip(usual, played, strict=True))


def test_steps_of_a_new_shape_are_taken_as_usual_first(
    make_config: Any, settings: dict[str, Any]
) -> None:
    recorder = Remembering()
    trained(make_config(**settings | {"max_train_steps": WARM_UP_STEPS}), recorder)
    assert recorder.recorded == 0


def test_only_so_many_shapes_are_recorded(
    make_config: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MOST_GRAPHS", 1)
    recorder = Remembering()
    trained(make_config(**settings), recorder)
    assert recorder.recorded == 1


def test_a_device_that_cannot_record_trains_as_usual_and_says_so_once(
    make_config: Any, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    usual, losses, _ = trained(make_config(**settings), None)
    capsys.readouterr()
    recorder = Failing()
    played, played_losses, _ = trained(make_config(**settings), recorder)
    assert recorder.recorded == 1
    assert capsys.readouterr().out.count("cannot be recorded as a CUDA graph") == 1
    assert played_losses == losses
    assert all(torch.equal(a, b) for a, b in zip(usual, played, strict=True))


def test_results_of_earlier_steps_are_not_written_over() -> None:
    recorded = Recorded(lambda parts: parts[0][1].latents.sum().reshape(1), Remembering())
    results = [recorded([("a", samples(float(value)))]) for value in range(5)]
    assert [float(result) for result in results] == [0.0, 4.0, 8.0, 12.0, 16.0]


def samples(value: float) -> Any:
    from scumble.training.denoising import Samples

    latents = torch.full((1, 1, 2, 2), value)
    return Samples(latents, latents, torch.zeros(1, dtype=torch.long), ["a"])


def chosen_recorder(make_config: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """What a sitting on a GPU would record with."""
    config = make_config(**options)
    workshop = open_workshop(config, prepare_runtime(config))
    phase: Phase = METHODS[config.method](workshop)[0]
    monkeypatch.setattr("scumble.training.recorder.CudaRecorder", lambda device: device.type)

    class OnGpu:
        device = torch.device("cuda")
        num_processes = 1

    return recorder_for(replace(workshop, runtime=OnGpu()), phase)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"cuda_graph": False}, ""),
        ({"train_text_encoder": True}, "captions are encoded in every step"),
        ({"rank_dropout": 0.1}, "each step drops other parts"),
        ({"lora_dropout": 0.1}, "each step drops other parts"),
    ],
)
def test_where_steps_are_not_recorded_it_is_said_why(
    make_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    reason: str,
) -> None:
    chosen = chosen_recorder(make_config, monkeypatch, **options)
    assert chosen == (None if options else "cuda")
    said = capsys.readouterr().out
    assert (f"not recorded as CUDA graphs: {reason}" in said) == bool(reason)


class OnDeviceOnly(TorchDispatchMode):
    """Refuses work that reads a tensor of the host: a recorded step could not be played back."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_flatten((args, kwargs or {}))[0]:
            if isinstance(value, torch.Tensor) and value.device.type != "meta" and value.dim():
                raise AssertionError(f"{func} reads a {tuple(value.shape)} tensor of the host")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"snr_gamma": 5.0}, {"prediction_type": "v_prediction"}])
def test_nothing_of_a_step_lies_on_the_host(make_config: Any, options: dict[str, Any]) -> None:
    """On a device without values no reading back can hide either."""
    config = make_config(**options)
    workshop = open_workshop(config, prepare_runtime(config))
    (phase,) = METHODS[config.method](workshop)
    loss: Any = phase.losses["pictures"]
    parts = {"unet": on_meta(workshop.components["unet"])}
    objective = workshop.objective.to(torch.device("meta"))
    denoising = loss.denoising.on(Components(workshop.components.base, parts))
    twin = replace(loss, denoising=replace(denoising, objective=objective))
    samples = _on_meta(loss.samples(phase.plan.step(0), range(2)))
    with OnDeviceOnly():
        twin(samples).sum().backward()
    with pytest.raises(AssertionError, match="of the host"), OnDeviceOnly():
        replace(loss, denoising=denoising)(samples)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_changes_no_number(make_config: Any, tmp_path: Path) -> None:
    """The real thing, where there is a GPU."""

    def run(name: str, **options: Any) -> list[float]:
        scumble.train(make_config(output_dir=str(tmp_path / name), max_train_steps=8, **options))
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert run("graph") == pytest.approx(run("usual", cuda_graph=False), rel=1e-4)

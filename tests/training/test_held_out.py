"""The loss on held-out pictures: steady, and it chooses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import scumble
from scumble.errors import Stopped, UserError
from scumble.training.held_out import NOISE_LEVELS, Choice, HeldOut, stratified
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.runtime import prepare_runtime
from scumble.training.sitting import Sitting

WEIGHTS = "pytorch_lora_weights.safetensors"


def test_timesteps_come_from_every_part_of_the_schedule(make_config: Any) -> None:
    config = make_config()
    objective = open_workshop(config, prepare_runtime(config)).objective
    steps = stratified(objective, torch.Generator().manual_seed(1))
    count = objective.schedule.num_timesteps
    assert [int(step * NOISE_LEVELS / count) for step in steps] == list(range(NOISE_LEVELS))


def test_two_measurements_of_one_model_are_equal(make_config: Any) -> None:
    config = make_config(validation_share=0.34)
    workshop = open_workshop(config, prepare_runtime(config))
    METHODS["text_to_image"](workshop)
    assert len(workshop.gathered.train.examples) == 4
    assert len(workshop.gathered.held_out.examples) == 2
    measure = HeldOut(workshop.denoising, workshop.gathered.held_out, 0)
    assert measure.loss() == measure.loss()
    assert HeldOut(workshop.denoising, workshop.gathered.held_out, 1).loss() != measure.loss()


def test_held_out_pictures_are_not_learnt(make_config: Any) -> None:
    config = make_config(validation_share=0.34)
    gathered = open_workshop(config, prepare_runtime(config)).gathered
    train = {example.id for example in gathered.train.examples}
    held_out = {example.id for example in gathered.held_out.examples}
    assert not train & held_out
    assert len(train | held_out) == 6


def test_a_folder_to_measure_on(make_config: Any, pictures: Path, capsys: Any) -> None:
    config = make_config(validation_data_dir=str(pictures))
    gathered = open_workshop(config, prepare_runtime(config)).gathered
    assert len(gathered.held_out.examples) == len(gathered.train.examples) == 6
    assert "6 pictures to measure on that are learnt too" in capsys.readouterr().out


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the measurements come out as written, one after the other."""
    rest = iter(losses)
    monkeypatch.setattr(HeldOut, "loss", lambda _: next(rest))


def test_the_best_checkpoint_becomes_the_result(
    make_config: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    scripted(monkeypatch, [0.5, 0.3, 0.4])
    options = {"validation_share": 0.2, "validation_steps": 2, "checkpointing_steps": 2}
    scumble.train(make_config(**options, max_train_steps=6))
    out = tmp_path / "out"
    best = load_file(out / "checkpoint-4" / WEIGHTS)
    for path in (out / WEIGHTS, out / "best" / WEIGHTS):
        assert all(torch.equal(best[name], t) for name, t in load_file(path).items())
    last = load_file(out / "checkpoint-6" / WEIGHTS)
    assert any(not torch.equal(best[name], t) for name, t in last.items())
    record = json.loads((out / "run.json").read_text())
    assert (record["best_step"], record["held_out_loss"], record["steps"]) == (4, 0.3, 6)
    assert "the result is that of step 4" in capsys.readouterr().out
    assert "trained for 4 steps" in (out / "README.md").read_text()
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    measured = {e["step"]: e["held_out_loss"] for e in entries if "held_out_loss" in e}
    assert measured == {2: 0.5, 4: 0.3, 6: 0.4}


def test_enough_is_enough(make_config: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    scripted(monkeypatch, [0.5, 0.6, 0.7, 0.1])
    options = {"validation_share": 0.2, "validation_steps": 1, "early_stop": 2}
    result = scumble.train(make_config(**options, max_train_steps=9))
    assert result.steps == 3
    assert "stopping early" in capsys.readouterr().out
    best = load_file(tmp_path / "out" / "best" / WEIGHTS)
    assert all(torch.equal(best[n], t) for n, t in load_file(tmp_path / "out" / WEIGHTS).items())


def test_patience_survives_a_stop(make_config: Any, tmp_path: Path, monkeypatch: Any) -> None:
    options = {"validation_share": 0.2, "validation_steps": 1, "early_stop": 3}
    config = make_config(**options, max_train_steps=9)
    scripted(monkeypatch, [0.5, 0.6, 0.7, 0.8, 0.1])
    between = Sitting._between_steps

    def stopping(self: Sitting, result: Any, update: Any, average: Any, stop: Any) -> None:
        stop.requested = self.done == 2
        between(self, result, update, average, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Sitting, "_between_steps", stopping)
        with pytest.raises(Stopped):
            scumble.train(config)
    config.resume_from_checkpoint = "latest"
    assert scumble.train(config).steps == 4
    assert json.loads((tmp_path / "out" / "run.json").read_text())["best_step"] == 1


def test_phases_before_the_last_are_not_cut_short(make_config: Any, monkeypatch: Any) -> None:
    scripted(monkeypatch, [0.5, 0.6, 0.7, 0.8, 0.9])
    word = {
        "method": "pivotal_tuning",
        "placeholder_token": "<blob>",
        "initializer_token": "circle",
        "learnable_property": "object",
    }
    options = {"validation_share": 0.2, "validation_steps": 1, "early_stop": 1}
    assert scumble.train(make_config(**word, **options, max_train_steps=6)).steps == 4


def test_a_choice() -> None:
    choice = Choice(patience=2)
    marks = [choice.add(step, loss) for step, loss in enumerate((3.0, 2.0, 2.5, 1.0, 4.0), 1)]
    assert marks == [True, True, False, True, False]
    assert (choice.best_step, choice.best_loss, choice.waited) == (4, 1.0, 1)
    assert not choice.is_enough
    choice.add(6, float("nan"))
    assert choice.is_enough


def test_too_few_pictures_to_hold_back(make_config: Any) -> None:
    with pytest.raises(UserError, match="of 6 pictures holds 0 back"):
        scumble.train(make_config(validation_share=0.01))


def test_a_best_checkpoint_that_a_kill_took_back_is_chosen_anew(
    make_config: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    options = {"validation_share": 0.2, "validation_steps": 1, "checkpointing_steps": 2}
    config = make_config(**options, max_train_steps=4)
    scripted(monkeypatch, [0.5, 0.6, 0.4, 0.45, 0.41])
    save = Sitting._save

    def killed(self: Sitting, *arguments: Any) -> None:
        if self.done == 4:
            raise KeyboardInterrupt
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Sitting, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            scumble.train(config)
    scripted(monkeypatch, [0.7, 0.8])
    config.resume_from_checkpoint = "checkpoint-2"
    scumble.train(config)
    assert "of step 1, has gone" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["best_step"] == 3
    assert (tmp_path / "out" / "superseded-1-best").is_dir()

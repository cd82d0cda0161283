"""The running average: what it follows, where it is used, and that it survives a stop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import scumble
from scumble.training.average import Average

WEIGHTS = "pytorch_lora_weights.safetensors"
FINE = torch.ones(())


def test_it_follows_as_defined() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    average = Average({"p": parameter}, 0.5)
    wanted = torch.zeros(3)
    for step in range(4):
        with torch.no_grad():
            parameter.add_(1.0)
        average.update(step, FINE)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * parameter.detach()
    torch.testing.assert_close(average.averages["p"], wanted)


def test_a_broken_step_changes_nothing() -> None:
    parameter = nn.Parameter(torch.ones(3))
    average = Average({"p": parameter}, 0.5)
    with torch.no_grad():
        parameter.add_(1.0)
    average.update(0, torch.zeros(()))
    assert torch.equal(average.averages["p"], torch.ones(3))


def test_it_is_in_the_model_for_a_while() -> None:
    parameter = nn.Parameter(torch.ones(3))
    average = Average({"p": parameter}, 0.5)
    with torch.no_grad():
        parameter.add_(1.0)
    with average.applied():
        assert torch.equal(parameter, torch.ones(3))
    assert torch.equal(parameter, torch.full((3,), 2.0))


def test_files_hold_the_average_and_checkpoints_both(make_config: Any, tmp_path: Path) -> None:
    scumble.train(make_config(output_dir=str(tmp_path / "plain")))
    scumble.train(make_config(output_dir=str(tmp_path / "averaged"), ema_decay=0.9))
    plain = load_file(tmp_path / "plain" / WEIGHTS)
    averaged = load_file(tmp_path / "averaged" / WEIGHTS)
    assert all(not torch.equal(plain[name], averaged[name]) for name in plain)
    folder = tmp_path / "averaged" / "checkpoint-4"
    state = torch.load(folder / "training_state.pt", weights_only=True)
    other = torch.load(tmp_path / "plain" / "checkpoint-4" / "training_state.pt", weights_only=True)
    for name, value in state["parameters"].items():
        assert torch.equal(value, other["parameters"][name])
    saved = {tensor.sum().item() for tensor in load_file(folder / WEIGHTS).values()}
    assert saved == {tensor.sum().item() for tensor in state["average"].values()}
    assert saved == {tensor.sum().item() for tensor in averaged.values()}


def test_a_run_cut_off_at_its_end_still_leaves_the_average(
    make_config: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    config = make_config(ema_decay=0.9)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scumble.training.run._finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scumble.train(config)
    config.resume_from_checkpoint = "latest"
    scumble.train(config)
    scumble.train(make_config(ema_decay=0.9, output_dir=str(tmp_path / "whole")))
    parts, whole = load_file(tmp_path / "out" / WEIGHTS), load_file(tmp_path / "whole" / WEIGHTS)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)

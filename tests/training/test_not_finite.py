"""A step whose loss is not finite leaves everything needed to look into it, and good weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import scumble
from scumble.training.denoising import Denoising, DenoisingLoss, Draws
from scumble.training.journal import Journal, NotFiniteError
from scumble.training.optimizers import Update
from scumble.training.rates import ParameterGroup

ADAPTER = "pytorch_lora_weights.safetensors"


def dump_of(out: Path, step: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder = out / "not_finite" / f"step_{step:06d}"
    facts = json.loads((folder / "facts.json").read_text(), parse_constant=pytest.fail)
    return facts, load_file(folder / "tensors.safetensors")


@pytest.mark.parametrize("lag", [1, 3])
def test_the_weights_are_those_of_the_last_good_step(
    lag: int, make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where results are read late, as on a GPU."""
    scumble.train(make_config(max_train_steps=2, output_dir=str(tmp_path / "good")))
    draw, begin = Draws.samples, Journal.__init__

    def poisoned(self: Draws, plan: Any, positions: range) -> Any:
        samples = draw(self, plan, positions)
        if plan.index == 2:
            samples.latents[-1, 0, 0, 0] = float("nan")
        return samples

    def late(self: Journal, *arguments: Any) -> None:
        begin(self, *arguments)
        self._lag = lag

    monkeypatch.setattr(Draws, "samples", poisoned)
    monkeypatch.setattr(Journal, "__init__", late)
    with pytest.raises(NotFiniteError, match=r"step 3: .*its inputs are not finite: pictures\.0"):
        scumble.train(make_config(max_train_steps=8))
    kept, good = (load_file(tmp_path / name / ADAPTER) for name in ("out/checkpoint-2", "good"))
    assert kept.keys() == good.keys()
    assert all(torch.equal(kept[key], good[key]) for key in good)
    facts, tensors = dump_of(tmp_path / "out", 3)
    assert facts["bad_inputs"] == ["pictures.0.latents"]
    assert [sample["loss"] == "nan" for sample in facts["samples"]] == [False, True]
    assert int(tensors["pictures.0.latents"].isnan().sum()) == 1
    # The tensors are enough to repeat it.
    assert {"noise", "timesteps", "conditioning.states"} <= {k[11:] for k in tensors}


def test_the_first_bad_layer_is_named(make_config: Any, tmp_path: Path) -> None:
    config = make_config(learning_rate=1e18, max_grad_norm=0, max_train_steps=20)
    with pytest.raises(NotFiniteError) as caught:
        scumble.train(config)
    out, error = tmp_path / "out", caught.value
    facts, _ = dump_of(out, error.step)
    layer = facts["first_bad_layer"]
    assert layer["name"].startswith("unet.down_blocks.0.")
    assert layer["inputs_are_finite"]
    assert layer["not_finite"] > 0
    assert layer["name"] in error.message
    assert "Start anew in another --output_dir" in error.hint  # what was saved is lost already
    assert str(out / "not_finite" / f"step_{error.step:06d}") in error.message
    assert facts["learning_rates"] == {"unet": 1e18}
    weights = load_file(out / f"checkpoint-{error.step - 1}" / ADAPTER)
    assert sum(n["of"] for n in facts["weights"].values()) == sum(
        t.numel() for k, t in weights.items() if not k.endswith("alpha")
    )
    assert max(n["largest"] for n in facts["weights"].values()) > 1e17
    assert all(n["not_finite"] == 0 for n in facts["weights"].values())
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "failed"
    assert "not_finite" in record["error"]


def test_a_gradient_that_is_not_finite_is_told_from_a_loss(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Denoising.compare

    def steep(self: Denoising, samples: Any, prediction: Any, target: Any) -> Any:
        # 0 times the root's infinite slope at 0.
        return loss(self, samples, prediction, target) + (prediction * 0).abs().sqrt().flatten(
            1
        ).sum(1)

    monkeypatch.setattr(Denoising, "compare", steep)
    with pytest.raises(NotFiniteError, match="forward all is finite, the gradient of unet"):
        scumble.train(make_config(max_train_steps=2))
    facts, _ = dump_of(tmp_path / "out", 1)
    assert facts["first_bad_layer"] is None
    assert any(numbers["not_finite"] for numbers in facts["gradients"].values())


def test_a_look_that_fails_costs_nothing_but_itself(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    describe = DenoisingLoss.__call__

    def infinite(self: DenoisingLoss, samples: Any) -> Any:
        return describe(self, samples) * float("inf")

    monkeypatch.setattr(DenoisingLoss, "__call__", infinite)
    monkeypatch.setattr("scumble.training.not_finite.samples_of", None)
    with pytest.raises(NotFiniteError, match="step 1: the loss is inf"):
        scumble.train(make_config(max_train_steps=2))
    assert "the bad step could not be looked into" in capsys.readouterr().out


def test_with_a_loss_scale_an_overflow_costs_its_step_and_a_bad_loss_all_that_follow() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    config = scumble.TrainConfig(pretrained_model_name_or_path="b", train_data_dir="p")
    group = ParameterGroup("all", {"weight": weight}, 0.1, 0.0)
    update = Update([group], config, 9, 1, torch.float16, torch.device("cpu"))

    def taken(factor: float, loss: float = 0.0) -> bool:
        """Whether a step moved the weight."""
        before = weight.detach().clone()
        update.backward((weight * factor).sum())
        update.step(0, torch.tensor(loss))
        return not torch.equal(before, weight)

    assert taken(2.0)
    scale = update.loss_scale
    assert not taken(float("inf"))
    assert update.loss_scale == scale / 2
    assert taken(2.0)
    assert not taken(2.0, loss=float("nan"))
    assert not any(taken(2.0) for _ in range(4))

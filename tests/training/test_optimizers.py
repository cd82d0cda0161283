"""One step of the optimizer: clipping, skipping what is not finite, schedules, scaling."""

import sys

import pytest
import torch

import scumble
from scumble.errors import UserError
from scumble.training.optimizers import Update
from scumble.training.rates import ParameterGroup

CPU = torch.device("cpu")


FINE = torch.zeros(())


def make_update(*parameters, max_steps=10, global_batch=1, **changes):
    """An update of parameters in groups of their own: the second learns at half the rate."""
    settings = {"pretrained_model_name_or_path": "b", "train_data_dir": "p", "learning_rate": 0.1}
    config = scumble.TrainConfig(**(settings | changes))
    groups = [
        ParameterGroup(
            f"group {n}", {str(n): p}, config.learning_rate / n, config.adam_weight_decay
        )
        for n, p in enumerate(parameters, 1)
    ]
    return Update(groups, config, max_steps, global_batch, torch.float32, CPU)


def rate(update, step):
    """The rate of the only group."""
    (value,) = update.learning_rates(step).values()
    return value


def parameter():
    return torch.nn.Parameter(torch.ones(4))


def take(update, weight, factor, step=0):
    """One step on the loss `factor` times the sum of the weights."""
    update.backward((weight * factor).sum())
    return update.step(step, FINE)


@pytest.mark.parametrize(("limit", "seen_norm"), [(0.5, 0.5), (0, 200)])
def test_the_gradient_is_clipped_to_the_norm(limit, seen_norm):
    weight = parameter()
    update = make_update(weight, max_grad_norm=limit)
    seen = []
    update.optimizer.register_step_pre_hook(lambda *_: seen.append(weight.grad.norm().item()))
    assert take(update, weight, 100).item() == pytest.approx(200)
    assert seen == pytest.approx([seen_norm], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_moves_from_a_bad_gradient_on(bad):
    weight = parameter()
    update = make_update(weight)
    take(update, weight, 2, 0)
    before, state = weight.detach().clone(), update.state()
    step_count = state["moments"]["1"]["step"].clone()
    assert not torch.isfinite(take(update, weight, bad, 1))
    assert torch.isfinite(take(update, weight, 2, 2))
    assert torch.equal(weight, before)
    assert torch.equal(update.state()["moments"]["1"]["step"], step_count)


def test_the_rate_depends_on_the_step_alone():
    update = make_update(parameter(), lr_scheduler="linear", lr_warmup_steps=2, max_steps=4)
    rates = [rate(update, step) for step in range(4)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.05])
    assert rate(update, 1) == rates[1]


def test_the_rate_is_what_the_step_is_taken_with():
    weight = parameter()
    update = make_update(weight, lr_scheduler="linear", lr_warmup_steps=2, max_steps=4)
    take(update, weight, 1, 0)
    assert torch.equal(weight, torch.ones(4))
    take(update, weight, 1, 1)
    assert weight[0].item() == pytest.approx(1 - 0.05, rel=1e-3)


def test_scale_lr_multiplies_by_the_whole_batch():
    update = make_update(parameter(), scale_lr=True, global_batch=8)
    assert rate(update, 0) == 0.1 * 8


def test_state_in_another_number_of_bits_is_refused():
    update = make_update(parameter())
    state = update.state()
    narrow = {name: {"step": 1, "state1": torch.zeros(4)} for name in state["moments"]}
    with pytest.raises(UserError, match="another number of bits") as caught:
        update.load_state(state | {"moments": narrow})
    assert "with --use_8bit_adam" in caught.value.hint


def test_each_group_learns_at_its_own_rate():
    first, second = parameter(), parameter()
    update = make_update(first, second, lr_scheduler="linear", max_steps=4, scale_lr=True)
    assert update.learning_rates(1) == pytest.approx({"group 1": 0.075, "group 2": 0.0375})
    update.backward((first + second).sum())
    update.step(1, FINE)
    # AdamW's first step has the size of the rate, but for its weight decay of a hundredth.
    assert first[0].item() == pytest.approx(1 - 0.075, rel=1e-3)
    assert second[0].item() == pytest.approx(1 - 0.0375, rel=1e-3)


def test_each_group_has_its_own_weight_decay():
    first, second = parameter(), parameter()
    groups = [
        ParameterGroup("a", {"1": first}, 0.1, 0.5),
        ParameterGroup("b", {"2": second}, 0.1, 0.0),
    ]
    config = scumble.TrainConfig(pretrained_model_name_or_path="b", train_data_dir="p")
    update = Update(groups, config, 10, 1, torch.float32, CPU)
    update.backward(0 * (first + second).sum())
    update.step(0, FINE)
    assert first[0].item() == pytest.approx(1 - 0.1 * 0.5)
    assert second[0].item() == 1


def test_the_gradients_of_all_groups_are_clipped_together():
    first, second = parameter(), parameter()
    update = make_update(first, second, max_grad_norm=0.5)
    seen = []
    update.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([first.grad, second.grad]).norm().item())
    )
    update.backward(3 * first.sum() + 4 * second.sum())
    assert update.step(0, FINE).item() == pytest.approx(10)
    assert seen == pytest.approx([0.5], rel=1e-5)


def test_8bit_adam_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"scumble\[bitsandbytes\]"):
        make_update(parameter(), use_8bit_adam=True)


def test_state_goes_on_bit_for_bit():
    def steps(update, weight, first, last):
        for step in range(first, last):
            update.backward((weight**2).sum())
            update.step(step, FINE)

    whole, parts = parameter(), parameter()
    steps(make_update(whole, lr_scheduler="cosine"), whole, 0, 6)
    first = make_update(parts, lr_scheduler="cosine")
    steps(first, parts, 0, 3)
    second = make_update(parts, lr_scheduler="cosine")
    second.load_state(first.state())
    steps(second, parts, 3, 6)
    assert torch.equal(whole, parts)


def test_new_settings_hold_after_going_on():
    weight = parameter()
    old = make_update(weight)
    take(old, weight, 1)
    new = make_update(weight, learning_rate=0.5, adam_beta1=0.5)
    new.load_state(old.state())
    take(new, weight, 1, 1)
    assert new.optimizer.param_groups[0]["lr"] == 0.5
    assert new.optimizer.param_groups[0]["betas"][0] == 0.5


def test_state_of_other_parameters_is_refused():
    old = make_update(parameter())
    config = old.optimizer.state_dict()
    assert config["param_groups"]
    with pytest.raises(UserError, match="--target_modules"):
        old.load_state({"moments": {0: {}, 1: {}}, "scaler": {}})

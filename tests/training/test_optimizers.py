"""One step of the optimizer: clipping, skipping what is not finite, schedules, scaling."""

import pytest
import torch

import scumble
from scumble.errors import UserError
from scumble.training.optimizers import Update


def make_update(parameter, *, max_steps=10, global_batch=1, **changes):
    settings = {"pretrained_model_name_or_path": "b", "train_data_dir": "p", "learning_rate": 0.1}
    config = scumble.TrainConfig(**(settings | changes))
    cpu = torch.device("cpu")
    return Update([parameter], config, max_steps, global_batch, torch.float32, cpu)


def parameter():
    return torch.nn.Parameter(torch.ones(4))


def test_the_gradient_is_clipped_to_the_norm():
    weight = parameter()
    update = make_update(weight, max_grad_norm=0.5)
    seen = []
    update.optimizer.register_step_pre_hook(lambda *_: seen.append(weight.grad.norm().item()))
    update.backward((weight * 100).sum())
    norm = update.step()
    assert norm.item() == pytest.approx(200)
    assert seen == pytest.approx([0.5], rel=1e-5)


def test_zero_turns_clipping_off():
    weight = parameter()
    update = make_update(weight, max_grad_norm=0)
    seen = []
    update.optimizer.register_step_pre_hook(lambda *_: seen.append(weight.grad.norm().item()))
    update.backward((weight * 100).sum())
    update.step()
    assert seen == pytest.approx([200])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_leaves_the_weights(bad):
    weight = parameter()
    update = make_update(weight)
    update.backward((weight * 2).sum())
    update.step()
    before = weight.detach().clone()
    update.backward((weight * bad).sum())
    norm = update.step()
    assert not torch.isfinite(norm)
    assert torch.equal(weight, before)
    update.backward((weight * 2).sum())
    update.step()
    assert torch.isfinite(weight).all()
    assert not torch.equal(weight, before)


def test_the_schedule_runs_over_the_steps():
    weight = parameter()
    update = make_update(weight, lr_scheduler="linear", lr_warmup_steps=2, max_steps=4)
    rates = []
    for _ in range(4):
        rates.append(update.learning_rate)
        update.backward(weight.sum())
        update.step()
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.05])


def test_scale_lr_multiplies_by_the_whole_batch():
    assert make_update(parameter(), scale_lr=True, global_batch=8).learning_rate == 0.1 * 8


def test_8bit_adam_without_its_package_says_what_to_install():
    pytest.importorskip("torch")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"scumble\[bitsandbytes\]"):
            make_update(parameter(), use_8bit_adam=True)


def test_state_goes_on_bit_for_bit():
    def steps(update, weight, count):
        for _ in range(count):
            update.backward((weight**2).sum())
            update.step()

    whole, parts = parameter(), parameter()
    steps(make_update(whole, lr_scheduler="cosine"), whole, 6)
    first = make_update(parts, lr_scheduler="cosine")
    steps(first, parts, 3)
    second = make_update(parts, lr_scheduler="cosine")
    second.load_state(first.state())
    steps(second, parts, 3)
    assert torch.equal(whole, parts)

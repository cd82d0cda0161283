"""Parameters as parts of one tensor: the same numbers, the same names, one kernel."""

import pytest
import torch
from torch import nn

import scumble
from scumble.training.flat import ALIGNMENT, Flat
from scumble.training.optimizers import Update
from scumble.training.rates import ParameterGroup

CPU = torch.device("cpu")
SHAPES = {"down": (4, 33), "up": (17, 4), "rows": (2, 5), "one": (1,)}


def parameters() -> dict[str, nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    return {n: nn.Parameter(torch.randn(s, generator=draws)) for n, s in SHAPES.items()}


def test_the_parameters_keep_their_values_and_stay_themselves() -> None:
    named = parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    flat = Flat(named)
    assert all(torch.equal(p, before[name]) for name, p in named.items())
    assert all(flat.parameters[name] is p for name, p in named.items())
    assert all(start % ALIGNMENT == 0 for start in flat.starts.values())


def test_a_change_of_the_whole_is_a_change_of_its_parts() -> None:
    named = parameters()
    flat = Flat(named)
    with torch.no_grad():
        flat.whole.mul_(2)
    assert torch.equal(named["up"], flat.part(flat.whole, "up"))
    sum((p * number).sum() for number, p in enumerate(named.values(), 1)).backward()
    assert all((p.grad == n).all() for n, p in enumerate(named.values(), 1))
    assert flat.whole.grad is not None
    assert flat.whole.grad.sum() == sum(n * p.numel() for n, p in enumerate(named.values(), 1))


def update_of(named: dict[str, nn.Parameter], **changes: object) -> Update:
    settings = {"pretrained_model_name_or_path": "b", "train_data_dir": "p", "learning_rate": 0.1}
    config = scumble.TrainConfig(**(settings | changes))
    group = ParameterGroup("all", named, 0.1, config.adam_weight_decay)
    return Update([group], config, 10, 1, torch.float32, CPU)


def take_steps(update: Update, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        loss = sum(((p - step) ** 2).sum() for p in named.values())
        update.backward(loss)
        update.step(step, loss)


def test_five_steps_equal_those_of_separate_parameters() -> None:
    together, apart = parameters(), parameters()
    update = update_of(together)
    assert [tuple(p.shape) for p in update.parameters] == [(ALIGNMENT * 7,)]
    optimizer = torch.optim.AdamW(apart.values(), lr=0.1, weight_decay=1e-2, fused=True)
    take_steps(update, together, range(5))
    for step in range(5):
        sum(((p - step) ** 2).sum() for p in apart.values()).backward()
        torch.nn.utils.clip_grad_norm_(list(apart.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in together.items():
        torch.testing.assert_close(parameter, apart[name], rtol=1e-6, atol=1e-6)


def test_what_lies_between_the_parts_stays_zero() -> None:
    named = parameters()
    update = update_of(named)
    (flat,) = update.flats
    take_steps(update, named, range(5))
    with torch.no_grad():
        for name in named:
            flat.part(flat.whole, name).zero_()
    assert not flat.whole.any()


def test_moments_are_saved_by_name_and_fit_any_other_grouping() -> None:
    named = parameters()
    update = update_of(named)
    take_steps(update, named, range(3))
    state = update.state()
    assert {n: tuple(m["exp_avg"].shape) for n, m in state["moments"].items()} == SHAPES
    # What is saved is no view: a file of it would hold the whole.
    assert state["moments"]["one"]["exp_avg"].untyped_storage().nbytes() == 4
    copies = {name: nn.Parameter(p.detach().clone()) for name, p in reversed(named.items())}
    other = update_of(copies)
    other.load_state(state)
    take_steps(update, named, range(3, 5))
    take_steps(other, copies, range(3, 5))
    for name in named:  # the norm that gradients are clipped by is summed in another order
        torch.testing.assert_close(named[name], copies[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["full"])
def test_of_a_whole_model_no_second_copy_is_made(method: str) -> None:
    named = parameters()
    update = update_of(named, method=method)
    assert update.flats == []
    assert [id(p) for p in update.parameters] == [id(p) for p in named.values()]

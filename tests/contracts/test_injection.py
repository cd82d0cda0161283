"""Which layers are adapted, from which start values, and what is refused."""

import pytest
import torch
from torch import nn

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.adapters.inject import Target, find_targets, inject
from scumble.adapters.layer import AdaptedLayer
from scumble.errors import UserError


@pytest.mark.parametrize(
    ("init", "spread"), [("gaussian", 1 / 8), ("kaiming", 1 / (3 * 4000) ** 0.5)]
)
def test_start_values_have_the_fields_spread(init, spread):
    model = nn.Sequential(nn.Linear(4000, 4))
    adapters = inject(model, "a", ADAPTERS["lora"], [Target("0", 8, 8)], init=init).adapters
    assert adapters["0"].down.std().item() == pytest.approx(spread, rel=0.05)
    assert not adapters["0"].up.any()


def test_start_values_depend_on_seed_and_path_alone():
    def downs(seed, order):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        targets = [Target(name, 2, 2) for name in order]
        adapters = inject(model, "a", ADAPTERS["lora"], targets, seed=seed).adapters
        return [adapters[path].down.detach() for path in ("0", "1")]

    first, again, other = downs(0, "01"), downs(0, "10"), downs(1, "01")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_targets_match_whole_names_and_the_last_one_decides():
    block = nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_qk": nn.Linear(4, 4)})
    model = nn.ModuleDict({"down": block, "up": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})
    found = find_targets(model, [Target("to_q", 4, 4), Target("up.*", 8, 2)])
    assert {path: target.rank for path, target in found.items()} == {"down.to_q": 4, "up.to_q": 8}


def test_a_target_that_matches_nothing_names_what_is_close():
    model = nn.ModuleDict({"to_q": nn.Linear(4, 4)})
    with pytest.raises(UserError, match="to_q"):
        find_targets(model, [Target("to_qq", 4, 4)])


@pytest.mark.parametrize("text", ["to_q:0", "to_q:4:-1", "to_q:four", ":4", "to_q:1:2:3"])
def test_a_malformed_target_is_refused(text):
    with pytest.raises(UserError, match="pattern:rank:alpha"):
        Target.parse(text, 4, None)


def test_targets_parse_with_their_own_rank_and_alpha():
    assert Target.parse("to_q", 4, None) == Target("to_q", 4, 4.0)
    assert Target.parse("to_q:8", 4, None) == Target("to_q", 8, 8.0)
    assert Target.parse("to_q:8:2", 4, 1.0) == Target("to_q", 8, 2.0)


def test_a_taken_name_is_refused_and_nothing_is_attached():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inject(model, "a", ADAPTERS["lora"], [Target("0", 2, 2)])
    with pytest.raises(UserError, match="'a' is already loaded"):
        inject(model, "a", ADAPTERS["lora"], [Target("1", 2, 2)])
    assert not isinstance(model[1], AdaptedLayer)


def test_grouped_convolutions_are_refused():
    with pytest.raises(TypeError, match="ungrouped"):
        LayerSpec.of(nn.Conv2d(4, 4, 3, groups=2))

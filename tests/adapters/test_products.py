"""LoHa and LoKr: their forms, and what they keep for the way back."""

import pytest
import torch
from torch import nn

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.adapters.inject import Target, inject
from scumble.adapters.lokr import LoKr
from scumble.errors import UserError

CONV = LayerSpec((10, 6, 3, 3))


def shapes(adapter):
    return {name: tuple(p.shape) for name, p in adapter.named_parameters()}


def test_a_new_loha_holds_the_kernel_in_its_inner_matrices():
    assert shapes(ADAPTERS["loha"](CONV, 4, 4.0)) == {
        "w1_a": (10, 4),
        "w1_b": (4, 54),
        "w2_a": (10, 4),
        "w2_b": (4, 54),
    }


@pytest.mark.parametrize(
    ("rank", "factor", "wanted"),
    [
        (2, -1, {"w1": (16, 16), "w2_a": (20, 2), "w2_b": (2, 20)}),
        (10, -1, {"w1": (16, 16), "w2": (20, 20)}),
        (10, 8, {"w1": (8, 8), "w2_a": (40, 10), "w2_b": (10, 40)}),
        (20, 8, {"w1": (8, 8), "w2": (40, 40)}),
        (10_000, 2, {"w1": (2, 2), "w2": (160, 160)}),
    ],
)
def test_rank_and_factor_decide_the_form_of_a_new_lokr(rank, factor, wanted):
    adapter = LoKr(LayerSpec((320, 320)), rank, 1.0, decompose_factor=factor)
    assert shapes(adapter) == wanted
    assert adapter.scale == (1 if "w2" in wanted else 1 / rank)


def test_a_lokr_of_a_convolution_has_the_kernel_in_its_large_factor():
    assert shapes(LoKr(CONV, 2, 1.0)) == {"w1": (2, 2), "w2_a": (5, 2), "w2_b": (2, 27)}
    assert shapes(LoKr(CONV, 3, 1.0)) == {"w1": (2, 2), "w2": (5, 3, 3, 3)}


def test_a_small_factor_that_does_not_divide_the_layer_is_refused():
    tensors = {"w1": torch.ones(3, 2), "w2": torch.ones(3, 3)}
    with pytest.raises(UserError, match=r"'lokr_w1' is 3 x 2, which does not divide 10 x 6"):
        LoKr.from_tensors(LayerSpec((10, 6)), tensors, 1.0)


@pytest.mark.parametrize(
    "tensors",
    [
        {"w1": torch.ones(2), "w2": torch.ones(5, 3)},
        {"w1": torch.ones(0, 2), "w2": torch.ones(5, 3)},
        {"w1": torch.ones(2, 2), "w2_a": torch.ones(5, 0), "w2_b": torch.ones(0, 3)},
    ],
)
def test_factors_without_content_have_no_rank(tensors):
    assert LoKr.rank_of(tensors) == 0


@pytest.mark.parametrize("name", ["loha", "lokr"])
def test_norms_are_refused(name):
    with pytest.raises(UserError, match="norm"):
        ADAPTERS[name](LayerSpec((8,)), 2, 2.0)


@pytest.mark.parametrize(
    ("name", "random"),
    [
        ("loha", {"w1_a": 0.1, "w1_b": 1.0, "w2_b": 1.0}),
        # Uniform within 1 / sqrt(inputs): the spread is that over sqrt(3).
        ("lokr", {"w1": 1 / (3 * 40) ** 0.5, "w2_a": 1 / (3 * 8) ** 0.5}),
    ],
)
def test_the_spread_of_the_start_values_is_that_of_lycoris(name, random):
    model = nn.Sequential(nn.Linear(1600, 1600))
    (adapter,) = inject(model, "a", ADAPTERS[name], [Target("0", 8, 8)]).adapters.values()
    for parameter_name, parameter in adapter.named_parameters():
        spread = random.get(parameter_name, 0)
        assert parameter.std().item() == pytest.approx(spread, rel=0.1)
        assert (spread == 0) == (parameter_name in adapter.from_zero)


def kept_sizes(model, x):
    sizes = []
    pack = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum()
    return sizes


@pytest.mark.parametrize(("name", "copies"), [("loha", 1), ("lokr", 0)])
def test_little_as_large_as_the_weight_is_kept_for_the_way_back(name, copies):
    model = nn.Sequential(nn.Linear(64, 96)).requires_grad_(False)
    x = torch.randn(3, 64, requires_grad=True)
    own = sum(size >= 64 * 96 for size in kept_sizes(model, x))
    inject(model, "a", ADAPTERS[name], [Target("0", 4, 4)])
    assert sum(size >= 64 * 96 for size in kept_sizes(model, x)) == own + copies

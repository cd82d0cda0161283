"""Types that are read and drawn with: scaled channels and whole differences."""

import itertools

import pytest
import torch
from torch import nn

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.adapters.blend import merge, set_strengths, unmerge
from scumble.adapters.inject import attach
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, ModuleWeights, read_adapter, write_adapter
from scumble.formats.assemble import Parts

NAMES = FAMILIES["stable_diffusion"].key_names
PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def linear():
    return nn.Linear(6, 10), torch.randn(3, 6)


def conv():
    return nn.Conv2d(6, 10, 3, padding=1), torch.randn(2, 6, 5, 5)


def layer_norm():
    return nn.LayerNorm(6), torch.randn(3, 6)


def group_norm():
    return nn.GroupNorm(2, 6), torch.randn(2, 6, 4, 4)


OUT, IN = torch.tensor(0), torch.tensor(1)
CASES = {
    "ia3 of outputs": (linear, "ia3", lambda: {"weight": torch.randn(10), "on_input": OUT}),
    "ia3 of inputs": (linear, "ia3", lambda: {"weight": torch.randn(6), "on_input": IN}),
    "ia3 on a convolution": (
        conv,
        "ia3",
        lambda: {"weight": torch.randn(1, 6, 1, 1), "on_input": IN},
    ),
    "difference": (linear, "difference", lambda: {"diff": torch.randn(10, 6)}),
    "difference with bias": (
        conv,
        "difference",
        lambda: {"diff": torch.randn(10, 6, 3, 3), "diff_b": torch.randn(10)},
    ),
    "difference of a bias": (linear, "difference", lambda: {"diff_b": torch.randn(10)}),
    "shift of a norm": (group_norm, "norm_difference", lambda: {"diff_b": torch.randn(6)}),
    "layer norm": (
        layer_norm,
        "norm_difference",
        lambda: {"diff": torch.randn(6), "diff_b": torch.randn(6)},
    ),
    "group norm": (group_norm, "norm_difference", lambda: {"diff": torch.randn(6)}),
}


@pytest.fixture(params=CASES)
def case(request):
    """A model of one layer, an input, and the adapter of a file."""
    torch.manual_seed(0)
    build, type_name, make = CASES[request.param]
    layer, x = build()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return nn.Sequential(layer).requires_grad_(False), x, type_name, make()


def put(model, type_name, tensors, strength=1.0):
    def build(spec, _):
        return ADAPTERS[type_name].from_tensors(spec, tensors, 1.0)

    return attach(model, "a", {"0": build}, strength)


def wanted(layer, tensors, strength):
    """Weight and bias as the file's author meant them."""
    weight, bias = layer.weight.clone(), layer.bias.clone()
    if "on_input" not in tensors:
        diff, shift = (strength * tensors.get(name, 0) for name in ("diff", "diff_b"))
        return weight + diff, bias + shift
    channels = (1, -1) if tensors["on_input"] else (-1, 1)
    factors = tensors["weight"].reshape(*channels, *[1] * (weight.ndim - 2))
    return weight * (1 + strength * factors), bias


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_it_acts_at_its_strength_apart_and_merged(case, strength):
    model, x, type_name, tensors = case
    layer, before = model[0], model(x)
    weight, bias = wanted(layer, tensors, strength)
    adapters = put(model, type_name, tensors, strength)
    spec = model[0].spec
    torch.testing.assert_close(model(x), spec.apply(x, weight, bias))
    merge(model)
    torch.testing.assert_close(layer.weight.data, weight)
    torch.testing.assert_close(layer.bias.data, bias)
    unmerge(model)
    set_strengths(model, {"a": 0.0})
    assert torch.equal(model(x), before)
    adapters.eject()
    assert model[0] is layer
    assert torch.equal(model(x), before)


def test_a_file_gives_back_every_tensor_as_it_was(case, tmp_path):
    model, _, type_name, tensors = case
    (adapter,) = put(model, type_name, tensors).adapters.values()
    entry = ModuleWeights(type_name, adapter.tensors(), 1.0)
    path = write_adapter(AdapterWeights({"unet": {PATH: entry}}), tmp_path / "a.safetensors", NAMES)
    back = read_adapter(path, NAMES).components["unet"][PATH]
    assert (back.type, back.alpha, back.rank) == (type_name, 1.0, 1)
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name], tensor)


@pytest.mark.parametrize(
    ("type_name", "shape", "tensors", "message"),
    [
        ("ia3", (10, 6), {"weight": torch.ones(7), "on_input": OUT}, "has 10 channels"),
        ("ia3", (10, 6), {"weight": torch.ones(10), "on_input": IN}, "has 6 channels"),
        ("ia3", (10,), {"weight": torch.ones(10), "on_input": OUT}, "norm"),
        ("difference", (10, 6), {"diff": torch.ones(6, 10)}, "'diff' has shape"),
        ("difference", (10, 6), {"diff_b": torch.ones(6)}, "'diff_b' has shape"),
        ("norm_difference", (10, 6), {"diff": torch.ones(10)}, "which the layer is not"),
        ("norm_difference", (10,), {"diff": torch.ones(6)}, "'w_norm' has shape"),
    ],
)
def test_what_does_not_fit_the_layer_is_refused(type_name, shape, tensors, message):
    with pytest.raises(UserError, match=message):
        ADAPTERS[type_name].from_tensors(LayerSpec(shape), tensors, 1.0)


@pytest.mark.parametrize("type_name", ["difference", "norm_difference"])
def test_a_change_of_a_bias_that_is_not_there_is_refused(type_name):
    shape = (10, 6) if type_name == "difference" else (10,)
    bias, weight = {"diff_b": torch.ones(10)}, {"diff": torch.ones(shape)}
    for tensors in (bias, weight | bias):
        with pytest.raises(UserError, match="a bias, which the layer lacks"):
            ADAPTERS[type_name].from_tensors(LayerSpec(shape, has_bias=False), tensors, 1.0)


def test_it_cannot_be_trained():
    for type_name, kind in ADAPTERS.items():
        if not kind.is_trainable and not type_name.startswith("dora"):
            with pytest.raises(NotImplementedError):
                kind(LayerSpec((6,) if "norm" in type_name else (6, 6)), 1, 1.0).initialise(
                    "gaussian", torch.Generator(), torch.ones(6, 6)
                )


def test_no_set_of_tensors_is_of_two_types():
    sets = {}
    for type_name, kind in ADAPTERS.items():
        for count in range(1, len(kind.file_names) + 1):
            for names in itertools.combinations(kind.file_names, count):
                if kind.is_complete(set(names)):
                    key = frozenset(kind.file_names[name] for name in names)
                    sets.setdefault(key, []).append(type_name)
    assert len(sets) > 20
    assert {key: types for key, types in sets.items() if len(types) > 1} == {}


def test_a_whole_number_is_no_tensor_of_an_adapter():
    parts = Parts()
    parts.add("unet", "x", "on_input", "x.on_input", OUT)
    for bad in (torch.ones(3, dtype=torch.int64), torch.tensor(1j)):
        with pytest.raises(UserError, match="not supported"):
            parts.add("unet", "x", "weight", "x.weight", bad)


def test_a_whole_weight_is_not_taken_for_a_change():
    parts = Parts()
    parts.add("unet", "x", "weight", "x.weight", torch.ones(3))
    assert parts.modules() == {}
    assert parts.left_out == {
        "x.weight": "is a whole weight of 'x', or an IA3 that lacks its on_input"
    }

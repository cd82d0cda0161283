"""Our changes of weights are those of LyCORIS and PEFT, type by type, form by form."""

import itertools

import pytest
import torch
from lycoris.functional.general import factorization
from lycoris_delta import lycoris_delta
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import nn

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.adapters.lokr import divide
from scumble.formats.assemble import Parts

LAYERS = {
    "linear": lambda: nn.Linear(12, 20),
    "conv3x3": lambda: nn.Conv2d(12, 20, 3, padding=1),
    "conv1x1": lambda: nn.Conv2d(12, 20, 1, bias=False),
}
L, P, M, N = 4, 5, 3, 4
R = 3
"""Outputs 20 = L P and inputs 12 = M N, as the Kronecker product divides them."""


def forms(layer):
    """Form -> tensor name -> shape, all that LyCORIS writes for a layer of this kind."""
    outputs, inputs, *edges = layer.weight.shape
    ones, size = [1] * len(edges), torch.Size(edges).numel()
    pair = {"lora_up.weight": (outputs, R, *ones), "lora_down.weight": (R, inputs, *edges)}
    hada = {f"hada_w{i}_a": (outputs, R) for i in (1, 2)}
    hada |= {f"hada_w{i}_b": (R, inputs * size) for i in (1, 2)}
    found = {"lora": pair, "loha": hada}
    first = {"w1": {"lokr_w1": (L, M)}, "w1 thin": {"lokr_w1_a": (L, R), "lokr_w1_b": (R, M)}}
    second = {
        "w2": {"lokr_w2": (P, N, *edges)},
        "w2 thin": {"lokr_w2_a": (P, R), "lokr_w2_b": (R, N * size)},
    }
    if size > 1:
        core = (R, R, *edges)
        middle = {"lora_down.weight": (R, inputs, *ones), "lora_mid.weight": core}
        found["lora tucker"] = pair | middle
        found["loha tucker"] = {f"hada_w{i}_a": (R, outputs) for i in (1, 2)}
        found["loha tucker"] |= {f"hada_w{i}_b": (R, inputs) for i in (1, 2)}
        found["loha tucker"] |= {"hada_t1": core, "hada_t2": core}
        second["w2 tucker"] = {"lokr_w2_a": (R, P), "lokr_w2_b": (R, N), "lokr_t2": core}
    for (one, a), (two, b) in itertools.product(first.items(), second.items()):
        found[f"lokr {one} {two}"] = a | b
    return found


FORMS = [(kind, form) for kind, make in LAYERS.items() for form in forms(make())]


def drawn(shapes):
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def ours(layer, tensors):
    """The adapter that a file of these tensors holds, as the reader of files finds it."""
    parts = Parts()
    for name, tensor in tensors.items():
        parts.add("unet", "x", name, f"x.{name}", tensor)
    entry = parts.modules()["unet"]["x"]
    assert parts.left_out == {}
    return ADAPTERS[entry.type].from_tensors(LayerSpec.of(layer), entry.tensors, entry.alpha)


def assert_same(layer, tensors):
    weight, bias = lycoris_delta(layer, tensors)
    adapter = ours(layer, tensors)
    with torch.no_grad():
        delta, bias_delta = adapter.delta(layer.weight), adapter.bias_delta()
    # Where lengths are kept, the change is the difference of two whole weights.
    whole = layer.weight if "dora_scale" in tensors else torch.zeros(())
    scale = (whole + weight).norm()
    assert delta.shape == layer.weight.shape
    assert (delta - weight).norm() <= 1e-6 * scale
    assert (bias is None) == (bias_delta is None)
    assert bias is None or (bias - bias_delta).norm() <= 1e-6 * bias.norm()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("alpha", [None, 1.5, 3.0])
@pytest.mark.parametrize("lengths", [None, "of outputs", "of inputs"])
@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_low_rank_types_change_what_lycoris_changes(kind, form, lengths, alpha):
    layer = LAYERS[kind]()
    tensors = drawn(forms(layer)[form])
    outputs, inputs, *edges = layer.weight.shape
    ones = [1] * len(edges)
    if lengths is not None:
        shape = (outputs, 1, *ones) if lengths == "of outputs" else (1, inputs, *ones)
        tensors["dora_scale"] = torch.rand(shape) + 0.5
    if alpha is not None:
        tensors["alpha"] = torch.tensor(alpha)
    assert_same(layer, tensors)


@pytest.mark.parametrize("on_input", [0, 1])
@pytest.mark.parametrize("kind", LAYERS)
def test_ia3_changes_what_lycoris_changes(kind, on_input):
    layer = LAYERS[kind]()
    channels = layer.weight.shape[on_input]
    shape = (channels,) if layer.weight.ndim == 2 else (1, channels, 1, 1)
    assert_same(layer, {"weight": torch.randn(shape), "on_input": torch.tensor(on_input)})


@pytest.mark.parametrize("kind", LAYERS)
def test_whole_differences_change_what_lycoris_changes(kind):
    layer = LAYERS[kind]()
    tensors = {"diff": torch.randn_like(layer.weight)}
    if layer.bias is not None:
        tensors["diff_b"] = torch.randn_like(layer.bias)
    assert_same(layer, tensors)


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.GroupNorm(4, 8)])
def test_differences_of_norms_change_what_lycoris_changes(layer):
    assert_same(layer, {"w_norm": torch.randn(8), "b_norm": torch.randn(8)})


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 7, 8, 16, 32, 1000])
def test_dimensions_are_divided_as_lycoris_does(factor):
    for length in (1, 4, 7, 77, 320, 640, 768, 960, 1280, 2048, 2560, 10240):
        assert divide(length, factor) == factorization(length, factor)


CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=6),
    "lora, rank-stabilised": LoraConfig(r=4, lora_alpha=6, use_rslora=True),
    "loha": LoHaConfig(r=4, alpha=6),
    "loha in effective form": LoHaConfig(r=4, alpha=6, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=2, alpha=3),
    "lokr in effective form": LoKrConfig(r=2, alpha=3, use_effective_conv2d=True),
    "lokr, both thin": LoKrConfig(r=1, alpha=3, decompose_both=True),
    "lokr by 8": LoKrConfig(r=2, alpha=3, decompose_factor=8),
}


def with_peft(kind, config):
    config.target_modules = ["0"]
    model = get_peft_model(nn.Sequential(LAYERS[kind]()), config)
    for name, parameter in model.named_parameters():
        if "base_layer" not in name:
            nn.init.normal_(parameter)
    return model.base_model.model[0]


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_pefts_changes_are_ours(kind, case):
    theirs = with_peft(kind, CONFIGS[case])
    delta = theirs.get_delta_weight("default")
    names = {
        "lora_A.default.weight": "lora_down.weight",
        "lora_B.default.weight": "lora_up.weight",
    }
    tensors = {
        names.get(name, name.removesuffix(".default")): parameter.detach()
        for name, parameter in theirs.named_parameters()
        if "base_layer" not in name
    }
    rank = next(t.shape[0] for n, t in tensors.items() if n.endswith(("_b", "down.weight")))
    tensors["alpha"] = torch.tensor(theirs.scaling["default"] * rank)
    adapter = ours(theirs.base_layer, tensors)
    assert (adapter.delta() - delta).norm() <= 1e-6 * delta.norm()


@pytest.mark.parametrize("kind", LAYERS)
def test_pefts_dora_merges_to_our_weight(kind):
    theirs = with_peft(kind, LoraConfig(r=4, lora_alpha=6, use_dora=True))
    layer, lengths = theirs.base_layer, theirs.lora_magnitude_vector["default"].weight
    before = layer.weight.detach().clone()
    tensors = {
        "lora_down.weight": theirs.lora_A["default"].weight.detach(),
        "lora_up.weight": theirs.lora_B["default"].weight.detach(),
        "dora_scale": lengths.detach().reshape(-1, *[1] * (before.ndim - 1)),
        "alpha": torch.tensor(6.0),
    }
    adapter = ours(layer, tensors)
    theirs.merge()
    delta = adapter.delta(before)
    assert (before + delta - layer.weight).norm() <= 1e-6 * layer.weight.norm()

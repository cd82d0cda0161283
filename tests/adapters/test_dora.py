"""Lengths and directions apart: what DoRA adds to the type below it."""

import pytest
import torch
from torch import nn

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.adapters.blend import merge, set_strengths, unmerge
from scumble.adapters.inject import Target, attach, inject
from scumble.errors import UserError
from scumble.lean.quantised import QuantisedWeight

DORA = ADAPTERS["dora"]
LAYERS = {
    "linear": (lambda: nn.Linear(64, 96), (4, 64)),
    "conv": (lambda: nn.Conv2d(8, 12, 3, padding=1), (1, 8, 6, 6)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    """A model of one frozen layer, and an input for it."""
    torch.manual_seed(0)
    build, shape = LAYERS[request.param]
    return nn.Sequential(build()).requires_grad_(False), torch.randn(shape)


def put(model, *, moved=True):
    (adapter,) = inject(model, "a", DORA, [Target("0", 4, 8)]).adapters.values()
    if moved:
        nn.init.normal_(adapter.up, std=0.1)
        adapter.magnitude.data *= 1 + 0.3 * torch.randn_like(adapter.magnitude)
    return adapter


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fresh_one_changes_no_bit_of_a_half_layer(case, dtype):
    model, x = case
    model, x = model.to(dtype), x.to(dtype)
    before = model(x)
    put(model, moved=False)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_it_sits_on_a_quantised_layer(case, scheme):
    model, x = case
    layer = model[0]
    layer.weight = nn.Parameter(QuantisedWeight.of(layer.weight, scheme), requires_grad=False)
    plain = layer.weight.dequantized()
    before = model(x)
    adapter = put(model, moved=False)
    assert torch.equal(model(x), before)
    nn.init.normal_(adapter.up, std=0.1)
    changed = adapter.layer.apply(x, plain + adapter.delta(plain), layer.bias)
    assert not torch.allclose(changed, before, atol=1e-3)
    torch.testing.assert_close(model(x), changed, atol=1e-5, rtol=1e-5)


def test_lengths_are_those_of_the_weight_at_the_start(case):
    model, _ = case
    wanted = model[0].weight.flatten(1).norm(dim=1)
    adapter = put(model, moved=False)
    torch.testing.assert_close(adapter.magnitude.detach().flatten(), wanted)
    assert adapter.magnitude.shape == (len(wanted), *[1] * (model[0].base.weight.ndim - 1))


def test_the_rows_of_the_changed_weight_have_the_lengths(case):
    model, _ = case
    adapter = put(model)
    weight = model[0].base.weight
    lengths = (weight + adapter.delta(weight)).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, adapter.magnitude.flatten().abs(), atol=1e-5, rtol=1e-5)


def test_rows_of_zeros_learn_and_make_no_nan(case):
    model, x = case
    model[0].weight[2] = 0
    before = model(x)
    adapter = put(model, moved=False)
    assert torch.equal(model(x), before)
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())


def test_no_weight_is_kept_for_the_way_back_but_the_layers_own(case):
    model, x = case
    put(model)
    weight = model[0].base.weight
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(x).sum()
    as_large = [tensor for tensor in kept if tensor.numel() == weight.numel()]
    assert as_large
    assert all(tensor.data_ptr() == weight.data_ptr() for tensor in as_large)


def test_the_gradient_goes_through_the_lengths(case):
    """As if the lengths were constant, it would be another."""
    model, x = case
    adapter = put(model)
    model(x).square().sum().backward()
    weight = model[0].base.weight
    change = adapter.scale * (adapter.up.flatten(1) @ adapter.down.flatten(1))
    changed = weight + change.reshape(weight.shape)
    lengths = changed.flatten(1).norm(dim=1).view(adapter.magnitude.shape)
    for constant in (False, True):
        divisor = lengths.detach() if constant else lengths
        y = adapter.layer.apply(x, changed * adapter.magnitude / divisor, model[0].bias)
        (wanted,) = torch.autograd.grad(y.square().sum(), adapter.up, retain_graph=True)
        assert torch.allclose(adapter.up.grad, wanted, rtol=1e-3, atol=1e-3) != constant


def older(layer):
    """Tensors of an older file, with a length for each input."""
    outputs, inputs, *edges = layer.weight.shape
    ones = [1] * len(edges)
    return {
        "down": torch.randn(2, inputs, *edges),
        "up": torch.randn(outputs, 2, *ones),
        "magnitude": torch.rand(1, inputs, *ones) + 0.5,
    }


def test_lengths_of_inputs_are_drawn_and_merged(case):
    model, x = case
    layer, before = model[0], model(x)
    tensors = older(layer)
    adapters = attach(model, "a", {"0": lambda spec, _: DORA.from_tensors(spec, tensors, 1.0)})
    weight = layer.weight
    change = 0.5 * (tensors["up"].flatten(1) @ tensors["down"].flatten(1)).reshape(weight.shape)
    axes = [axis for axis in range(weight.ndim) if axis != 1]
    lengths = (weight + change).square().sum(axes, keepdim=True).sqrt()
    wanted = (weight + change) * tensors["magnitude"] / lengths
    torch.testing.assert_close(
        model(x), model[0].spec.apply(x, wanted, layer.bias), atol=1e-4, rtol=1e-4
    )
    set_strengths(model, {"a": 0.25})
    apart = model(x)
    merge(model)
    torch.testing.assert_close(model(x), apart)
    torch.testing.assert_close(layer.weight, 0.75 * weight_of(layer, model) + 0.25 * wanted)
    unmerge(model)
    adapters.eject()
    assert torch.equal(model(x), before)


def weight_of(layer, model):
    """The frozen weight of a merged layer."""
    unmerge(model)
    weight = layer.weight.clone()
    merge(model)
    return weight


@pytest.mark.parametrize("shape", [(96,), (64, 1), (1, 96), (2, 64)])
def test_lengths_that_fit_neither_side_are_refused(shape):
    tensors = older(nn.Linear(64, 96)) | {"magnitude": torch.ones(shape)}
    with pytest.raises(UserError, match="'dora_scale' has shape"):
        DORA.from_tensors(LayerSpec((96, 64)), tensors, 1.0)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_a_single_output_or_input_leaves_no_doubt(shape):
    outputs, inputs = shape
    for lengths in {(outputs, 1), (1, inputs)}:
        tensors = {
            "down": torch.randn(2, inputs),
            "up": torch.randn(outputs, 2),
            "magnitude": torch.rand(lengths),
        }
        adapter = DORA.from_tensors(LayerSpec(shape), tensors, 2.0)
        assert adapter.magnitude.shape == lengths
        assert adapter.has_branch == (lengths == (outputs, 1))


@pytest.mark.parametrize("name", ["dora_loha", "dora_lokr"])
def test_over_other_types_it_is_read_and_drawn(case, name):
    model, x = case
    kind, inner = ADAPTERS[name], ADAPTERS[name.removeprefix("dora_")]
    below = inner(LayerSpec.of(model[0]), 2, 4.0)
    for parameter in below.parameters():
        nn.init.normal_(parameter, std=0.3)
    change = below.delta().detach()
    outputs = model[0].weight.shape[0]
    tensors = below.tensors() | {"magnitude": torch.rand(outputs, *[1] * (change.ndim - 1))}
    weight, bias = model[0].weight, model[0].bias
    assert kind.is_complete(tensors.keys())
    assert not inner.is_complete(tensors.keys())
    attach(model, "a", {"0": lambda spec, _: kind.from_tensors(spec, tensors, below.alpha)})
    lengths = (weight + change).flatten(1).norm(dim=1).view(tensors["magnitude"].shape)
    wanted = (weight + change) * tensors["magnitude"] / lengths
    torch.testing.assert_close(model(x), model[0].spec.apply(x, wanted, bias), atol=1e-4, rtol=1e-4)

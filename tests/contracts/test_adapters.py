"""What every adapter type must keep, on every kind of layer."""

import itertools
import random

import pytest
import torch
from torch import nn

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.adapters.blend import adapter_names, merge, set_strengths, unmerge
from scumble.adapters.inject import Target, eject, inject
from scumble.adapters.layer import AdaptedLayer
from scumble.errors import UserError

LAYERS = {
    "linear": (lambda: nn.Linear(12, 20), (3, 5, 12)),
    "conv3x3_stride2": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 9, 8)),
    "conv1x1": (lambda: nn.Conv2d(6, 10, 1, bias=False), (2, 6, 4, 4)),
    "conv_dilated": (lambda: nn.Conv2d(6, 4, 3, padding="same", dilation=2), (2, 6, 8, 8)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    """A model of one layer, and an input for it."""
    torch.manual_seed(0)
    build, shape = LAYERS[request.param]
    return nn.Sequential(build()).requires_grad_(False), torch.randn(shape)


@pytest.fixture(params=[name for name, kind in ADAPTERS.items() if kind.is_trainable])
def adapter_type(request):
    return ADAPTERS[request.param]


def put(model, adapter_type, name="a", *, rank=2, alpha=4.0, train=True):
    """Inject an adapter, and give it values that change something."""
    adapters = inject(model, name, adapter_type, [Target("0", rank, alpha)])
    if train:
        torch.manual_seed(len(name) + ord(name[0]))
        for parameter in adapters.parameters():
            nn.init.normal_(parameter, std=0.2)
    return adapters


def test_a_fresh_adapter_changes_nothing(case, adapter_type):
    model, x = case
    before = model(x)
    put(model, adapter_type, train=False)
    assert torch.equal(model(x), before)


def test_gradients_reach_the_adapter_alone(case, adapter_type):
    model, x = case
    base = model[0]
    adapters = put(model, adapter_type)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.parameters())
    assert all(p.grad is None for p in base.parameters())


def test_masters_are_fp32_over_a_half_layer(case, adapter_type):
    model, x = case
    model.bfloat16()
    adapters = put(model, adapter_type)
    y = model(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in adapters.parameters())
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in adapters.parameters())


def test_ejecting_puts_the_very_layer_back(case, adapter_type):
    model, x = case
    layer, before = model[0], model(x)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    adapters = put(model, adapter_type)
    assert isinstance(model[0], AdaptedLayer)
    assert not torch.equal(model(x), before)
    merge(model)
    adapters.eject()
    assert model[0] is layer
    assert torch.equal(model(x), before)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)


def test_merged_and_unmerged_outputs_agree(case, adapter_type):
    model, x = case
    put(model, adapter_type)
    put(model, adapter_type, "b")
    set_strengths(model, {"a": 0.7, "b": -0.4})
    apart = model(x)
    merge(model)
    torch.testing.assert_close(model(x), apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unmerging_restores_the_weight_bit_for_bit(case, adapter_type, dtype):
    model, _ = case
    model.to(dtype)
    weight = model[0].weight
    before = weight.clone()
    put(model, adapter_type)
    merge(model)
    assert not torch.equal(weight, before)
    unmerge(model)
    assert torch.equal(weight, before)


def test_merging_into_half_precision_rounds_once(case, adapter_type):
    model, _ = case
    model.bfloat16()
    adapters = put(model, adapter_type)
    wanted = model[0].base.weight.float()
    for adapter in adapters.adapters.values():
        wanted = wanted + adapter.delta(wanted)
    merge(model)
    assert torch.equal(model[0].base.weight, wanted.bfloat16())


def test_tensors_rebuild_the_adapter(case, adapter_type):
    model, x = case
    (adapter,) = put(model, adapter_type).adapters.values()
    with_it = model(x)
    twin = adapter_type.from_tensors(adapter.layer, adapter.tensors(), adapter.alpha)
    assert twin.rank == adapter.rank
    assert set(adapter.tensors()) <= set(adapter_type.file_names)
    assert adapter_type.is_complete(adapter.tensors().keys())
    eject(model)
    inject(model, "twin", adapter_type, [Target("0", 2, 4.0)])
    model[0].get("twin").copy_tensors(twin.tensors())
    assert torch.equal(model(x), with_it)


def test_a_tensor_of_another_shape_is_refused(case, adapter_type):
    model, _ = case
    (adapter,) = put(model, adapter_type).adapters.values()
    tensors = adapter.tensors()
    name = next(iter(tensors))
    with pytest.raises(UserError, match="shape"):
        adapter.copy_tensors(tensors | {name: torch.zeros(1, 2, 3)})
    with pytest.raises(UserError, match="missing"):
        adapter.copy_tensors({})


def test_strengths_scale_and_zero_turns_off(case, adapter_type):
    model, x = case
    before = model(x)
    put(model, adapter_type)
    set_strengths(model, {"a": 0.0})
    assert torch.equal(model(x), before)
    set_strengths(model, {"a": 1.0})
    change = model(x) - before
    set_strengths(model, {"a": -0.5})
    torch.testing.assert_close(model(x) - before, -0.5 * change, atol=1e-5, rtol=1e-4)


def test_two_adapters_add_up(case, adapter_type):
    model, x = case
    before = model(x)
    changes = []
    for name in ("a", "b"):
        put(model, adapter_type, name)
        changes.append(model(x) - before)
        eject(model, name)
    put(model, adapter_type, "a")
    put(model, adapter_type, "b")
    assert adapter_names(model) == ["a", "b"]
    torch.testing.assert_close(model(x) - before, sum(changes), atol=1e-5, rtol=1e-4)
    eject(model, "a")
    torch.testing.assert_close(model(x) - before, changes[1], atol=1e-5, rtol=1e-4)


def test_float64_gradients_of_both_ways(case, adapter_type):
    model, x = case
    (adapter,) = put(model, adapter_type).adapters.values()
    adapter.double()
    names, values = zip(*adapter.named_parameters(), strict=True)
    values = [value.detach().clone().requires_grad_() for value in values]
    x = x.double().requires_grad_()
    layer = model[0].base.double()

    def through(call):
        def run(x, *parameters):
            named = {f"adapter.{n}": p for n, p in zip(names, parameters, strict=True)}
            return torch.func.functional_call(Call(adapter, call), named, (x,))

        return run

    through_branch = through(lambda a, x: layer(x) + a.branch(x, layer(x), layer))
    through_delta = through(
        lambda a, x: a.layer.apply(x, layer.weight + a.delta(layer.weight), layer.bias)
    )
    if adapter.has_branch:
        assert torch.autograd.gradcheck(through_branch, (x, *values))
        torch.testing.assert_close(through_branch(x, *values), through_delta(x, *values))
    assert torch.autograd.gradcheck(through_delta, (x, *values))


class Call(nn.Module):
    """One way through an adapter as a module, so that its parameters can be swapped."""

    def __init__(self, adapter, call):
        super().__init__()
        self.adapter = adapter
        self.call = call

    def forward(self, x):
        return self.call(self.adapter, x)


def test_rank_dropout_is_seeded_and_keeps_the_mean(case):
    model, x = case
    adapters = put(model, ADAPTERS["lora"], rank=8)
    (adapter,) = adapters.adapters.values()
    whole = adapter.delta()
    deltas = []
    for seed in range(400):
        adapters.drop_ranks(0.25, torch.Generator().manual_seed(seed))
        deltas.append(adapter.delta())
    assert (torch.stack(deltas).mean(0) - whole).norm() < 0.1 * whole.norm()
    adapters.drop_ranks(0.25, torch.Generator().manual_seed(0))
    assert torch.equal(adapter.delta(), deltas[0])
    assert all(f == 0 or f == pytest.approx(4 / 3) for f in adapter.rank_mask.tolist())
    branch = adapter.branch(x, model[0].base(x), model[0].base)
    torch.testing.assert_close(branch, adapter.layer.apply(x, deltas[0]), atol=1e-5, rtol=1e-4)


def test_a_merged_model_is_saved_as_an_ordinary_one(case, adapter_type):
    model, x = case
    names = list(model.state_dict())
    put(model, adapter_type)
    assert list(model.state_dict()) == names
    merge(model)
    with_it, state = model(x), {k: t.clone() for k, t in model.state_dict().items()}
    unmerge(model)
    eject(model)
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), with_it)


def test_weights_load_into_an_adapted_model(case, adapter_type):
    model, _ = case
    adapters = put(model, adapter_type)
    values = [p.clone() for p in adapters.parameters()]
    state = {key: torch.randn_like(tensor) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(model[0].base.weight, state["0.weight"])
    assert all(torch.equal(p, v) for p, v in zip(adapters.parameters(), values, strict=True))


@pytest.mark.parametrize("name", ADAPTERS)
def test_tensors_of_any_shape_fit_or_are_refused(name):
    """A damaged file is one clear error, whatever it holds."""
    kind = ADAPTERS[name]
    draw = random.Random(name)
    forms = [
        names
        for count in range(1, len(kind.file_names) + 1)
        for names in itertools.combinations(kind.file_names, count)
        if kind.is_complete(set(names))
    ]
    for _ in range(300):
        layer = LayerSpec(draw.choice([(4, 6), (4, 6, 3, 3), (6,)]), has_bias=draw.random() < 0.5)
        shapes = {
            n: draw.choices((0, 1, 2, 3, 4, 6), k=draw.randint(0, 4)) for n in draw.choice(forms)
        }
        tensors = {n: torch.ones(shape) for n, shape in shapes.items()}
        try:
            adapter = kind.from_tensors(layer, tensors, 1.0)
        except UserError:
            continue
        assert adapter.delta(torch.ones(layer.weight_shape)).shape == layer.weight_shape

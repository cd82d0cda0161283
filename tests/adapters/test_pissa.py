"""PiSSA: it starts from the weight's largest parts, and nothing of the base is touched."""

import pytest
import torch
from torch import nn

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.adapters.blend import merge
from scumble.adapters.inject import Target, inject
from scumble.adapters.pissa import PiSSA
from scumble.errors import UserError

LAYERS = {
    "linear": (lambda: nn.Linear(24, 32), (4, 24)),
    "conv": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 6, 6)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    torch.manual_seed(0)
    build, shape = LAYERS[request.param]
    return nn.Sequential(build()).requires_grad_(False), torch.randn(shape)


def put(model, **options):
    (adapter,) = inject(model, "a", PiSSA, [Target("0", 4, 6)], **options).adapters.values()
    return adapter


def move(adapter):
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_one_changes_no_bit(case, dtype):
    model, x = case
    model, x = model.to(dtype), x.to(dtype)
    before, weight = model(x), model[0].weight.clone()
    adapter = put(model)
    assert torch.equal(model(x), before)
    assert torch.equal(model[0].weight, weight)
    assert not adapter.delta().any()


def test_the_start_is_the_best_product_of_its_rank(case):
    model, _ = case
    adapter = put(model)
    weight = model[0].base.weight.flatten(1)
    start = adapter.scale * (adapter.up.flatten(1) @ adapter.down.flatten(1))
    rest = torch.linalg.svdvals(weight)[4:]
    assert (weight - start).norm().item() == pytest.approx(rest.norm().item(), rel=1e-5)
    norms = adapter.up.flatten(1).norm(dim=0), adapter.down.flatten(1).norm(dim=1)
    torch.testing.assert_close(*norms)


def test_both_factors_learn_from_the_first_step(case):
    model, x = case
    adapter = put(model)
    model(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_the_change_is_the_difference_to_the_start(case):
    model, x = case
    adapter = put(model)
    start = (adapter.up.flatten(1) @ adapter.down.flatten(1)).detach()
    move(adapter)
    wanted = adapter.scale * (adapter.up.flatten(1) @ adapter.down.flatten(1) - start)
    torch.testing.assert_close(adapter.delta().flatten(1), wanted, atol=1e-5, rtol=1e-4)
    apart = model(x)
    merge(model)
    torch.testing.assert_close(model(x), apart, atol=1e-5, rtol=1e-5)


def test_files_hold_a_lora_of_twice_the_rank(case):
    model, _ = case
    adapter = put(model)
    move(adapter)
    tensors = adapter.tensors()
    plain = ADAPTERS["lora"].from_tensors(adapter.layer, tensors, adapter.file_alpha)
    assert plain.rank == 2 * adapter.rank
    assert plain.scale == adapter.scale
    torch.testing.assert_close(plain.delta(), adapter.delta())


def test_ranks_are_dropped_with_their_start(case):
    model, _ = case
    adapters = inject(model, "a", PiSSA, [Target("0", 4, 4)])
    (adapter,) = adapters.adapters.values()
    move(adapter)
    whole = adapter.delta()
    adapters.drop_ranks(0.5, torch.Generator().manual_seed(0))
    kept = adapter.rank_mask > 0
    assert 0 < kept.sum() < 4
    adapter.up.data[:, ~kept] = 1e3
    adapter.up_0[:, ~kept] = 1e3
    assert adapter.delta().abs().max() < 100
    assert not torch.allclose(adapter.delta(), whole)


def test_it_starts_alike_from_the_same_weight_and_seed(case):
    model, _ = case
    first = put(model).tensors()
    adapter = inject(model, "again", PiSSA, [Target("0", 4, 6)]).adapters["0"]
    assert all(torch.equal(first[name], tensor) for name, tensor in adapter.tensors().items())


def test_a_rank_beyond_the_layer_is_refused():
    with pytest.raises(UserError, match="0: the layer has only 3 singular values"):
        inject(nn.Sequential(nn.Linear(3, 8)), "a", PiSSA, [Target("0", 4, 4)])
    PiSSA(LayerSpec((8, 3)), 3, 3.0).initialise("", torch.Generator(), torch.randn(8, 3))

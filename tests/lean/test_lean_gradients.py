"""A lean denoiser's output and gradients against autograd's of the same model as it was."""

import pytest
import torch
from lean_steps import (
    DEFAULT,
    EVERYWHERE,
    UNETS,
    adapt,
    apart,
    assert_near,
    each_level,
    inputs,
    lean,
    run,
)

from scumble.adapters.base import Adapter
from scumble.adapters.blend import merge, set_strengths, unmerge
from scumble.adapters.layer import AdaptedLayer

UNET = pytest.mark.parametrize("kind", UNETS)
TARGETS = {
    "default": DEFAULT,
    "everywhere": EVERYWHERE,
    "keys": ("to_k",),
    "some": ("attn1.to_q", "mid_block.*.to_out.0", "up_blocks.*.ff.net.2"),
    "convolutions": ("conv2", "conv_shortcut"),
}


def short(unet, dtype):
    """The frozen base in another dtype; the adapters' masters stay fp32."""
    for module in unet.modules():
        if not isinstance(module, Adapter):
            module._apply(lambda t: t.to(dtype), recurse=False)
    return unet


@UNET
@pytest.mark.parametrize("targets", TARGETS)
def test_a_step_equals_autograd(tiny_unet, kind, targets):
    unet = tiny_unet(**UNETS[kind])
    adapt(unet, TARGETS[targets])
    plain = run(unet)
    for _ in each_level(unet):
        assert_near(run(unet), plain)


@pytest.mark.parametrize("size", [(9, 7), (16, 20)], ids=str)
def test_maps_of_every_size(tiny_unet, size):
    unet = tiny_unet(**UNETS["like SD 2.x"])
    adapt(unet)
    plain = run(unet, size)
    for _ in each_level(unet):
        assert_near(run(unet, size), plain)


def test_the_built_in_base(tiny_pipeline):
    unet = tiny_pipeline.unet.requires_grad_(False)
    adapt(unet)
    plain = run(unet, (16, 16))
    exact = run(unet.double(), (16, 16))
    for _ in each_level(unet.float()):
        # The noisy input is the far end of many layers: plain steps are 1e-5 from exact ones.
        assert_near(run(unet, (16, 16)), plain, 5e-6, 4e-5)
    for _ in each_level(unet.double()):
        assert_near(run(unet, (16, 16)), exact)


@UNET
def test_float64_leaves_no_difference(tiny_unet, kind):
    unet = tiny_unet(**UNETS[kind])
    adapt(unet, EVERYWHERE)
    unet.double()
    plain = run(unet, (9, 7))
    for _ in each_level(unet):
        assert_near(run(unet, (9, 7)), plain)


@pytest.mark.parametrize("targets", ["default", "everywhere"])
def test_bf16_is_no_worse_than_it_was(tiny_unet, targets):
    unet = tiny_unet(**UNETS["like SD 2.x"])
    adapt(unet, TARGETS[targets])
    exact = run(unet)
    plain = run(short(unet, torch.bfloat16))
    for _ in each_level(unet):
        ours = run(unet)
        assert ours.output.dtype == torch.bfloat16
        assert ours.learnt.dtype == torch.float32
        for our, their, truth in zip(ours, plain, exact, strict=True):
            assert apart(our, truth) < 1.5 * apart(their, truth)


def test_two_adapters_of_different_strengths(tiny_unet):
    unet = tiny_unet()
    adapt(unet, EVERYWHERE, "first")
    adapt(unet, ("to_q", "to_v", "ff.net.2"), "second", rank=3, alpha=5)
    for strengths in ({}, {"first": 0.5, "second": -2.0}):
        set_strengths(unet, strengths)
        plain = run(unet)
        for _ in each_level(unet):
            assert_near(run(unet), plain)


def test_an_adapter_switched_off_gets_no_gradient(tiny_unet):
    unet = tiny_unet()
    adapt(unet, DEFAULT, "on")
    off = adapt(unet, DEFAULT, "off")
    set_strengths(unet, {"off": 0})
    for parameter in off.parameters():
        parameter.requires_grad_(False)
    plain = run(unet)
    for _ in each_level(unet):
        assert_near(run(unet), plain)
    for parameter in off.parameters():
        parameter.requires_grad_(True)
    with lean(unet):
        unet(**inputs(unet)).sample.sum().backward()
    assert all(p.grad is None for p in off.parameters())


def test_merged(tiny_unet):
    unet = tiny_unet()
    adapters = adapt(unet)
    for parameter in adapters.parameters():
        parameter.requires_grad_(False)
    before = run(unet)
    merge(unet)
    plain = run(unet)
    for _ in each_level(unet):
        assert_near(run(unet), plain)
        unmerge(unet)
        assert_near(run(unet), before)
        merge(unet)
    assert torch.equal(run(unet).output, plain.output)


def test_rank_dropout(tiny_unet):
    unet = tiny_unet()
    adapters = adapt(unet, EVERYWHERE)
    full = run(unet)
    adapters.drop_ranks(0.5, torch.Generator().manual_seed(1))
    plain = run(unet)
    assert apart(plain.output, full.output) > 1e-3
    for _ in each_level(unet):
        assert_near(run(unet), plain)


def test_input_dropout_is_drawn_as_it_was(tiny_unet):
    unet = tiny_unet()
    adapters = adapt(unet)
    full = run(unet)
    adapters.drop_inputs(0.5)
    torch.manual_seed(5)
    plain = run(unet)
    assert apart(plain.output, full.output) > 1e-3
    for _ in each_level(unet):
        torch.manual_seed(5)
        assert_near(run(unet), plain)


def test_an_adapter_that_is_no_product_of_thin_matrices(tiny_unet):
    unet = tiny_unet()
    adapt(unet, ("to_k", "ff.net.0.proj"))
    plain = run(unet)
    for layer in unet.modules():
        if isinstance(layer, AdaptedLayer):
            layer.get("a").thin = lambda: None
    for _ in each_level(unet):
        assert_near(run(unet), plain)


def test_without_adapters_only_the_inputs_get_gradients(tiny_unet):
    unet = tiny_unet()
    plain = run(unet)
    for _ in each_level(unet):
        assert_near(run(unet), plain)


@pytest.mark.parametrize("what", ["sample", "encoder_hidden_states"])
def test_inputs_that_need_no_gradient_get_none(tiny_unet, what):
    unet = tiny_unet()
    adapt(unet)
    with lean(unet):
        given = inputs(unet)
        given[what] = given[what].detach()
        unet(**given).sample.square().mean().backward()
        assert given[what].grad is None
        assert all(p.grad is not None for p in unet.parameters() if p.requires_grad)

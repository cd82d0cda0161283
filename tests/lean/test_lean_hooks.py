"""Whoever hooks into a denoiser gets, while it is lean, what he always gets."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from lean_steps import DEFAULT, EVERYWHERE, adapt, apart, assert_near, draw, inputs, lean, run
from torch import nn

from scumble.lean.attention import LeanAttention
from scumble.lean.levels import LEVELS

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


class MapRecorder:
    """Attention as Prompt-to-Prompt computes it: with the maps in hand."""

    def __init__(self, maps, name):
        self.maps, self.name = maps, name

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        assert attention_mask is None
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(part)
            for part in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        weights = attn.get_attention_scores(q, k)
        self.maps[self.name] = weights.detach(), hidden_states.detach()
        mixed = attn.batch_to_head_dim(torch.bmm(weights, v))
        return attn.to_out[1](attn.to_out[0](mixed))


def record_maps(unet):
    maps = {}
    unet.set_attn_processor({name: MapRecorder(maps, name) for name in unet.attn_processors})
    return maps


def test_a_processor_that_records_maps(tiny_unet):
    unet = tiny_unet().double()
    adapt(unet)
    usual = run(unet)
    own = unet.attn_processors
    theirs = record_maps(unet)
    plain = run(unet)
    unet.set_attn_processor(dict(own))
    with lean(unet):
        before = unet.attn_processors
        assert all(isinstance(p, LeanAttention) for p in before.values())
        ours = record_maps(unet)
        assert_near(run(unet), plain)
        assert list(ours) == list(theirs)
        for name, tensors in theirs.items():
            for our, their in zip(ours[name], tensors, strict=True):
                torch.testing.assert_close(our, their, **CLOSE)
        unet.set_attn_processor(dict(before))
        assert_near(run(unet), usual)
    assert [id(p) for p in unet.attn_processors.values()] == [id(p) for p in own.values()]


def test_a_processor_set_meanwhile_stays_when_lean_is_taken_off(tiny_unet):
    unet = tiny_unet().double()
    mine = AttnProcessor()
    with lean(unet):
        unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(mine)
        ours = draw(unet)
    kinds = [type(p) for p in unet.attn_processors.values()]
    assert kinds.count(AttnProcessor) == 1
    assert kinds.count(AttnProcessor2_0) == len(kinds) - 1
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor is mine
    torch.testing.assert_close(ours, draw(unet), **CLOSE)


def test_copies_of_the_processors_do_the_same(tiny_unet):
    unet = tiny_unet().double()
    with lean(unet):
        plain = draw(unet)
        unet.set_attn_processor(copy.deepcopy(unet.attn_processors))
        assert torch.equal(draw(unet), plain)


def test_slicing_and_fused_projections(tiny_unet):
    unet = tiny_unet().double()
    plain = draw(unet)
    with lean(unet):
        unet.fuse_qkv_projections()
        torch.testing.assert_close(draw(unet), plain, **CLOSE)
        unet.unfuse_qkv_projections()
        assert all(isinstance(p, LeanAttention) for p in unet.attn_processors.values())
        torch.testing.assert_close(draw(unet), plain, **CLOSE)
        unet.set_attention_slice("max")
        assert not any(isinstance(p, LeanAttention) for p in unet.attn_processors.values())
        torch.testing.assert_close(draw(unet), plain, **CLOSE)
    torch.testing.assert_close(draw(unet), plain, **CLOSE)


HOOKED = (
    *("attn1", "attn2", "to_q", "attn2.to_k", "attn1.to_v", "to_out", "to_out.0", "to_out.1"),
    *("ff", "ff.net.0", "ff.net.0.proj", "ff.net.1", "ff.net.2", "proj_in", "time_emb_proj"),
    *("norm", "norm1", "norm2", "norm3", "nonlinearity", "conv1", "conv_shortcut", "conv_in"),
    *("transformer_blocks.0", "attentions.0", "resnets.0", "up_blocks.0", "up_blocks.1"),
    *("conv_norm_out", "conv_act", "time_embedding", "upsamplers.0", "mid_block"),
)


def outputs_heard(unet, path):
    """What forward hooks on every module of that name are handed, with the gradients back."""
    heard, handles = [], []
    for name, module in unet.named_modules():
        if name == path or name.endswith(f".{path}"):
            handles.append(
                module.register_forward_hook(lambda _m, given, out: heard.append((given, out)))
            )
    run(unet)
    for handle in handles:
        handle.remove()
    leaves = torch.utils._pytree.tree_leaves(heard)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def test_forward_hooks_hear_what_they_heard(tiny_unet):
    unet = tiny_unet().double()
    adapt(unet)
    for path in HOOKED:
        theirs = outputs_heard(unet, path)
        with lean(unet):
            ours = outputs_heard(unet, path)
        assert len(ours) == len(theirs), path
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their, **CLOSE, msg=lambda m, p=path: f"{p}: {m}")


@pytest.mark.parametrize("path", ["attn2", "norm1", "resnets.0", "ff", "to_k", "conv_shortcut"])
def test_pre_hooks_may_change_inputs(tiny_unet, path):
    unet = tiny_unet().double()
    adapt(unet)
    usual = draw(unet)
    for name, module in unet.named_modules():
        if name.endswith(f".{path}"):
            module.register_forward_pre_hook(
                lambda _m, given: (given[0] + given[0].square(), *given[1:])
            )
    plain = run(unet)
    assert apart(plain.output, usual) > 1e-4
    with lean(unet):
        assert_near(run(unet), plain)


@pytest.mark.parametrize("path", ["attn2", "norm2", "resnets.0", "ff", "to_v", "conv1", "conv_act"])
@pytest.mark.parametrize("when", ["before", "while on"])
def test_a_forward_that_somebody_replaced(tiny_unet, path, when):
    unet = tiny_unet().double()
    usual = draw(unet)

    def replace():
        for name, module in unet.named_modules():
            if name == path or name.endswith(f".{path}"):
                own = module.forward
                module.forward = lambda x, *args, own=own, **more: own(x, *args, **more) * 1.5

    if when == "before":
        replace()
    plain = draw(unet)
    with lean(unet):
        if when == "while on":
            replace()
        ours = draw(unet)
        replaced = {name: m.forward for name, m in unet.named_modules() if "forward" in vars(m)}
    assert apart(ours, usual) > 1e-3
    torch.testing.assert_close(draw(unet), ours, **CLOSE)
    if when == "before":
        torch.testing.assert_close(ours, plain, **CLOSE)
    left = [name for name, module in unet.named_modules() if "forward" in vars(module)]
    assert left == [name for name in replaced if name == path or name.endswith(f".{path}")]


MASK = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
OPTIONS = {
    "scale": {"cross_attention_kwargs": {"scale": 0.5}},
    "an empty dictionary": {"cross_attention_kwargs": {}},
    "unknown": {"cross_attention_kwargs": {"something": 1}},
    "a mask of the text": {"encoder_attention_mask": MASK},
    "residuals of a ControlNet": {
        "down_block_additional_residuals": tuple(
            torch.ones(2, channels, edge, edge, dtype=torch.float64)
            for channels, edge in ((8, 8), (8, 8), (8, 4), (16, 4))
        ),
        "mid_block_additional_residual": torch.ones(2, 16, 4, 4, dtype=torch.float64),
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_a_call(tiny_unet, option):
    unet = tiny_unet().double()
    adapt(unet)
    plain = run(unet, **OPTIONS[option])
    if option not in ("scale", "an empty dictionary", "unknown"):
        assert apart(plain.output, run(unet).output) > 1e-3
    with lean(unet):
        assert_near(run(unet, **OPTIONS[option]), plain)


def test_residuals_within_the_blocks(tiny_unet):
    unet = tiny_unet().double()
    adapt(unet)

    def residuals():
        shapes = ((2, 8, 8, 8), (2, 16, 4, 4))
        ones = [torch.ones(*shape, dtype=torch.float64) for shape in shapes]
        return {"down_intrablock_additional_residuals": ones}

    plain = run(unet, **residuals())
    with lean(unet):
        assert_near(run(unet, **residuals()), plain)


@pytest.mark.parametrize("level", LEVELS)
def test_free_u(tiny_unet, level):
    unet = tiny_unet().double()
    adapt(unet)
    usual = run(unet)
    with lean(unet, level):
        unet.enable_freeu(0.9, 0.2, 1.5, 1.6)
        ours = run(unet)
        unet.disable_freeu()
        assert_near(run(unet), usual)
    unet.enable_freeu(0.9, 0.2, 1.5, 1.6)
    assert apart(ours.output, usual.output) > 1e-3
    assert_near(ours, run(unet))


@pytest.mark.parametrize("level", LEVELS)
def test_gradient_checkpointing(tiny_unet, level):
    unet = tiny_unet().double()
    adapt(unet, EVERYWHERE)
    plain = run(unet)
    with lean(unet, level):
        unet.enable_gradient_checkpointing()
        unet.train()
        assert_near(run(unet), plain)
        unet.disable_gradient_checkpointing()
        assert_near(run(unet), plain)


def test_autocast_computes_as_it_did(tiny_unet):
    unet = tiny_unet()
    adapt(unet, DEFAULT)

    def step():
        given = inputs(unet)
        with torch.autocast("cpu", torch.bfloat16):
            output = unet(**given).sample
        output.float().square().mean().backward()
        return output.detach(), given["sample"].grad

    plain = step()
    with lean(unet):
        output, grad = step()
    assert torch.equal(output, plain[0])
    assert apart(grad, plain[1]) < 1e-2  # convolutions round differently in another layout


def test_a_chunked_feed_forward(tiny_unet):
    unet = tiny_unet().double()
    plain = draw(unet)
    with lean(unet):
        for module in unet.modules():
            if hasattr(module, "set_chunk_feed_forward"):
                module.set_chunk_feed_forward(1, 0)
        torch.testing.assert_close(draw(unet), plain, **CLOSE)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(tiny_unet, context):
    unet = tiny_unet().double()
    adapt(unet)
    plain = run(unet)
    with lean(unet):
        with context():
            output = unet(**inputs(unet, dtype=unet.dtype)).sample
        assert output.grad_fn is None
        torch.testing.assert_close(output, plain.output, **CLOSE)
        assert_near(run(unet), plain)
    assert isinstance(unet.conv_in, nn.Conv2d)

"""What lean does not know or may not take for frozen is left alone: slower, never wrong."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from lean_steps import DEFAULT, adapt, apart, assert_near, draw, each_level, inputs, lean, run
from torch import nn

from scumble.lean.install import put_on
from scumble.lean.levels import LEVELS

LEVEL = pytest.mark.parametrize("level", ["balanced", "lowest"])

UNKNOWN = {
    "attention in an up block": (
        {"up_block_types": ("AttnUpBlock2D", "CrossAttnUpBlock2D")},
        {"AttnUpBlock2D": 1, "Attention": 2},
    ),
    "attention in a down block": (
        {"down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D")},
        {"Attention": 1},
    ),
    "resnets that change the size": (
        {
            "down_block_types": ("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"),
        },
        {"ResnetBlock2D": 2, "ResnetUpsampleBlock2D": 1},
    ),
    "simple cross-attention": (
        {
            "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        },
        {"Attention": 4, "ResnetBlock2D": 1, "SimpleCrossAttnUpBlock2D": 1},
    ),
    "cross-attention alone": ({"only_cross_attention": True}, {"BasicTransformerBlock": 3}),
    "scale and shift": (
        {"resnet_time_scale_shift": "scale_shift"},
        {"ResnetBlock2D": 8, "UpBlock2D": 1, "CrossAttnUpBlock2D": 1},
    ),
    "another activation": (
        {"act_fn": "gelu"},
        {"ResnetBlock2D": 8, "UpBlock2D": 1, "CrossAttnUpBlock2D": 1},
    ),
    "upcast attention": ({"upcast_attention": True}, {}),
    "dropout in the resnets": (
        {"dropout": 0.2},
        {"ResnetBlock2D": 8, "UpBlock2D": 1, "CrossAttnUpBlock2D": 1},
    ),
    "no middle": ({"mid_block_type": None}, {}),
    "a middle without text": ({"mid_block_type": "UNetMidBlock2D"}, {}),
    "scaled outputs": ({"resnet_out_scale_factor": 1.4, "mid_block_scale_factor": 1.4}, {}),
    "time embedded without activation": ({"resnet_skip_time_act": True}, {}),
    "every step like the last": ({"time_embedding_act_fn": "silu"}, {}),
}


@LEVEL
@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_blocks_are_left_alone_and_counted(tiny_unet, case, level):
    options, left_alone = UNKNOWN[case]
    unet = tiny_unet(**options).double()
    adapt(unet, ("to_q", "to_k", "to_v"))
    plain = run(unet)
    with lean(unet, level) as model:
        assert dict(model.left_alone) == left_alone
        assert_near(run(unet), plain)


def test_what_is_known_is_all_lean(tiny_unet, tiny_pipeline):
    for unet in (tiny_unet().double(), tiny_pipeline.unet.requires_grad_(False)):
        for targets in (None, (*DEFAULT, "conv1", "proj_in")):
            if targets:
                adapt(unet, targets)
            with lean(unet) as model:
                assert not model.left_alone


def test_dropout_is_not_lost(tiny_unet):
    unet = tiny_unet(dropout=0.3).train()
    with lean(unet):
        first, second = draw(unet), draw(unet)
        unet.eval()
        assert torch.equal(draw(unet), draw(unet))
    assert apart(first, second) > 1e-3


def test_self_attention_twice(tiny_unet):
    """A block whose second attention asks itself, when no text is given."""
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(0)
    block = BasicTransformerBlock(8, 2, 4, double_self_attention=True).requires_grad_(False)
    h = torch.randn(2, 5, 8, requires_grad=True)
    holder = nn.ModuleList([block])
    plain = block(h)
    (expected,) = torch.autograd.grad(plain.square().sum(), h)
    for level in LEVELS:
        with lean(holder, level) as model:
            assert not model.left_alone
            ours = block(h)
            torch.testing.assert_close(ours, plain)
            (found,) = torch.autograd.grad(ours.square().sum(), h)
            torch.testing.assert_close(found, expected)


BASE = (
    *("norm1.weight", "norm2.bias", "norm3.weight", "norm.bias", "conv_norm_out.weight"),
    *("conv1.weight", "conv2.bias", "conv_shortcut.weight", "conv_in.weight", "conv_out.bias"),
    *("time_emb_proj.weight", "linear_1.bias", "proj_in.weight", "proj_out.bias"),
    *("to_q.weight", "attn1.to_k.weight", "attn2.to_v.weight", "to_out.0.bias"),
    *("ff.net.0.proj.bias", "ff.net.0.proj.weight", "ff.net.2.bias", "downsamplers.0.conv.bias"),
    "",
)
"""Ends of the names of weights that learn; "" is all of them."""


def learning(parameters, is_on=True):
    for parameter in parameters:
        parameter.requires_grad_(is_on)


@LEVEL
def test_weights_of_the_base_that_learn_get_their_gradients(tiny_unet, level):
    unet = tiny_unet().double()
    adapt(unet, ("attn1.to_q", "attn2.to_k", "down_blocks.*.to_out.0", "ff.net.2", "conv1"))
    names = {f".{name}".replace(".base.", "."): p for name, p in unet.named_parameters()}
    for end in BASE:
        chosen = [p for name, p in names.items() if name.endswith(end) and not p.requires_grad]
        assert chosen, end
        learning(chosen)
        plain = run(unet)
        with lean(unet, level):
            assert_near(run(unet), plain)
        learning(chosen, is_on=False)
        with lean(unet, level):
            learning(chosen)  # where the lean forwards are on already
            assert_near(run(unet), plain)
            learning(chosen, is_on=False)


def test_a_trainable_denoiser_keeps_its_layouts(tiny_unet):
    unet = tiny_unet().requires_grad_(True)
    model = put_on(unet, LEVELS["lowest"])
    assert model.left_alone["Conv2d"]
    for parameter in unet.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert parameter.is_contiguous()


def test_a_bias_on_one_of_several_stacked_layers(tiny_unet):
    unet = tiny_unet().double()
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attn.to_q = nn.Linear(16, 16).double().requires_grad_(False)
    adapt(unet)
    plain = run(unet)
    for _ in each_level(unet):
        assert_near(run(unet), plain)


def test_a_second_derivative_is_refused_in_plain_words(tiny_unet):
    unet = tiny_unet().double()
    with lean(unet):
        given = inputs(unet, dtype=unet.dtype)
        loss = unet(**given).sample.square().mean()
        (grad,) = torch.autograd.grad(loss, given["sample"], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.square().sum().backward()


def test_a_processor_that_upcasts_is_left_alone(tiny_unet):
    unet = tiny_unet(upcast_attention=True).double()
    unet.set_attn_processor(AttnProcessor())
    adapt(unet, ("to_q", "to_k", "to_v"))
    plain = run(unet)
    with lean(unet, "lowest") as model:
        assert model.left_alone["Attention"] == 8
        assert_near(run(unet), plain)

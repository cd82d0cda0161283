"""Lean forwards of diffusers' blocks, each with the conditions under which it says the same.

Every forward takes the block and the block's own forward first, and hands over to that one where
something unusual is asked for: slower, never wrong.

Shape suffixes: B batch, C channels, H height, W width, T tokens.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.kernels.conv import FrozenConv2d, convolution
from scumble.kernels.geglu import feed_forward
from scumble.kernels.norms import ConcatenatedGroupNorm, GroupNorm
from scumble.lean.attention import LeanAttention
from scumble.lean.factors import norm_of, read
from scumble.lean.forwards import Forward, LeanForward, is_frozen, is_listened_to, may_pass_over
from scumble.lean.levels import Level


def fits_conv(conv: Any) -> bool:
    """A frozen convolution without groups, padded with zeros of a given number."""
    return (
        type(conv) is nn.Conv2d
        and is_frozen(conv)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def conv_forward(conv: Any, plain: Forward, x_BCHW: Tensor) -> Tensor:
    """A frozen convolution that keeps no input."""
    if not is_frozen(conv):
        return cast(Tensor, plain(x_BCHW))
    return convolution(x_BCHW, frozen_conv(conv))


def frozen_conv(conv: Any) -> FrozenConv2d:
    """A Conv2d as its numbers."""
    return FrozenConv2d(conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def fits_resnet(block: Any) -> bool:
    """A ResnetBlock2D as Stable Diffusion has it."""
    return (
        type(block.nonlinearity) is nn.SiLU
        and type(block.norm1) is type(block.norm2) is nn.GroupNorm
        and may_pass_over(block.norm1, block.norm2, block.nonlinearity)
        and block.time_embedding_norm == "default"
        and block.upsample is None
        and block.downsample is None
        and block.dropout.p == 0
    )


def resnet_forward(
    block: Any,
    plain: Forward,
    x_BCHW: Tensor,
    temb: Tensor | None,
    *others: Any,
    skip: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """Both norms with their activations in one, and no copy of what a skip connection adds.

    Args:
        block: the ResnetBlock2D.
        plain: its own forward.
        x_BCHW: its input.
        temb: the embedded timestep.
        others: what diffusers deprecates.
        skip: to be laid behind the channels of `x_BCHW`.
        more: what diffusers deprecates.
    """
    fits = may_pass_over(block.norm1, block.norm2, block.nonlinearity) and not (others or more)
    if fits and skip is not None and _may_pass_over_shortcut(block.conv_shortcut):
        h, shortcut = _concatenated(block, x_BCHW, skip)
    else:
        x_BCHW = x_BCHW if skip is None else torch.cat([x_BCHW, skip], 1)
        if not fits:
            return cast(Tensor, plain(x_BCHW, temb, *others, **more))
        h = group_norm(block.norm1, x_BCHW, silu=True)
        shortcut = x_BCHW if block.conv_shortcut is None else block.conv_shortcut(x_BCHW)
    h = block.conv1(h)
    if block.time_emb_proj is not None:
        temb = temb if block.skip_time_act else nn.functional.silu(cast(Tensor, temb))
        temb = block.time_emb_proj(temb)[:, :, None, None]
    if temb is not None:
        h = h + temb
    h = block.conv2(group_norm(block.norm2, h, silu=True)) + shortcut
    return h if block.output_scale_factor == 1 else cast(Tensor, h / block.output_scale_factor)


def _may_pass_over_shortcut(conv: Any) -> bool:
    return fits_conv(conv) and not is_listened_to(conv)


def _concatenated(block: Any, x_BCHW: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    norm, conv = block.norm1, frozen_conv(block.conv_shortcut)
    result: tuple[Tensor, Tensor] = ConcatenatedGroupNorm.apply(
        x_BCHW, skip, norm.weight, norm.bias, norm.num_groups, norm.eps, conv
    )
    return result


def group_norm(norm: Any, x_BCHW: Tensor, *, silu: bool) -> Tensor:
    """A frozen GroupNorm, with SiLU behind it if wanted."""
    settings = norm.num_groups, norm.eps, silu
    result: Tensor = GroupNorm.apply(x_BCHW, norm.weight, norm.bias, *settings)
    return result


def fits_norm(norm: Any) -> bool:
    """A frozen GroupNorm with a scale and shift per channel."""
    return type(norm) is nn.GroupNorm and norm.affine and is_frozen(norm)


def norm_forward(norm: Any, plain: Forward, x_BCHW: Tensor) -> Tensor:
    """A frozen GroupNorm on its own."""
    return group_norm(norm, x_BCHW, silu=False) if is_frozen(norm) else cast(Tensor, plain(x_BCHW))


def last_norm_forward(norm: Any, plain: Forward, model: Any, x_BCHW: Tensor) -> Tensor:
    """The denoiser's last norm, with the activation behind it."""
    if not _ends_in_one(model):
        return norm_forward(norm, plain, x_BCHW)
    return group_norm(norm, x_BCHW, silu=True)


def last_activation_forward(activation: Any, plain: Forward, model: Any, x: Tensor) -> Tensor:  # noqa: ARG001
    """The activation, unless `last_norm_forward` has already applied it."""
    return x if _ends_in_one(model) else cast(Tensor, plain(x))


def _ends_in_one(model: Any) -> bool:
    """Whether last norm and activation are one at present: nothing has taken the norm's place."""
    norm = model.conv_norm_out
    return isinstance(norm.forward, LeanForward) and may_pass_over(norm, model.conv_act)


def fits_transformer(block: Any) -> bool:
    """A BasicTransformerBlock with plain norms and a GEGLU."""
    norms = [block.norm1, block.norm3] + ([block.norm2] if block.attn2 is not None else [])
    return (
        block.norm_type == "layer_norm"
        and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
        and may_pass_over(*norms)
        and block.pos_embed is None
        and not block.only_cross_attention
        and type(block.ff.net[0]).__name__ == "GEGLU"
        and all(m.p == 0 for m in block.modules() if isinstance(m, nn.Dropout))
    )


def transformer_forward(
    block: Any,
    plain: Forward,
    level: Level,
    h_BTC: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    timestep: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    class_labels: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
) -> Tensor:
    """Each norm together with what follows it, so that the normed copy is never kept."""
    if attention_mask is not None or cross_attention_kwargs or block._chunk_size is not None:
        return cast(
            Tensor,
            plain(
                h_BTC,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,
                cross_attention_kwargs,
                class_labels,
                added_cond_kwargs,
            ),
        )
    h_BTC = h_BTC + _attend(block.attn1, block.norm1, h_BTC, None, None)
    if block.attn2 is not None:
        mask = encoder_attention_mask
        h_BTC = h_BTC + _attend(block.attn2, block.norm2, h_BTC, encoder_hidden_states, mask)
    geglu, dropout, last, *others = block.ff.net
    if may_pass_over(block.norm3, block.ff, geglu, dropout, *others):
        inner = read([geglu.proj], h_BTC.dtype)
        outer = read([last], h_BTC.dtype)
        if inner is not None and outer is not None:
            recompute = level.recompute_feed_forward
            norm = norm_of(block.norm3)
            return h_BTC + feed_forward(h_BTC, norm, inner, outer, recompute=recompute)
    return h_BTC + cast(Tensor, block.ff(block.norm3(h_BTC)))


def _attend(
    attn: Any, norm: nn.Module, h_BTC: Tensor, context: Tensor | None, mask: Tensor | None
) -> Tensor:
    processor = attn.processor
    if isinstance(processor, LeanAttention) and mask is None and may_pass_over(attn, norm):
        result = processor.attend(attn, h_BTC, context, norm_of(norm))
        if result is not None:
            return result
    # A processor of somebody else's: it gets what it always gets.
    return cast(Tensor, attn(norm(h_BTC), encoder_hidden_states=context, attention_mask=mask))


def fits_transformer_2d(model: Any) -> bool:
    """A Transformer2DModel over a map of channels."""
    return bool(model.is_input_continuous)


def transformer_2d_forward(
    model: Any,
    plain: Forward,
    x_BCHW: Tensor,
    encoder_hidden_states: Tensor | None = None,
    timestep: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
    class_labels: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    attention_mask: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    """Without the copy that turns the map's memory round."""
    more = timestep, added_cond_kwargs, class_labels, cross_attention_kwargs
    masks = attention_mask, encoder_attention_mask
    if return_dict or model.gradient_checkpointing or any(m is not None for m in (*more, *masks)):
        return plain(x_BCHW, encoder_hidden_states, *more, *masks, return_dict)
    batch, _, height, width = x_BCHW.shape
    h = model.norm(x_BCHW)
    if model.use_linear_projection:
        h = model.proj_in(h.permute(0, 2, 3, 1).reshape(batch, height * width, -1))
    else:
        h = model.proj_in(h).permute(0, 2, 3, 1).reshape(batch, height * width, -1)
    for block in model.transformer_blocks:
        h = block(h, encoder_hidden_states=encoder_hidden_states)
    if model.use_linear_projection:
        h = model.proj_out(h).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
    else:
        h = model.proj_out(h.reshape(batch, height, width, -1).permute(0, 3, 1, 2))
    return (h + x_BCHW,)


def fits_up_block(block: Any) -> bool:
    """An up block whose resnets are lean and take one skip connection each."""
    return all(fits_resnet(resnet) for resnet in block.resnets)


def takes_skip(resnet: Any) -> bool:
    """Whether a resnet is lean at present, and nobody expects the maps laid together."""
    return isinstance(resnet.forward, LeanForward) and not is_listened_to(resnet)


def up_block_forward(
    block: Any,
    plain: Forward,
    hidden_states: Tensor,
    res_hidden_states_tuple: tuple[Tensor, ...],
    temb: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    upsample_size: Any = None,
    attention_mask: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
) -> Tensor:
    """Hand each skip connection to its resnet instead of copying it behind the channels."""
    more = cross_attention_kwargs, attention_mask, encoder_attention_mask
    free_u = all(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2"))
    if free_u or block.gradient_checkpointing or any(m is not None for m in more):
        options = {"temb": temb, "upsample_size": upsample_size}
        if hasattr(block, "attentions"):
            options |= {
                "encoder_hidden_states": encoder_hidden_states,
                "cross_attention_kwargs": cross_attention_kwargs,
                "attention_mask": attention_mask,
                "encoder_attention_mask": encoder_attention_mask,
            }
        return cast(Tensor, plain(hidden_states, res_hidden_states_tuple, **options))
    skips = list(res_hidden_states_tuple)
    for number, resnet in enumerate(block.resnets):
        if takes_skip(resnet):
            hidden_states = resnet(hidden_states, temb, skip=skips.pop())
        else:
            hidden_states = resnet(torch.cat([hidden_states, skips.pop()], 1), temb)
        if hasattr(block, "attentions"):
            hidden_states = block.attentions[number](
                hidden_states, encoder_hidden_states=encoder_hidden_states, return_dict=False
            )[0]
    for upsampler in block.upsamplers or ():
        hidden_states = upsampler(hidden_states, upsample_size)
    return hidden_states

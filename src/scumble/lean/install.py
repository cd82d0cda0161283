"""Put lean forwards on a built denoiser, and take them off leaving it bit for bit as it was.

No module is replaced and no weight changes its value: the forwards are attributes of the instances,
weights of one input lie behind one another while they are on, and convolutions' weights are in
channels_last layout.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from scumble.lean import blocks
from scumble.lean.attention import LeanAttention, fits_attention
from scumble.lean.factors import linear_of, stack_weights, unstack_weights
from scumble.lean.forwards import Forward, LeanForward
from scumble.lean.heap import give_back
from scumble.lean.levels import Level

Fits = Callable[[Any], bool]

BLOCKS: dict[str, tuple[Fits, Forward]] = {
    "BasicTransformerBlock": (blocks.fits_transformer, blocks.transformer_forward),
    "Conv2d": (blocks.fits_conv, blocks.conv_forward),
    "GroupNorm": (blocks.fits_norm, blocks.norm_forward),
    "ResnetBlock2D": (blocks.fits_resnet, blocks.resnet_forward),
    "Transformer2DModel": (blocks.fits_transformer_2d, blocks.transformer_2d_forward),
    "CrossAttnUpBlock2D": (blocks.fits_up_block, blocks.up_block_forward),
    "UpBlock2D": (blocks.fits_up_block, blocks.up_block_forward),
}
"""Class name -> (the conditions, the lean forward)."""


@dataclass
class LeanModel:
    """What was put on a model, so that it can be taken off.

    Args:
        model: the model.
        level: how much is kept for the way back.
        left_alone: class names of blocks that stayed as they were -> how many there are.
    """

    model: nn.Module
    level: Level
    left_alone: Counter[str] = field(default_factory=Counter)
    _forwards: list[nn.Module] = field(default_factory=list)
    _processors: list[tuple[Any, Any]] = field(default_factory=list)
    _stacked: list[list[nn.Linear]] = field(default_factory=list)
    _layouts: list[nn.Conv2d] = field(default_factory=list)

    def take_off(self) -> None:
        """Give the model its own forwards, processors and layouts again."""
        for module in self._forwards:
            if isinstance(module.forward, LeanForward):
                del module.forward
        for attn, processor in self._processors:
            if isinstance(attn.processor, LeanAttention):
                attn.set_processor(processor)
        for linears in self._stacked:
            unstack_weights(linears)
        for conv in self._layouts:
            conv.weight.data = conv.weight.detach().contiguous()
        for record in (self._forwards, self._processors, self._stacked, self._layouts):
            record.clear()

    def patch(self, module: nn.Module, forward: Forward, *settings: Any) -> None:
        """Let an instance compute with a lean forward."""
        module.forward = LeanForward(module, forward, *settings)
        self._forwards.append(module)

    def patch_block(self, module: nn.Module, fits: Fits, forward: Forward) -> bool:
        """Let a block compute lean if it fits and nobody else has replaced its forward."""
        if "forward" in vars(module) or not fits(module):
            return False
        if isinstance(module, nn.Conv2d):
            self.turn_round(module)
        settings = [self.level] if forward is blocks.transformer_forward else []
        self.patch(module, forward, *settings)
        return True

    def patch_attention(self, attn: Any, attention: str) -> bool:
        """Set the lean processor, and lay the weights of one input behind one another."""
        if not fits_attention(attn):
            return False
        self._processors.append((attn, attn.processor))
        attn.set_processor(LeanAttention(self.level, attention, attn.processor))
        is_self = (
            attn.to_q.weight.shape[1] == attn.to_k.weight.shape[1] and not attn.is_cross_attention
        )
        layers = [attn.to_q, attn.to_k, attn.to_v] if is_self else [attn.to_k, attn.to_v]
        linears = [linear for layer in layers if (linear := linear_of(layer)) is not None]
        if len(linears) == len(layers) and _can_be_laid_out(linears):
            stack_weights(linears)
            self._stacked.append(linears)
        return True

    def turn_round(self, conv: nn.Conv2d) -> None:
        """Put a convolution's weight in channels_last layout, unless it was read so."""
        if _can_be_laid_out([conv]):
            conv.weight.data = conv.weight.detach().contiguous(memory_format=torch.channels_last)
            self._layouts.append(conv)


def put_on(model: nn.Module, level: Level, attention: str = "auto") -> LeanModel:
    """Let a built model whose own weights are frozen compute lean.

    Adapters may be attached before or after. Blocks that are not known, or are unusual, stay as
    they are and are counted in `left_alone`.

    Args:
        model: a diffusers UNet.
        level: how much is kept for the way back.
        attention: which implementation computes attention.
    """
    lean = LeanModel(model, level)
    for module in model.modules():
        name = type(module).__name__
        if name == "Attention":
            is_lean = lean.patch_attention(module, attention)
        elif name in BLOCKS:
            is_lean = lean.patch_block(module, *BLOCKS[name])
        else:
            is_lean = not _is_unknown(module)
        if not is_lean:
            lean.left_alone[name] += 1
    _patch_end(lean)
    if lean._stacked or lean._layouts:
        give_back()
    return lean


def _patch_end(lean: LeanModel) -> None:
    """The last norm and the activation behind it, which the model itself calls one by one."""
    norm = getattr(lean.model, "conv_norm_out", None)
    activation = getattr(lean.model, "conv_act", None)
    is_own = type(activation) is nn.SiLU and "forward" not in vars(activation)
    if norm is not None and activation is not None and norm in lean._forwards and is_own:
        del norm.forward
        lean._forwards.remove(norm)
        lean.patch(norm, blocks.last_norm_forward, lean.model)
        lean.patch(activation, blocks.last_activation_forward, lean.model)


def _is_unknown(module: nn.Module) -> bool:
    """Whether a block has norms or convolutions of its own, or takes skip connections."""
    known = ("Downsample2D", "Upsample2D", "UNet2DConditionModel", "AdaptedLayer")
    kinds = (nn.GroupNorm, nn.LayerNorm, nn.Conv2d)
    name = type(module).__name__
    has_own = any(isinstance(child, kinds) for child in module.children())
    takes_skips = "Up" in name and name.endswith("Block2D")
    return name not in known and (has_own or takes_skips)


def _can_be_laid_out(layers: list[Any]) -> bool:
    weights = [layer.weight for layer in layers]
    return all(type(weight) is nn.Parameter and weight.is_contiguous() for weight in weights)

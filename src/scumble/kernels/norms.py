"""Frozen norms, alone or with the activation behind them, that save their input alone.

Shape suffixes: B batch, C channels, H height, W width, G groups.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from scumble.kernels import backend
from scumble.kernels.conv import FrozenConv2d, convolve, convolve_backward

aten: Any = torch.ops.aten


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over the last dimension; returns (result, mean, reciprocal deviation)."""
    if backend.uses_triton(x):
        from scumble.kernels import triton_norms

        return triton_norms.layer_norm(x, weight, bias, eps)
    y, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], weight, bias, eps)
    return y, mean, rstd


def layer_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """The gradient of the input of `layer_norm`."""
    if backend.uses_triton(x):
        from scumble.kernels import triton_norms

        return triton_norms.layer_norm_backward(grad, x, mean, rstd, weight)
    mask = [True, False, False]
    result: Tensor = aten.native_layer_norm_backward(
        grad, x, [x.shape[-1]], mean, rstd, weight, bias, mask
    )[0]
    return result


def group_norm(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, *, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """GroupNorm, and SiLU behind it if wanted; returns (result, mean, reciprocal deviation).

    The statistics have the shape (B, G).
    """
    if backend.uses_triton(x_BCHW) and _is_channels_last(x_BCHW):
        from scumble.kernels import triton_norms

        return triton_norms.group_norm(x_BCHW, weight_C, bias_C, groups, eps, silu)
    y, mean, rstd = _native(x_BCHW, weight_C, bias_C, groups, eps)
    return (functional.silu(y, inplace=True) if silu else y), mean, rstd


def group_norm_backward(
    grad_BCHW: Tensor,
    x_BCHW: Tensor,
    mean_BG: Tensor,
    rstd_BG: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool,
) -> Tensor:
    """The gradient of the input of `group_norm`; what was before SiLU is computed again."""
    if backend.uses_triton(x_BCHW) and _is_channels_last(x_BCHW):
        from scumble.kernels import triton_norms

        return triton_norms.group_norm_backward(
            grad_BCHW, x_BCHW, mean_BG, rstd_BG, weight_C, bias_C, groups, silu
        )
    if silu:
        y = _native(x_BCHW, weight_C, bias_C, groups, eps)[0]
        grad_BCHW = aten.silu_backward(grad_BCHW, y)
    layout = _layout(x_BCHW)
    result: Tensor = aten.native_group_norm_backward(
        grad_BCHW.contiguous(memory_format=layout),
        x_BCHW.contiguous(memory_format=layout),
        mean_BG,
        rstd_BG,
        weight_C,
        *x_BCHW.shape[:2],
        x_BCHW[0, 0].numel(),
        groups,
        [True, False, False],
    )[0]
    return result


class GroupNorm(torch.autograd.Function):
    """GroupNorm with or without SiLU: keeps the input and the statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        groups: int,
        eps: float,
        silu: bool,
    ) -> Tensor:
        """See `group_norm`."""
        y_BCHW, mean, rstd = group_norm(x_BCHW, weight_C, bias_C, groups, eps, silu=silu)
        ctx.save_for_backward(x_BCHW, mean, rstd, weight_C, bias_C)
        ctx.settings = groups, eps, silu
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        """Normalise again up to the activation, then differentiate."""
        x_BCHW, mean, rstd, weight, bias = ctx.saved_tensors
        groups, eps, silu = ctx.settings
        grad = group_norm_backward(
            grad_BCHW, x_BCHW, mean, rstd, weight, bias, groups, eps, silu=silu
        )
        return grad, None, None, None, None, None


class ConcatenatedGroupNorm(torch.autograd.Function):
    """GroupNorm and SiLU of two maps laid together, and the shortcut that goes round them.

    The two are kept, which others keep anyway, and not the copy that lays them together.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first_BCHW: Tensor,
        second_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        groups: int,
        eps: float,
        shortcut: FrozenConv2d,
    ) -> tuple[Tensor, Tensor]:
        """Returns (the normed maps, the shortcut's)."""
        x_BCHW = torch.cat([first_BCHW, second_BCHW], 1)
        y_BCHW, mean, rstd = group_norm(x_BCHW, weight_C, bias_C, groups, eps, silu=True)
        ctx.save_for_backward(first_BCHW, second_BCHW, mean, rstd, weight_C, bias_C)
        ctx.settings = groups, eps, shortcut
        return y_BCHW, convolve(x_BCHW, shortcut)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_BCHW: Tensor, shortcut_grad_BCHW: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Lay the two together again, then differentiate both ways."""
        first, second, mean, rstd, weight, bias = ctx.saved_tensors
        groups, eps, shortcut = ctx.settings
        x_BCHW = torch.cat([first, second], 1)
        grad = group_norm_backward(
            grad_BCHW, x_BCHW, mean, rstd, weight, bias, groups, eps, silu=True
        )
        grad = grad + convolve_backward(shortcut_grad_BCHW, x_BCHW.shape, shortcut)
        channels = first.shape[1]
        return grad[:, :channels], grad[:, channels:], None, None, None, None, None, None


def _native(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels = x_BCHW.shape[:2]
    x_BCHW = x_BCHW.contiguous(memory_format=_layout(x_BCHW))
    y, mean, rstd = torch.native_group_norm(
        x_BCHW, weight_C, bias_C, batch, channels, x_BCHW[0, 0].numel(), groups, eps
    )
    return y, mean, rstd


def _layout(x_BCHW: Tensor) -> torch.memory_format:
    """The layout to compute in: PyTorch reads channels_last as such on a processor alone."""
    keeps = x_BCHW.device.type in ("cpu", "meta") and _is_channels_last(x_BCHW)
    return torch.channels_last if keeps else torch.contiguous_format


def _is_channels_last(x_BCHW: Tensor) -> bool:
    return x_BCHW.is_contiguous(memory_format=torch.channels_last) and not x_BCHW.is_contiguous()

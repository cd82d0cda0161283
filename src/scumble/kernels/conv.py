"""Frozen convolutions that keep nothing but their weight, and run as one product on small maps.

PyTorch's own backward of a convolution keeps the input even where only the input's gradient is
wanted. On a processor, 3x3 convolutions of small maps are faster as one matrix product over the
rows of the weight in channels_last layout, by up to an order of magnitude the smaller the map, and
those of 1x1 on any map by a third.

Shape suffixes: B batch, C input channels, O output channels, H height, W width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

from scumble.kernels.weights import dense, multiply

MOST_ROWS = 256
"""Largest B x H x W behind a convolution that is one product on a processor."""


class FrozenConv2d(NamedTuple):
    """A frozen, ungrouped convolution, zero-padded.

    Args:
        weight: shape (O, C, K, K).
        bias: shape (O,) or None.
        stride: of both edges.
        padding: of both edges.
        dilation: of both edges.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


def convolve(x_BCHW: Tensor, conv: FrozenConv2d) -> Tensor:
    """The convolution's output."""
    weight = dense(conv.weight)
    batch, _, *edges = x_BCHW.shape
    height, width = (-(-edge // step) for edge, step in zip(edges, conv.stride, strict=True))
    if _as_product(x_BCHW, batch * height * width, conv):
        rows = multiply(_columns(x_BCHW, conv), _matrix(weight), conv.bias)
        # No view: FreeU writes into what an upsampler's convolution returns.
        return rows.view(batch, height, width, -1).permute(0, 3, 1, 2).clone()
    return functional.conv2d(x_BCHW, weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def convolve_backward(grad_BOHW: Tensor, shape: torch.Size, conv: FrozenConv2d) -> Tensor:
    """The gradient of the input of `convolve`, whose shape was `shape`."""
    weight = dense(conv.weight)
    batch, _, height, width = grad_BOHW.shape
    if _as_product(grad_BOHW, batch * height * width, conv):
        return _fold(_rows(grad_BOHW) @ _matrix(weight), grad_BOHW.shape, shape, conv)
    result: Tensor = conv2d_input(
        shape, weight, grad_BOHW, conv.stride, conv.padding, conv.dilation
    )
    return result


class Convolution(torch.autograd.Function):
    """`convolve` with `convolve_backward` as its gradient."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, conv: FrozenConv2d) -> Tensor:
        """Keep the shape alone: the way back needs no values."""
        ctx.shape, ctx.conv = x_BCHW.shape, conv
        return convolve(x_BCHW, conv)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BOHW: Tensor) -> tuple[Tensor, None]:
        """The gradient of the input; the weight is frozen."""
        return convolve_backward(grad_BOHW, ctx.shape, ctx.conv), None


def convolution(x_BCHW: Tensor, conv: FrozenConv2d) -> Tensor:
    """A frozen convolution that saves nothing for the way back."""
    result: Tensor = Convolution.apply(x_BCHW, conv)
    return result


def _as_product(x: Tensor, places: int, conv: FrozenConv2d) -> bool:
    """Whether to compute with rows of `x`, the input or the output's gradient.

    Args:
        x: shape (B, C, H, W).
        places: B x H x W of the output.
        conv: the convolution.
    """
    if x.device.type != "cpu" or conv.dilation != (1, 1):
        return False
    is_small = places <= MOST_ROWS
    if conv.weight.shape[2:] == (1, 1):
        is_plain = conv.padding == (0, 0) and conv.stride == (1, 1)
        return is_plain and (is_small or x.is_contiguous(memory_format=torch.channels_last))
    return conv.weight.shape[2:] == (3, 3) and conv.padding == (1, 1) and is_small


def _matrix(weight: Tensor) -> Tensor:
    """The kernel as (O, K K C); a view where the weight is in channels_last layout."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _rows(x_BCHW: Tensor) -> Tensor:
    """Every place with its channels, shape (B H W, C); a view in channels_last layout."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1])


def _columns(x_BCHW: Tensor, conv: FrozenConv2d) -> Tensor:
    """What each place of the output is made of: shape (B H W, C) of 1x1, (B H W, 9 C) of 3x3."""
    if conv.weight.shape[-1] == 1:
        return _rows(x_BCHW)
    padded = functional.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    shifted = torch.cat([padded[window] for window in _windows(x_BCHW.shape, conv.stride)], -1)
    return shifted.flatten(0, 2)


def _fold(columns: Tensor, out: torch.Size, shape: torch.Size, conv: FrozenConv2d) -> Tensor:
    """Add the parts back where they came from: the transpose of `_columns`.

    The sums are of nine numbers each, and rounded once.
    """
    batch, channels, height, width = shape
    if conv.weight.shape[-1] == 1:
        return columns.view(batch, height, width, channels).permute(0, 3, 1, 2)
    parts = columns.view(batch, *out[2:], 9, channels)
    exact = torch.promote_types(columns.dtype, torch.float32)
    total = columns.new_zeros(batch, height + 2, width + 2, channels, dtype=exact)
    for number, window in enumerate(_windows(shape, conv.stride)):
        total[window] += parts[:, :, :, number]
    return total[:, 1:-1, 1:-1].to(columns.dtype).permute(0, 3, 1, 2)


def _windows(shape: torch.Size, stride: tuple[int, int]) -> list[tuple[slice, ...]]:
    """Where the nine parts of a kernel meet an input (B, H, W, C) of this (B, C, H, W), padded."""
    height, width = shape[2:]
    return [
        (slice(None), slice(i, i + height, stride[0]), slice(j, j + width, stride[1]))
        for i in range(3)
        for j in range(3)
    ]

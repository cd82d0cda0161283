"""Frozen convolutions that keep nothing but their weight, and run as one product on small maps.

PyTorch's own backward of a convolution keeps the input even where only the input's gradient is
wanted. On a processor, 3x3 convolutions of small maps are an order of magnitude faster as one
matrix product over the rows of the weight in channels_last layout, and those of 1x1 on any map a
third.

Shape suffixes: B batch, C input channels, O output channels, H height, W width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

from scumble.kernels.weights import dense, multiply

MOST_ROWS = 64
"""Largest B x H x W of which a 3x3 convolution on a processor becomes one product."""


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
    if _as_product(x_BCHW, conv):
        batch, _, height, width = x_BCHW.shape
        rows = multiply(_columns(x_BCHW, weight.shape[-1]), _matrix(weight), conv.bias)
        return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)
    return functional.conv2d(x_BCHW, weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def convolve_backward(grad_BOHW: Tensor, shape: torch.Size, conv: FrozenConv2d) -> Tensor:
    """The gradient of the input of `convolve`, whose shape was `shape`."""
    weight = dense(conv.weight)
    if _as_product(grad_BOHW, conv):
        return _fold(_rows(grad_BOHW) @ _matrix(weight), shape, weight.shape[-1])
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


def _as_product(x: Tensor, conv: FrozenConv2d) -> bool:
    if x.device.type != "cpu" or conv.stride != (1, 1) or conv.dilation != (1, 1):
        return False
    if conv.weight.shape[2:] == (1, 1):
        return conv.padding == (0, 0) and x.is_contiguous(memory_format=torch.channels_last)
    is_small = x.shape[0] * x.shape[2] * x.shape[3] <= MOST_ROWS
    return conv.weight.shape[2:] == (3, 3) and conv.padding == (1, 1) and is_small


def _matrix(weight: Tensor) -> Tensor:
    """The kernel as (O, K K C); a view where the weight is in channels_last layout."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _rows(x_BCHW: Tensor) -> Tensor:
    """Every place with its channels, shape (B H W, C); a view in channels_last layout."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1])


def _columns(x_BCHW: Tensor, edge: int) -> Tensor:
    """Every place, or with edge 3 its nine neighbours: shape (B H W, edge edge C)."""
    if edge == 1:
        return _rows(x_BCHW)
    batch, channels, height, width = x_BCHW.shape
    padded = functional.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.cat(shifted, -1).view(batch * height * width, 9 * channels)


def _fold(columns: Tensor, shape: torch.Size, edge: int) -> Tensor:
    """Add the parts back where they came from: the transpose of `_columns`."""
    batch, channels, height, width = shape
    if edge == 1:
        return columns.view(batch, height, width, channels).permute(0, 3, 1, 2)
    parts = columns.view(batch, height, width, 9, channels)
    total = columns.new_zeros(batch, height + 2, width + 2, channels)
    for number in range(9):
        i, j = divmod(number, 3)
        total[:, i : i + height, j : j + width] += parts[:, :, :, number]
    return total[:, 1:-1, 1:-1].permute(0, 3, 1, 2)

"""A transformer block's feed-forward, whose gated activation is computed again on the way back.

Shape suffixes: T rows, F width of the activation.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from scumble.kernels import backend
from scumble.kernels.projection import (
    Frozen,
    Norm,
    Thin,
    norm_backward,
    normed,
    project,
    project_backward,
)

aten: Any = torch.ops.aten


def geglu(p: Tensor) -> Tensor:
    """A gelu(g) of the halves a, g of the last dimension (arXiv:2002.05202)."""
    if backend.uses_triton(p):
        from scumble.kernels import triton_geglu

        return triton_geglu.geglu(p)
    a, g = p.chunk(2, -1)
    return a * functional.gelu(g)


def geglu_backward(grad: Tensor, p: Tensor) -> Tensor:
    """The gradient of `p`."""
    if backend.uses_triton(p):
        from scumble.kernels import triton_geglu

        return triton_geglu.geglu_backward(grad, p)
    a, g = p.chunk(2, -1)
    result = torch.empty_like(p)
    first, second = result.chunk(2, -1)
    torch.mul(grad, functional.gelu(g), out=first)
    second.copy_(aten.gelu_backward(grad * a, g))
    return result


class FeedForward(torch.autograd.Function):
    """LayerNorm, projection, GEGLU, projection: keeps its input, and the first projection's output
    unless that is to be computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        norm: Norm,
        inner: Frozen,
        outer: Frozen,
        recompute: bool,
        *thin: Tensor | None,
    ) -> Tensor:
        """See `feed_forward`."""
        x, mean, rstd = normed(h, norm)
        p = project(x, inner, Thin(*thin[:2]))
        ctx.save_for_backward(h, mean, rstd, None if recompute else p, *thin)
        ctx.frozen = norm, inner, outer
        return project(geglu(p), outer, Thin(*thin[2:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Go back through both projections."""
        h, mean, rstd, p, *thin = ctx.saved_tensors
        norm, inner, outer = ctx.frozen
        x = normed(h, norm)[0] if p is None or thin[0] is not None else None
        if p is None:
            assert x is not None
            p = project(x, inner, Thin(*thin[:2]))
        u = geglu(p) if thin[2] is not None else None
        outer_found = project_backward(grad, u, outer, Thin(*thin[2:]))
        del u
        assert outer_found.x is not None
        grad_p = geglu_backward(outer_found.x, p)
        del p
        found = project_backward(grad_p, x, inner, Thin(*thin[:2]), needs_x=ctx.needs_input_grad[0])
        grad_h = norm_backward(found.x, h, norm, mean, rstd)
        return (grad_h, None, None, None, None, *found[1:], *outer_found[1:])


def feed_forward(
    h: Tensor,
    norm: Norm,
    inner: tuple[Frozen, Thin],
    outer: tuple[Frozen, Thin],
    *,
    recompute: bool,
) -> Tensor:
    """LayerNorm, projection to twice the width, GEGLU, projection back.

    Args:
        h: shape (..., I).
        norm: applied first.
        inner: the first projection, to (..., 2 F), and its trainable change.
        outer: the second, from (..., F).
        recompute: compute the first projection again on the way back instead of keeping it.
    """
    result: Tensor = FeedForward.apply(h, norm, inner[0], outer[0], recompute, *inner[1], *outer[1])
    return result

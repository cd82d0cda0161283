"""A frozen linear map with thin trainable matrices beside it, forward and backward by hand.

Several maps of one input (queries, keys, values) are stacked along their outputs: one product with
the stacked frozen weight, one with all the `down` matrices, one batched with the `up` matrices.

Shape suffixes: T rows, I inputs, O outputs of one map, P stacked maps, R rank.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scumble.kernels.norms import layer_norm, layer_norm_backward
from scumble.kernels.weights import Stacked, dense, multiply


class Frozen(NamedTuple):
    """A frozen Linear: (P x O, I) and (P x O,) or None."""

    weight: Tensor | Stacked
    bias: Tensor | None


class Thin(NamedTuple):
    """The trainable change of it, in the dtype of the computation; None where there is none.

    Args:
        down_PRI: into the bottleneck.
        up_POR: out of it, every scale included.
    """

    down_PRI: Tensor | None = None
    up_POR: Tensor | None = None


class ThinGradients(NamedTuple):
    """What `backward` of a projection finds; None where it was not asked for."""

    x: Tensor | None
    down_PRI: Tensor | None
    up_POR: Tensor | None


class Norm(NamedTuple):
    """A frozen LayerNorm before the projection; `weight` None means that there is none."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


def project(x: Tensor, frozen: Frozen, thin: Thin) -> Tensor:
    """X W^T + b + (x down^T) up^T, of shape (..., P x O)."""
    y = multiply(x, dense(frozen.weight), frozen.bias)
    if thin.down_PRI is None or thin.up_POR is None:
        return y
    maps, outputs, rank = thin.up_POR.shape
    hidden_TR = x.reshape(-1, x.shape[-1]) @ thin.down_PRI.flatten(0, 1).T
    if maps == 1:
        y.view(-1, outputs).addmm_(hidden_TR, thin.up_POR[0].T)
    else:
        hidden_PTR = hidden_TR.view(-1, maps, rank).transpose(0, 1)
        y.view(-1, maps, outputs).transpose(0, 1).baddbmm_(hidden_PTR, thin.up_POR.transpose(1, 2))
    return y


def project_backward(
    grad: Tensor, x: Tensor | None, frozen: Frozen, thin: Thin, *, needs_x: bool = True
) -> ThinGradients:
    """The gradients of `project`.

    Args:
        grad: of its output.
        x: its input; may be None where there is nothing thin.
        frozen: as given forward.
        thin: as given forward.
        needs_x: whether the gradient of `x` is wanted.
    """
    if thin.down_PRI is None or thin.up_POR is None:
        return ThinGradients(grad @ dense(frozen.weight) if needs_x else None, None, None)
    assert x is not None
    maps, outputs, rank = thin.up_POR.shape
    rows_TI = x.reshape(-1, x.shape[-1])
    grad_TO = grad.reshape(-1, maps * outputs)
    down_RI = thin.down_PRI.flatten(0, 1)
    hidden_PTR = (rows_TI @ down_RI.T).view(-1, maps, rank).transpose(0, 1)
    grad_PTO = grad_TO.view(-1, maps, outputs).transpose(0, 1)
    back_TR = (grad_PTO @ thin.up_POR).transpose(0, 1).reshape(-1, maps * rank)
    up_POR = grad_PTO.transpose(1, 2) @ hidden_PTR
    down_PRI = (back_TR.T @ rows_TI).view(maps, rank, -1)
    grad_x = None
    if needs_x:
        grad_x = torch.addmm(grad_TO @ dense(frozen.weight), back_TR, down_RI).view(x.shape)
    return ThinGradients(grad_x, down_PRI, up_POR)


class Projection(torch.autograd.Function):
    """LayerNorm, then `project`: keeps the input of the norm alone, and shares it with others."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        norm: Norm,
        frozen: Frozen,
        down_PRI: Tensor | None,
        up_POR: Tensor | None,
    ) -> Tensor:
        """See `projection`."""
        x, mean, rstd = normed(h, norm)
        # Without a norm and without anything thin, the way back needs no input at all.
        keep = h if norm.weight is not None or down_PRI is not None else None
        ctx.save_for_backward(keep, mean, rstd, down_PRI, up_POR)
        ctx.norm, ctx.frozen = norm, frozen
        return project(x, frozen, Thin(down_PRI, up_POR))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the norm again, then the gradients of the input and of the thin matrices."""
        h, mean, rstd, down_PRI, up_POR = ctx.saved_tensors
        needs_h = ctx.needs_input_grad[0]
        x = None if h is None or down_PRI is None else normed(h, ctx.norm)[0]
        found = project_backward(grad, x, ctx.frozen, Thin(down_PRI, up_POR), needs_x=needs_h)
        return (
            norm_backward(found.x, h, ctx.norm, mean, rstd),
            None,
            None,
            found.down_PRI,
            found.up_POR,
        )


def projection(h: Tensor, norm: Norm, frozen: Frozen, thin: Thin) -> Tensor:
    """LayerNorm, frozen linear map and thin change in one, saving `h` and nothing else.

    Args:
        h: shape (..., I).
        norm: applied to `h` first, where it has a weight.
        frozen: the frozen map, or several stacked.
        thin: its trainable change.

    Returns:
        Shape (..., P x O).
    """
    result: Tensor = Projection.apply(h, norm, frozen, *thin)
    return result


def normed(h: Tensor, norm: Norm) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The input after the norm, with the norm's statistics."""
    if norm.weight is None or norm.bias is None:
        return h, None, None
    return layer_norm(h, norm.weight, norm.bias, norm.eps)


def norm_backward(
    grad: Tensor | None, h: Tensor, norm: Norm, mean: Tensor | None, rstd: Tensor | None
) -> Tensor | None:
    """The gradient of the norm's input."""
    if grad is None or norm.weight is None or norm.bias is None:
        return grad
    assert mean is not None
    assert rstd is not None
    return layer_norm_backward(grad, h, mean, rstd, norm.weight, norm.bias)

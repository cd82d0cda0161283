"""Attention: which implementation computes it, and a form that keeps neither q, k nor v.

A GPU has several kernels for it, and which is fastest depends on the width of a head: Stable
Diffusion's heads of 40, 80 and 160 are filled up to what each kernel has tiles for.

Shape suffixes: B batch, H heads, T tokens, D head width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from scumble.kernels.processor_attention import ProcessorAttention, fits, processor_backward
from scumble.kernels.projection import (
    Frozen,
    Norm,
    Thin,
    ThinGradients,
    norm_backward,
    normed,
    project,
    project_backward,
)

aten: Any = torch.ops.aten

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each of shape (B, H, T, D) -> the mixed values, shape (B, H, T, D)."""


def sdpa(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> Tensor:
    """PyTorch's own choice of implementation; of bf16 on a processor, `ProcessorAttention`."""
    if fits(q_BHTD, k_BHTD, v_BHTD):
        result: Tensor = ProcessorAttention.apply(q_BHTD, k_BHTD, v_BHTD)
        return result
    return functional.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD)


def auto(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> Tensor:
    """PyTorch's kernels in the order of `backends_for`; the first that can is taken."""
    if q_BHTD.device.type != "cuda":
        return sdpa(q_BHTD, k_BHTD, v_BHTD)
    capability = torch.cuda.get_device_capability(q_BHTD.device)
    order = backends_for(q_BHTD.dtype, q_BHTD.shape[-1], capability)
    with sdpa_kernel(order, set_priority=True):
        return sdpa(q_BHTD, k_BHTD, v_BHTD)


def backends_for(dtype: torch.dtype, width: int, capability: tuple[int, int]) -> list[SDPBackend]:
    """The kernels that suit heads of a width, the fastest first.

    The choice is a table, not a measurement: equal runs must give equal bits.

    Args:
        dtype: of q, k and v.
        width: of a head.
        capability: of the GPU, (9, 0) for Hopper.
    """
    order = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if dtype not in (torch.float16, torch.bfloat16) or capability < (8, 0):
        return order  # the others know half precision alone, and no GPU before Ampere
    if width <= MOST_FLASH_WIDTH:
        order.insert(0, SDPBackend.FLASH_ATTENTION)
    # cuDNN's way back adds up in the order in which its threads finish.
    may_vary = not torch.are_deterministic_algorithms_enabled()
    if capability >= (9, 0) and width <= MOST_CUDNN_WIDTH and may_vary:
        order.insert(0, SDPBackend.CUDNN_ATTENTION)  # it alone uses Hopper's own instructions
    return order


def xformers(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> Tensor:
    """XFormers' memory-efficient attention.

    Raises:
        ImportError: xFormers is not installed.
    """
    from xformers.ops import memory_efficient_attention

    # xFormers has the heads behind the tokens.
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q_BHTD, k_BHTD, v_BHTD))
    result: Tensor = memory_efficient_attention(q, k, v)
    return result.transpose(1, 2)


MOST_FLASH_WIDTH = 256
"""Widest head of FlashAttention."""
MOST_CUDNN_WIDTH = 128
"""Widest head of which cuDNN has a backward pass on every GPU since Hopper."""

ATTENTION: dict[str, Attend] = {"auto": auto, "sdpa": sdpa, "xformers": xformers}
"""Value of --attention -> implementation."""


class Source(NamedTuple):
    """One stack of projections of attention, and what it projects.

    Args:
        frozen: stacked weights: q, k, v of self-attention; q, or k and v, of cross-attention.
        thin: their trainable changes.
    """

    frozen: Frozen
    thin: Thin


class RecomputedAttention(torch.autograd.Function):
    """LayerNorm, q, k, v and attention: keeps the input, the output and the softmax's logsumexp.

    q, k and v are projected again on the way back; the attention itself is not repeated where
    PyTorch has a backward that takes the logsumexp.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        context: Tensor | None,
        norm: Norm,
        heads: int,
        attend: Attend,
        first: Frozen,
        second: Frozen | None,
        *thin: Tensor | None,
    ) -> Tensor:
        """See `recomputed_attention`."""
        x, mean, rstd = normed(h, norm)
        sources = _sources(first, second, thin)
        q, k, v = _project_heads(x, context, sources, heads)
        kernel = _kernel(q, k, v, attend)
        out_BHTD, kept = _forward(kernel, q, k, v, attend)
        ctx.save_for_backward(h, context, mean, rstd, *thin, *kept)
        ctx.settings = norm, heads, attend, kernel, first, second
        return out_BHTD.transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Project again, go back through the attention, then through the projections."""
        h, context, mean, rstd, *others = ctx.saved_tensors
        thin, kept = others[:4], others[4:]
        norm, heads, attend, kernel, first, second = ctx.settings
        needs_h, needs_context = ctx.needs_input_grad[:2]
        x = normed(h, norm)[0]
        sources = _sources(first, second, thin)
        q, k, v = _project_heads(x, context, sources, heads)
        grad_BHTD = grad.unflatten(-1, (heads, -1)).transpose(1, 2)
        grads = _backward(kernel, grad_BHTD, q, k, v, kept, attend)
        del q, k, v
        rows = [g.transpose(1, 2).flatten(2) for g in grads]
        del grads
        if second is None:
            found = project_backward(torch.cat(rows, -1), x, *sources[0], needs_x=needs_h)
            other = ThinGradients(None, None, None)
        else:
            found = project_backward(rows[0], x, *sources[0], needs_x=needs_h)
            grad_kv = torch.cat(rows[1:], -1)
            other = project_backward(grad_kv, context, *sources[1], needs_x=needs_context)
        grad_h = norm_backward(found.x, h, norm, mean, rstd)
        return (grad_h, other.x, *(None,) * 5, *found[1:], *other[1:])


def recomputed_attention(
    h: Tensor,
    context: Tensor | None,
    norm: Norm,
    heads: int,
    attend: Attend,
    sources: list[Source],
) -> Tensor:
    """Attention of `h` to itself, or to `context`, that keeps neither q, k nor v.

    Args:
        h: shape (B, T, C).
        context: what keys and values come from; None for `h` itself.
        norm: applied to `h` first.
        heads: of the attention.
        attend: the implementation.
        sources: [q, k, v stacked] for self-attention, [q], [k and v stacked] for cross-attention.

    Returns:
        Shape (B, T, inner width), before the output projection.
    """
    first, second = sources[0], sources[1] if len(sources) > 1 else None
    frozen = first.frozen, second.frozen if second else None
    thin = *first.thin, *(second.thin if second else Thin())
    result: Tensor = RecomputedAttention.apply(h, context, norm, heads, attend, *frozen, *thin)
    return result


def _sources(first: Frozen, second: Frozen | None, thin: Sequence[Tensor | None]) -> list[Source]:
    sources = [Source(first, Thin(*thin[:2]))]
    return sources if second is None else [*sources, Source(second, Thin(*thin[2:]))]


def _project_heads(
    x: Tensor, context: Tensor | None, sources: list[Source], heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    projected = project(x, *sources[0])
    if len(sources) == 1:
        q, k, v = projected.chunk(3, -1)
    else:
        assert context is not None
        q = projected
        k, v = project(context, *sources[1]).chunk(2, -1)
    return split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H D) -> (B, H, T, D)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def _kernel(q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> str:
    """Of what kind the kernel is whose logsumexp PyTorch hands out; "" where there is none."""
    if attend not in (auto, sdpa):
        return ""
    if q.device.type in ("cpu", "meta"):
        return "cpu"
    # PyTorch fills the heads up to a multiple of 8 before it calls the kernel.
    if q.device.type != "cuda" or q.shape[-1] % 8:
        return ""
    # Every level computes with the same kernel: where another is preferred, it is repeated.
    order = backends_for(q.dtype, q.shape[-1], torch.cuda.get_device_capability(q.device))
    if attend is auto and order[0] is not SDPBackend.FLASH_ATTENTION:
        return ""
    return "flash" if can_use_flash_attention(SDPAParams(q, k, v, None, 0.0, False, False)) else ""


def _forward(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, attend: Attend
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output, and what `_backward` wants to be kept of it."""
    if kernel == "cpu":
        out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)
        return out, (out, logsumexp)
    if kernel == "flash":
        found = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)
        out, logsumexp, _, _, _, _, seed, offset, _ = found
        return out, (out, logsumexp, seed, offset)
    return attend(q, k, v), ()


def _backward(
    kernel: str,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Sequence[Tensor],
    attend: Attend,
) -> tuple[Tensor, ...]:
    """The gradients of q, k and v."""
    if kernel == "cpu":
        return processor_backward(grad, q, k, v, *kept)
    if kernel == "flash":
        out, logsumexp, seed, offset = kept
        lengths = (None, None, q.shape[2], k.shape[2])
        backward = aten._scaled_dot_product_flash_attention_backward
        found = backward(grad, q, k, v, out, logsumexp, *lengths, 0.0, False, seed, offset)
        return tuple(found)
    # Nothing handed out: once more forward, then back.
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_(True) for t in (q, k, v)]
        return torch.autograd.grad(attend(*inputs), inputs, grad)

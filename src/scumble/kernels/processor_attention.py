"""Attention on a processor: PyTorch's fused kernel, with a way back that is faster in bf16.

Shape suffixes: B batch, H heads, T tokens, D head width.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten: Any = torch.ops.aten

MOST_WORK_IN_FP32 = 6_000_000
"""Queries x keys x width of the largest head whose way back is faster in fp32, though there is AMX:
its tiles gain more on large ones than rearranging for them costs."""


class ProcessorAttention(torch.autograd.Function):
    """PyTorch's fused attention on a processor, with a way back that is faster in bf16.

    q, k and v have shape (B, H, T, D), k and v with a T of their own; it takes those that `fits`.
    """

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> Tensor:
        """Keep what PyTorch itself keeps."""
        out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(
            q_BHTD, k_BHTD, v_BHTD, 0.0, False
        )
        ctx.save_for_backward(q_BHTD, k_BHTD, v_BHTD, out, logsumexp)
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTD: Tensor) -> tuple[Tensor, ...]:
        """See `processor_backward`."""
        return processor_backward(grad_BHTD, *ctx.saved_tensors)


def processor_backward(grad: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
    """The gradients of q, k and v.

    PyTorch's kernel rearranges every block of bf16 before it multiplies, in both directions. On the
    way back that is slower than numbers in fp32, which are more exact as well, unless the processor
    has AMX and the blocks are large.

    Args:
        grad: of the output, shape (B, H, T, D).
        kept: q, k, v and the output, of the same kind, and the logsumexp of shape (B, H, T).
    """
    *tensors, logsumexp = grad, *kept
    q, k = kept[:2]
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    work = q.shape[-2] * k.shape[-2] * q.shape[-1]
    in_tiles = has_amx() and work > MOST_WORK_IN_FP32
    # On meta a step of any device is counted.
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or in_tiles:
        return tuple(backward(*tensors, logsumexp, 0.0, False))
    grads = backward(*(t.float() for t in tensors), logsumexp, 0.0, False)
    return tuple(g.to(q.dtype) for g in grads)


def fits(*parts: Tensor) -> bool:
    """Whether q, k and v are such as PyTorch itself gives to its fused kernel on a processor."""
    return all(
        part.device.type == "cpu"
        and part.dtype == torch.bfloat16
        and part.ndim == 4
        and part.numel() > 0
        and part.stride(-1) == 1
        and part.shape[-1] == parts[0].shape[-1]
        for part in parts
    )


@cache
def has_amx() -> bool:
    """Whether this processor multiplies tiles of bf16."""
    return torch.cpu._is_amx_tile_supported()

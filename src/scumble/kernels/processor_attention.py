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
    """PyTorch's fused attention on a processor, with a way back that is faster in bf16."""

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
    """The gradients of q, k and v from q, k, v, the output and the logsumexp.

    PyTorch's kernel rearranges every block of bf16 before it multiplies, in both directions. On the
    way back it is slower so than with numbers in fp32, which are more exact as well, unless
    the processor has AMX and the blocks are large.
    """
    *tensors, logsumexp = grad, *kept
    q, k = kept[:2]
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    work = q.shape[-2] * k.shape[-2] * q.shape[-1]
    if q.dtype != torch.bfloat16 or (has_amx() and work > MOST_WORK_IN_FP32):
        return tuple(backward(*tensors, logsumexp, 0.0, False))
    grads = backward(*(t.float() for t in tensors), logsumexp, 0.0, False)
    return tuple(g.to(q.dtype) for g in grads)


@cache
def has_amx() -> bool:
    """Whether this processor multiplies tiles of bf16."""
    return torch.cpu._is_amx_tile_supported()

"""Which of PyTorch's kernels suits heads of a width, and that the choice is made."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from scumble.kernels import attention

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
AMPERE, HOPPER, TURING = (8, 0), (9, 0), (7, 5)


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "order"),
    [
        (torch.bfloat16, 40, HOPPER, [CUDNN, FLASH, EFFICIENT, MATH]),
        (torch.float16, 128, (12, 0), [CUDNN, FLASH, EFFICIENT, MATH]),
        (torch.bfloat16, 160, HOPPER, [FLASH, EFFICIENT, MATH]),
        (torch.bfloat16, 40, AMPERE, [FLASH, EFFICIENT, MATH]),
        (torch.bfloat16, 512, HOPPER, [EFFICIENT, MATH]),
        (torch.float16, 40, TURING, [EFFICIENT, MATH]),
        (torch.float32, 40, HOPPER, [EFFICIENT, MATH]),
    ],
)
def test_the_order_of_kernels(dtype: Any, width: int, capability: Any, order: Any) -> None:
    assert attention.backends_for(dtype, width, capability) == order


def test_off_a_gpu_auto_is_pytorchs_own_choice() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attention.auto(q, k, v), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("tokens", [64, 77, 1024])
def test_auto_computes_attention_forth_and_back(width: int, tokens: int) -> None:
    shapes = [(2, 8, 1024, width), (2, 8, tokens, width), (2, 8, tokens, width)]
    inputs = [torch.randn(s, device="cuda").bfloat16().requires_grad_(True) for s in shapes]
    found = attention.auto(*inputs)
    exact = torch.nn.functional.scaled_dot_product_attention(*(t.double() for t in inputs))
    grads = torch.autograd.grad(found.float().square().sum(), inputs)
    expected = torch.autograd.grad(exact.square().sum(), inputs)
    for mine, right in zip((found, *grads), (exact, *expected), strict=True):
        torch.testing.assert_close(mine.double(), right.double(), rtol=3e-2, atol=3e-2)

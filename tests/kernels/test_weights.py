"""A product with few rows puts the weight first, and is the same product."""

import pytest
import torch
from torch.nn import functional

from scumble.kernels.weights import FEW_ROWS, multiply


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 16), (1, FEW_ROWS, 16), (FEW_ROWS + 1, 16)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_linear_map(shape: tuple[int, ...], dtype: torch.dtype, has_bias: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=draws) for s in (shape, (24, 16), (24,)))
    x, weight, bias = (t.to(dtype) for t in (x, weight, bias))
    found = multiply(x, weight, bias if has_bias else None)
    exact = functional.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    assert found.is_contiguous()
    assert found.dtype == dtype
    tolerance = 8e-3 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)

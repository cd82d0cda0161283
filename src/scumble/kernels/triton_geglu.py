"""GEGLU in Triton, forward and backward: one pass over memory each, computed in float32.

Shape suffixes: R rows, F width of the activation.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, WIDTH = 4, 256
"""One program's block: SD's activations are multiples of 256 wide, so that no lane is idle, and a
thread of its four warps loads eight neighbours of each half, 16 bytes of float16.
"""


@triton.jit
def _block(rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Where a block lies: its first halves in `p`, its place in the output, and what exists."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return row * (2 * width) + column, row * width + column, (row < rows) & (column < width)


@triton.jit
def _normal_cdf(g):
    return 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))


@triton.jit
def _forward(p_ptr, u_ptr, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    halves, place, exists = _block(rows, width, ROWS, WIDTH)
    a = tl.load(p_ptr + halves, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(p_ptr + halves + width, mask=exists, other=0.0).to(tl.float32)
    tl.store(u_ptr + place, a * g * _normal_cdf(g), mask=exists)


@triton.jit
def _backward(grad_ptr, p_ptr, out_ptr, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    halves, place, exists = _block(rows, width, ROWS, WIDTH)
    grad = tl.load(grad_ptr + place, mask=exists, other=0.0).to(tl.float32)
    a = tl.load(p_ptr + halves, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(p_ptr + halves + width, mask=exists, other=0.0).to(tl.float32)
    cdf = _normal_cdf(g)
    density = 0.3989422804014327 * tl.exp(-0.5 * g * g)
    tl.store(out_ptr + halves, grad * g * cdf, mask=exists)
    tl.store(out_ptr + halves + width, grad * a * (cdf + g * density), mask=exists)


def geglu(p: Tensor) -> Tensor:
    """A gelu(g) of the halves a, g of the last dimension, shape (..., 2 F) -> (..., F)."""
    p = p.contiguous()
    u = p.new_empty(*p.shape[:-1], p.shape[-1] // 2)
    _launch(_forward, u, p, u)
    return u


def geglu_backward(grad: Tensor, p: Tensor) -> Tensor:
    """The gradient of `p`."""
    grad, p = grad.contiguous(), p.contiguous()
    grad_p = torch.empty_like(p)
    _launch(_backward, grad, grad, p, grad_p)
    return grad_p


def _launch(kernel, u: Tensor, *tensors: Tensor) -> None:
    """Run a kernel over an activation shaped like `u`."""
    width = u.shape[-1]
    rows = u.numel() // width
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, WIDTH))
    with torch.cuda.device_of(u):
        kernel[grid](*tensors, rows, width, ROWS=ROWS, WIDTH=WIDTH, num_warps=4)

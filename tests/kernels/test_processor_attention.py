"""Attention on a processor in bf16: PyTorch's values, and gradients nearer to the exact ones."""

import pytest
import torch
from gradients import Operations, check, numbers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from scumble.kernels import processor_attention
from scumble.kernels.attention import sdpa
from scumble.kernels.processor_attention import (
    MOST_WORK_IN_FP32,
    ProcessorAttention,
    aten,
    processor_backward,
)

SHAPES = {"to itself": (24, 24, 40), "to a caption": (24, 7, 80), "to one word": (5, 1, 16)}
"""Case -> queries, keys, width of a head."""


def parts(queries: int, keys: int, width: int) -> list[Tensor]:
    return [
        numbers(2, tokens, 3, width, seed=seed, grad=False).transpose(1, 2)
        for seed, tokens in enumerate((queries, keys, keys))
    ]


def gradients(attend, exact: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    inputs = [part.to(dtype).requires_grad_(True) for part in exact]
    out = attend(*inputs)
    weights = numbers(*out.shape, seed=9, grad=False).to(dtype)
    return out, list(torch.autograd.grad(out, inputs, weights))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.fixture(params=[True, False], ids=["AMX", "no AMX"])
def amx(request, monkeypatch) -> bool:
    monkeypatch.setattr(processor_attention, "has_amx", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("case", SHAPES)
def test_values_are_pytorchs_and_gradients_more_exact(case, amx):
    rounded = [part.bfloat16().double() for part in parts(*SHAPES[case])]
    _, exact = gradients(scaled_dot_product_attention, rounded, torch.float64)
    out, ours = gradients(sdpa, rounded, torch.bfloat16)
    theirs_out, theirs = gradients(scaled_dot_product_attention, rounded, torch.bfloat16)
    assert torch.equal(out, theirs_out)
    for found, plain, wanted in zip(ours, theirs, exact, strict=True):
        assert found.dtype == torch.bfloat16
        if wanted.norm() > 1e-9:  # of one word everything is asked: neither q nor k matters
            assert error(found, wanted) < min(3e-3, 1.05 * error(plain, wanted))


def test_large_heads_stay_in_bf16_where_there_is_amx(amx):
    few, many = (300, 250), (300, 500)
    for (queries, keys), in_fp32 in ((few, True), (many, not amx)):
        assert (queries * keys * 80 <= MOST_WORK_IN_FP32) == ((queries, keys) == few)
        inputs = [part.bfloat16().requires_grad_(True) for part in parts(queries, keys, 80)]
        out = sdpa(*inputs)
        with Operations() as back:
            out.sum().backward()
        casts = back.names.count("_to_copy")
        assert casts == (8 if in_fp32 else 0)


def test_derivatives():
    check(ProcessorAttention.apply, *(part.requires_grad_(True) for part in parts(4, 3, 8)))


def test_what_pytorch_keeps_and_no_more():
    inputs = [part.bfloat16().requires_grad_(True) for part in parts(24, 7, 40)]

    def kept(attend) -> int:
        found: list[int] = []
        count = lambda tensor: found.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            attend(*inputs)
        return sum(found)

    assert kept(sdpa) == kept(scaled_dot_product_attention)


def test_what_is_counted_on_meta_does_not_depend_on_the_processor(amx):
    inputs = [part.bfloat16().to("meta").requires_grad_(True) for part in parts(24, 7, 40)]
    out, *kept = aten._scaled_dot_product_flash_attention_for_cpu(*inputs)
    with Operations() as back:
        processor_backward(out.detach(), *(t.detach() for t in (*inputs, out, *kept)))
    assert "_to_copy" not in back.names


@pytest.mark.parametrize("shape", [(3, 0, 16), (0, 3, 16)])
def test_attention_to_or_of_nothing_is_pytorchs(shape):
    inputs = [part.bfloat16() for part in parts(*shape)]
    assert torch.equal(sdpa(*inputs), scaled_dot_product_attention(*inputs))


def test_other_layouts_are_pytorchs():
    flat = [numbers(5, 16, seed=seed, grad=False).bfloat16() for seed in range(3)]
    assert torch.equal(sdpa(*flat), scaled_dot_product_attention(*flat))
    turned = [
        part.bfloat16().transpose(2, 3).contiguous().transpose(2, 3) for part in parts(7, 5, 8)
    ]
    assert torch.equal(sdpa(*turned), scaled_dot_product_attention(*turned))

"""Frozen norms: values, derivatives, layouts, and what they keep."""

import pytest
import torch
from gradients import LAYOUTS, check, numbers, same
from torch.nn import functional

from scumble.kernels import backend
from scumble.kernels.conv import FrozenConv2d
from scumble.kernels.norms import (
    ConcatenatedGroupNorm,
    GroupNorm,
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
)

EPS = 1e-5
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
SILU = pytest.mark.parametrize("silu", [False, True])


def affine(channels):
    return numbers(channels, seed=1, grad=False), numbers(channels, seed=2, grad=False)


def plain(x, weight, bias, groups, silu):
    y = functional.group_norm(x, groups, weight, bias, EPS)
    return functional.silu(y) if silu else y


@SILU
@LAYOUT
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(layout, silu, groups):
    weight, bias = affine(6)
    x = LAYOUTS[layout](numbers(2, 6, 3, 4, grad=False)).requires_grad_(True)
    ours = GroupNorm.apply(x, weight, bias, groups, EPS, silu)
    theirs = plain(x, weight, bias, groups, silu)
    same(ours, theirs)
    for grad_layout in LAYOUTS.values():
        grad = grad_layout(numbers(2, 6, 3, 4, seed=3, grad=False))
        found = torch.autograd.grad(ours, x, grad, retain_graph=True)[0]
        same(found, torch.autograd.grad(theirs, x, grad, retain_graph=True)[0])


@SILU
@LAYOUT
def test_derivatives_of_group_norm(layout, silu):
    weight, bias = affine(4)
    x = LAYOUTS[layout](numbers(2, 4, 2, 3, grad=False)).requires_grad_(True)
    check(lambda x: GroupNorm.apply(x, weight, bias, 2, EPS, silu), x)


@SILU
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4), (1, 4, 1, 1), (2, 4, 2, 2, 3)])
def test_group_norm_of_other_shapes_than_maps(shape, silu):
    weight, bias = affine(4)
    x = numbers(*shape)
    same(GroupNorm.apply(x, weight, bias, 2, EPS, silu), plain(x, weight, bias, 2, silu))
    check(lambda x: GroupNorm.apply(x, weight, bias, 2, EPS, silu), x)


@SILU
def test_group_norm_keeps_its_input_and_the_statistics(silu):
    weight, bias = affine(4)
    x = numbers(2, 4, 3, 3)
    kept = GroupNorm.apply(x, weight, bias, 2, EPS, silu).grad_fn.saved_tensors
    assert kept[0] is x
    assert [tuple(t.shape) for t in kept[1:]] == [(2, 2), (2, 2), (4,), (4,)]


@SILU
def test_group_norm_leaves_its_input_and_its_gradient_alone(silu):
    weight, bias = affine(4)
    x, grad = numbers(2, 4, 3, 3), numbers(2, 4, 3, 3, seed=3, grad=False)
    before = x.detach().clone(), grad.clone()
    GroupNorm.apply(x, weight, bias, 2, EPS, silu).backward(grad)
    assert torch.equal(x, before[0])
    assert torch.equal(grad, before[1])


def test_a_channels_last_map_stays_one():
    weight, bias = affine(4)
    x = LAYOUTS["channels_last"](numbers(2, 4, 3, 3, grad=False)).requires_grad_(True)
    y = GroupNorm.apply(x, weight, bias, 2, EPS, True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def shortcut_of(inputs):
    weight = numbers(5, inputs, 1, 1, seed=4, grad=False)
    return FrozenConv2d(weight, numbers(5, seed=5, grad=False))


@LAYOUT
def test_concatenated_group_norm(layout):
    weight, bias = affine(6)
    shortcut = shortcut_of(6)
    maps = [numbers(2, 2, 3, 4, grad=False), numbers(2, 4, 3, 4, seed=6, grad=False)]
    first, second = (LAYOUTS[layout](m).requires_grad_(True) for m in maps)
    together = torch.cat([first, second], 1)
    ours = ConcatenatedGroupNorm.apply(first, second, weight, bias, 3, EPS, shortcut)
    theirs = (
        plain(together, weight, bias, 3, True),
        functional.conv2d(together, shortcut.weight, shortcut.bias),
    )
    for our, their in zip(ours, theirs, strict=True):
        same(our, their)
    grads = [numbers(*y.shape, seed=7 + y.shape[1], grad=False) for y in theirs]
    found = torch.autograd.grad(ours, (first, second), grads)
    for our, their in zip(found, torch.autograd.grad(theirs, (first, second), grads), strict=True):
        same(our, their)


def test_derivatives_of_concatenated_group_norm():
    weight, bias = affine(4)
    shortcut = shortcut_of(4)

    def function(first, second):
        return ConcatenatedGroupNorm.apply(first, second, weight, bias, 2, EPS, shortcut)

    check(function, numbers(2, 1, 2, 3), numbers(2, 3, 2, 3, seed=3))
    check(function, numbers(2, 1, 2, 3), numbers(2, 3, 2, 3, seed=3, grad=False))
    check(function, numbers(2, 1, 2, 3, grad=False), numbers(2, 3, 2, 3, seed=3))
    check(lambda *maps: function(*maps)[1], numbers(2, 1, 2, 3), numbers(2, 3, 2, 3, seed=3))


def test_concatenated_group_norm_keeps_no_copy():
    weight, bias = affine(4)
    first, second = numbers(2, 1, 3, 3), numbers(2, 3, 3, 3)
    y, _ = ConcatenatedGroupNorm.apply(first, second, weight, bias, 2, EPS, shortcut_of(4))
    kept = y.grad_fn.saved_tensors
    assert kept[0] is first
    assert kept[1] is second
    assert all(t.ndim < 4 for t in kept[2:])


def test_layer_norm():
    weight, bias = affine(5)
    x = numbers(2, 3, 5)
    grad = numbers(2, 3, 5, seed=3, grad=False)
    theirs = functional.layer_norm(x, [5], weight, bias, EPS)
    y, mean, rstd = layer_norm(x, weight, bias, EPS)
    same(y, theirs)
    found = layer_norm_backward(grad, x, mean, rstd, weight, bias)
    same(found, torch.autograd.grad(theirs, x, grad)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("silu", [False, True])
def test_without_triton_a_gpu_computes_the_same_in_either_layout(monkeypatch, silu):
    monkeypatch.setattr(backend, "uses_triton", lambda _: False)
    weight, bias = (torch.randn(8, device="cuda") for _ in range(2))
    x = torch.randn(2, 8, 5, 6, device="cuda")
    grad = torch.randn(2, 8, 5, 6, device="cuda")
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        given, back = (t.contiguous(memory_format=layout) for t in (x, grad))
        y, mean, rstd = group_norm(given, weight, bias, 4, 1e-5, silu=silu)
        args = mean, rstd, weight, bias, 4, 1e-5
        results.append((y, group_norm_backward(back, given, *args, silu=silu)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)

"""The feed-forward in one: values, derivatives, what is kept and what is computed again."""

import pytest
import torch
from gradients import Operations, check, numbers, same
from torch.nn import functional

from scumble.kernels.geglu import feed_forward, geglu, geglu_backward
from scumble.kernels.projection import Frozen, Norm, Thin

WIDTH, INNER, RANK = 4, 3, 2
NORM = Norm(numbers(WIDTH, seed=8, grad=False), numbers(WIDTH, seed=9, grad=False), 1e-5)
RECOMPUTE = pytest.mark.parametrize("recompute", [False, True])
THIN = pytest.mark.parametrize("which", ["none", "inner", "outer", "both"])


def frozen_of(outputs, inputs, bias=True):
    weight = numbers(outputs, inputs, seed=1, grad=False)
    return Frozen(weight, numbers(outputs, seed=2, grad=False) if bias else None)


def thin_of(outputs, inputs, seed):
    return [numbers(1, RANK, inputs, seed=seed), numbers(1, outputs, RANK, seed=seed + 1)]


def thin_matrices(which):
    inner = thin_of(2 * INNER, WIDTH, 3) if which in ("inner", "both") else [None, None]
    outer = thin_of(WIDTH, INNER, 5) if which in ("outer", "both") else [None, None]
    return [*inner, *outer]


def ours(h, *thin, recompute, bias=True, norm=NORM):
    inner = frozen_of(2 * INNER, WIDTH, bias), Thin(*thin[:2])
    outer = frozen_of(WIDTH, INNER, bias), Thin(*thin[2:])
    return feed_forward(h, norm, inner, outer, recompute=recompute)


def plain(h, *thin, bias=True, norm=NORM):
    x = functional.layer_norm(h, [WIDTH], *norm[:2], norm.eps)
    inner, outer = frozen_of(2 * INNER, WIDTH, bias), frozen_of(WIDTH, INNER, bias)
    weights = [
        frozen.weight if down is None else frozen.weight + up[0] @ down[0]
        for frozen, down, up in ((inner, *thin[:2]), (outer, *thin[2:]))
    ]
    a, g = functional.linear(x, weights[0], inner.bias).chunk(2, -1)
    return functional.linear(a * functional.gelu(g), weights[1], outer.bias)


@RECOMPUTE
@THIN
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(which, recompute, bias):
    h, thin = numbers(2, 5, WIDTH), thin_matrices(which)
    our, their = ours(h, *thin, recompute=recompute, bias=bias), plain(h, *thin, bias=bias)
    same(our, their)
    inputs = [h, *(t for t in thin if t is not None)]
    grad = numbers(*their.shape, seed=7, grad=False)
    for a, b in zip(
        torch.autograd.grad(our, inputs, grad),
        torch.autograd.grad(their, inputs, grad),
        strict=True,
    ):
        same(a, b)


@RECOMPUTE
@THIN
def test_derivatives(which, recompute):
    thin = thin_matrices(which)
    check(lambda h, *thin: ours(h, *thin, recompute=recompute), numbers(1, 3, WIDTH), *thin)
    if which != "none":
        h = numbers(1, 3, WIDTH, grad=False)
        check(lambda *thin: ours(h, *thin, recompute=recompute), *thin)


@THIN
def test_what_is_kept(which):
    h, thin = numbers(2, 5, WIDTH), thin_matrices(which)
    for recompute in (False, True):
        kept = ours(h, *thin, recompute=recompute).grad_fn.saved_tensors
        assert kept[0] is h
        assert (kept[3] is None) == recompute
        wide = [t for t in kept[1:] if t is not None and t.shape[-1] >= 2 * INNER and t.ndim == 3]
        assert len([t for t in wide if t.shape[0] == 2]) == (0 if recompute else 1)


def test_the_first_projection_is_repeated_only_if_wished():
    products = {}
    for recompute in (False, True):
        y = ours(numbers(2, 5, WIDTH), *thin_matrices("none"), recompute=recompute)
        with Operations() as back:
            y.sum().backward()
        products[recompute] = sum(name in ("mm", "addmm", "bmm") for name in back.names)
    assert products == {False: 2, True: 3}


def test_geglu():
    p, grad = numbers(3, 2 * INNER), numbers(3, INNER, seed=1, grad=False)
    a, g = p.chunk(2, -1)
    theirs = a * functional.gelu(g)
    same(geglu(p), theirs)
    found = geglu_backward(grad, p.detach())
    same(found, torch.autograd.grad(theirs, p, grad)[0])

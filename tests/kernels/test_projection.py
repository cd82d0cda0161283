"""A frozen map, alone or several, with thin changes: values, derivatives, what is kept."""

import pytest
import torch
from gradients import check, numbers, same
from torch.nn import functional

from scumble.kernels.projection import Frozen, Norm, Thin, projection
from scumble.kernels.weights import Stacked

INPUTS, OUTPUTS, RANK = 4, 3, 2
NORM = Norm(numbers(INPUTS, seed=8, grad=False), numbers(INPUTS, seed=9, grad=False), 1e-5)
NORMS = pytest.mark.parametrize("norm", [Norm(), NORM], ids=["no norm", "norm"])
MAPS = pytest.mark.parametrize("maps", [1, 2, 3])
BIAS = pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])


def frozen_of(maps, bias=True):
    weight = numbers(maps * OUTPUTS, INPUTS, seed=1, grad=False)
    return Frozen(weight, numbers(maps * OUTPUTS, seed=2, grad=False) if bias else None)


def thin_of(maps, grad=True):
    down = numbers(maps, RANK, INPUTS, seed=3, grad=grad)
    return Thin(down, numbers(maps, OUTPUTS, RANK, seed=4, grad=grad))


def plain(h, norm, frozen, thin):
    """The same with whole matrices, by autograd."""
    x = h if norm.weight is None else functional.layer_norm(h, [INPUTS], *norm[:2], norm.eps)
    weight = frozen.weight
    if thin.down_PRI is not None:
        weight = weight + (thin.up_POR @ thin.down_PRI).flatten(0, 1)
    return functional.linear(x, weight, frozen.bias)


@NORMS
@BIAS
@MAPS
@pytest.mark.parametrize("is_thin", [False, True], ids=["frozen", "thin"])
@pytest.mark.parametrize("shape", [(5, INPUTS), (2, 3, INPUTS), (2, 1, 3, INPUTS)])
def test_values_and_gradients(norm, bias, maps, is_thin, shape):
    h = numbers(*shape)
    frozen, thin = frozen_of(maps, bias), thin_of(maps) if is_thin else Thin()
    ours, theirs = projection(h, norm, frozen, thin), plain(h, norm, frozen, thin)
    same(ours, theirs)
    grad = numbers(*theirs.shape, seed=5, grad=False)
    inputs = [h, *thin] if is_thin else [h]
    for our, their in zip(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(theirs, inputs, grad),
        strict=True,
    ):
        same(our, their)


@NORMS
@MAPS
def test_derivatives(norm, maps):
    frozen, thin = frozen_of(maps), thin_of(maps)
    check(lambda h, *thin: projection(h, norm, frozen, Thin(*thin)), numbers(2, 3, INPUTS), *thin)
    check(lambda h: projection(h, norm, frozen, Thin()), numbers(2, 3, INPUTS))
    h = numbers(2, 3, INPUTS, grad=False)
    check(lambda *thin: projection(h, norm, frozen, Thin(*thin)), *thin)
    still = thin_of(maps, grad=False)
    check(lambda h: projection(h, norm, frozen, still), numbers(2, 3, INPUTS))


@NORMS
def test_inputs_and_gradients_that_lie_crosswise(norm):
    frozen, thin = frozen_of(3), thin_of(3)
    h = numbers(2, INPUTS, 5, grad=False).transpose(1, 2).requires_grad_(True)
    ours, theirs = projection(h, norm, frozen, thin), plain(h, norm, frozen, thin)
    same(ours, theirs)
    for grad in (
        numbers(9, 2, 5, seed=5, grad=False).permute(1, 2, 0),
        torch.ones((), dtype=torch.float64).expand(2, 5, 9),
    ):
        inputs = [h, *thin]
        found = torch.autograd.grad(ours, inputs, grad, retain_graph=True)
        expected = torch.autograd.grad(theirs, inputs, grad, retain_graph=True)
        for our, their in zip(found, expected, strict=True):
            same(our, their)


@NORMS
def test_weights_that_lie_apart(norm):
    together = frozen_of(3)
    apart = Frozen(Stacked(tuple(w.clone() for w in together.weight.chunk(3))), together.bias)
    h, thin = numbers(2, 3, INPUTS), thin_of(3)
    same(projection(h, norm, apart, thin), projection(h, norm, together, thin))
    check(lambda h, *thin: projection(h, norm, apart, Thin(*thin)), h, *thin)


def test_only_the_input_is_kept():
    h, frozen, thin = numbers(2, 3, INPUTS), frozen_of(1), thin_of(1)
    assert all(t is None for t in projection(h, Norm(), frozen, Thin()).grad_fn.saved_tensors)
    for norm in (Norm(), NORM):
        kept = projection(h, norm, frozen, thin).grad_fn.saved_tensors
        assert kept[0] is h
        assert all(t is None or t.shape == (2, 3, 1) for t in kept[1:3])
        assert kept[3:] == tuple(thin)


def test_the_input_is_left_alone():
    h, frozen, thin = numbers(2, 3, INPUTS), frozen_of(3), thin_of(3)
    before = h.detach().clone()
    y = projection(h, Norm(), frozen, thin)
    grad = numbers(*y.shape, seed=5, grad=False)
    kept = grad.clone()
    y.backward(grad)
    assert torch.equal(h, before)
    assert torch.equal(grad, kept)

"""Attention that keeps neither q, k nor v: values, derivatives, what is kept and repeated."""

import pytest
import torch
from gradients import Operations, check, numbers, same
from torch.nn import functional

from scumble.kernels.attention import ATTENTION, Source, recomputed_attention, sdpa
from scumble.kernels.projection import Frozen, Norm, Thin

WIDTH, CONTEXT, RANK, HEADS = 4, 3, 2, 2
NORM = Norm(numbers(WIDTH, seed=8, grad=False), numbers(WIDTH, seed=9, grad=False), 1e-5)
FORWARD = "_scaled_dot_product_flash_attention_for_cpu"


def by_hand(q, k, v):
    """Attention as in books; PyTorch hands out no logsumexp of it."""
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    return weights @ v


ATTEND = pytest.mark.parametrize("attend", [sdpa, by_hand])
SETUPS = pytest.mark.parametrize(
    ("is_cross", "first_thin", "second_thin"),
    [
        (False, False, False),
        (False, True, False),
        (True, False, False),
        (True, True, False),
        (True, False, True),
        (True, True, True),
    ],
)


def source(maps, inputs, is_thin, seed, bias=True):
    outputs = WIDTH
    frozen = Frozen(
        numbers(maps * outputs, inputs, seed=seed, grad=False),
        numbers(maps * outputs, seed=seed + 1, grad=False) if bias else None,
    )
    if not is_thin:
        return Source(frozen, Thin())
    down = numbers(maps, RANK, inputs, seed=seed + 2)
    return Source(frozen, Thin(down, numbers(maps, outputs, RANK, seed=seed + 3)))


def setup(is_cross, first_thin, second_thin):
    h = numbers(2, 3, WIDTH, seed=20)
    if not is_cross:
        return h, None, [source(3, WIDTH, first_thin, 30)]
    context = numbers(2, 5, CONTEXT, seed=21)
    return h, context, [source(1, WIDTH, first_thin, 30), source(2, CONTEXT, second_thin, 40)]


def plain(h, context, norm, sources):
    """By autograd with whole matrices."""
    x = h if norm.weight is None else functional.layer_norm(h, [WIDTH], *norm[:2], norm.eps)
    parts = []
    for one, inputs in zip(sources, (x, context), strict=False):
        weight = one.frozen.weight
        if one.thin.down_PRI is not None:
            weight = weight + (one.thin.up_POR @ one.thin.down_PRI).flatten(0, 1)
        projected = functional.linear(inputs, weight, one.frozen.bias)
        parts += projected.split(WIDTH, -1)
    q, k, v = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)
    return by_hand(q, k, v).transpose(1, 2).flatten(2)


def leaves(h, context, sources):
    thin = [t for one in sources for t in one.thin if t is not None]
    return [h, *([] if context is None else [context]), *thin]


@SETUPS
@ATTEND
@pytest.mark.parametrize("norm", [Norm(), NORM], ids=["no norm", "norm"])
def test_values_and_gradients(is_cross, first_thin, second_thin, attend, norm):
    h, context, sources = setup(is_cross, first_thin, second_thin)
    ours = recomputed_attention(h, context, norm, HEADS, attend, sources)
    theirs = plain(h, context, norm, sources)
    same(ours, theirs)
    inputs = leaves(h, context, sources)
    crosswise = numbers(WIDTH, 3, 2, seed=6, grad=False).permute(2, 1, 0)
    for grad in (numbers(*theirs.shape, seed=5, grad=False), crosswise):
        found = torch.autograd.grad(ours, inputs, grad, retain_graph=True)
        expected = torch.autograd.grad(theirs, inputs, grad, retain_graph=True)
        for our, their in zip(found, expected, strict=True):
            same(our, their)


@SETUPS
@ATTEND
def test_derivatives(is_cross, first_thin, second_thin, attend):
    h, context, sources = setup(is_cross, first_thin, second_thin)

    def function(h, context, *thin):
        made = [Source(sources[0].frozen, Thin(*thin[:2]))]
        made += [Source(one.frozen, Thin(*thin[2:])) for one in sources[1:]]
        return recomputed_attention(h, context, NORM, HEADS, attend, made)

    check(function, h, context, *(t for one in sources for t in one.thin))


@pytest.mark.parametrize("which", ["h", "context", "neither"])
def test_only_one_or_neither_of_the_inputs_needs_a_gradient(which):
    h, context, sources = setup(True, True, True)
    inputs = h.requires_grad_(which == "h"), context.requires_grad_(which == "context")
    for function in (recomputed_attention, lambda *given: plain(*given[:3], given[5])):
        function(*inputs, NORM, HEADS, sdpa, sources).square().sum().backward()
        found = [t.grad for t in leaves(h, context, sources)]
        for leaf in leaves(h, context, sources):
            leaf.grad = None
        if function is recomputed_attention:
            ours = found
    for our, their, leaf in zip(ours, found, leaves(h, context, sources), strict=True):
        assert (our is None) == (their is None) == (not leaf.requires_grad)
        if our is not None:
            same(our, their)


@SETUPS
@ATTEND
def test_neither_q_nor_k_nor_v_is_kept(is_cross, first_thin, second_thin, attend):
    h, context, sources = setup(is_cross, first_thin, second_thin)
    y = recomputed_attention(h, context, NORM, HEADS, attend, sources)
    kept = y.grad_fn.saved_tensors
    assert kept[0] is h
    assert kept[1] is context
    thin = [t for one in sources for t in one.thin]
    assert kept[4 : 4 + len(thin)] == tuple(thin)
    if attend is by_hand:
        assert len(kept) == 8
    else:
        out, logsumexp = kept[8:]
        assert out.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
        assert logsumexp.numel() == 2 * HEADS * 3


def test_the_attention_is_not_repeated_where_pytorch_hands_out_the_logsumexp():
    h, context, sources = setup(True, True, True)
    y = recomputed_attention(h, context, NORM, HEADS, sdpa, sources)
    with Operations() as back:
        y.sum().backward()
    assert FORWARD + "_backward" in back.names
    assert FORWARD not in back.names


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", [1, 3, 8, 40, 160, 264])
def test_every_dtype_and_width_of_heads(dtype, head):
    h = numbers(2, 5, 6, grad=False).to(dtype).requires_grad_(True)
    weight = numbers(3 * 2 * head, 6, seed=1, grad=False, scale=0.4)
    frozen = Frozen(weight.to(dtype), None)
    y = recomputed_attention(h, None, Norm(), 2, sdpa, [Source(frozen, Thin())])
    y.double().square().sum().backward()
    exact = h.detach().double().requires_grad_(True)
    q, k, v = (exact @ weight.T).unflatten(-1, (3, 2, head)).permute(2, 0, 3, 1, 4)
    theirs = by_hand(q, k, v).transpose(1, 2).flatten(2)
    theirs.square().sum().backward()
    most = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
    assert (y.double() - theirs).norm() <= most * theirs.norm()
    assert (h.grad.double() - exact.grad).norm() <= most * exact.grad.norm()


def test_the_names_of_the_option():
    q, k, v = (numbers(1, 2, 3, 4, seed=seed) for seed in range(3))
    for name in ("auto", "sdpa"):
        same(ATTENTION[name](q, k, v), by_hand(q, k, v))

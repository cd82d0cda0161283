"""The frozen convolution: values, derivatives, what it keeps and which way it computes."""

import pytest
import torch
from gradients import LAYOUTS, Operations, check, numbers, same
from torch.nn import functional

from scumble.kernels.conv import MOST_ROWS, FrozenConv2d, convolution

CASES = {
    "3x3 as a product": ((2, 3, 4, 5), 3, {"padding": (1, 1)}),
    "3x3 of one place": ((1, 3, 1, 1), 3, {"padding": (1, 1)}),
    "3x3 of one row": ((2, 3, 1, 6), 3, {"padding": (1, 1)}),
    "the largest product": ((1, 2, 16, 16), 3, {"padding": (1, 1)}),
    "just too large for one": ((1, 2, 1, 257), 3, {"padding": (1, 1)}),
    "stride 2": ((2, 3, 6, 5), 3, {"padding": (1, 1), "stride": (2, 2)}),
    "stride 2 of one edge": ((2, 3, 6, 5), 3, {"padding": (1, 1), "stride": (1, 2)}),
    "no padding": ((2, 3, 4, 5), 3, {}),
    "dilated": ((1, 2, 6, 6), 3, {"padding": (2, 2), "dilation": (2, 2)}),
    "dilated, padded by one": ((1, 2, 6, 6), 3, {"padding": (1, 1), "dilation": (2, 2)}),
    "1x1": ((2, 3, 4, 5), 1, {}),
    "1x1 with stride": ((2, 3, 4, 5), 1, {"stride": (2, 2)}),
    "1x1 padded": ((2, 3, 4, 5), 1, {"padding": (1, 1)}),
    "5x5": ((1, 2, 5, 6), 5, {"padding": (2, 2)}),
}


def conv_of(case, layout="contiguous", bias=True, seed=1):
    shape, edge, options = CASES[case]
    weight = LAYOUTS[layout](numbers(4, shape[1], edge, edge, seed=seed, grad=False))
    return FrozenConv2d(weight, numbers(4, seed=2, grad=False) if bias else None, **options)


def plain(x, conv):
    return functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_conv2d(case, layout):
    conv = conv_of(case, layout)
    x = LAYOUTS[layout](numbers(*CASES[case][0], grad=False)).requires_grad_(True)
    ours, theirs = convolution(x, conv), plain(x, conv)
    same(ours, theirs)
    grad = LAYOUTS[layout](numbers(*theirs.shape, seed=3, grad=False))
    same(torch.autograd.grad(ours, x, grad)[0], torch.autograd.grad(theirs, x, grad)[0])


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    conv = conv_of(case, "channels_last", bias=False)
    check(lambda x: convolution(x, conv), numbers(*CASES[case][0]))


def test_nothing_is_kept_but_the_weight():
    for case in CASES:
        conv = conv_of(case)
        y = convolution(numbers(*CASES[case][0]), conv)
        assert y.grad_fn.saved_tensors == ()
        assert y.grad_fn.conv.weight is conv.weight


@pytest.mark.parametrize(
    ("case", "is_product"),
    [
        ("3x3 as a product", True),
        ("the largest product", True),
        ("just too large for one", False),
        ("stride 2", True),
        ("stride 2 of one edge", True),
        ("no padding", False),
        ("dilated", False),
        ("dilated, padded by one", False),
        ("1x1", True),
        ("1x1 with stride", False),
        ("1x1 padded", False),
    ],
)
def test_small_maps_run_as_one_product_both_ways(case, is_product):
    x = numbers(*CASES[case][0])
    with Operations() as there:
        y = convolution(x, conv_of(case))
    with Operations() as back:
        y.sum().backward()
    assert ("convolution" not in there.names) == is_product
    assert ("convolution_backward" not in back.names) == is_product


def test_of_large_maps_those_of_1x1_in_channels_last_alone_are_products():
    for layout in LAYOUTS:
        x = LAYOUTS[layout](numbers(2, 3, 12, 12, grad=False))
        with Operations() as there:
            convolution(x, conv_of("1x1"))
        assert ("convolution" not in there.names) == (layout == "channels_last")


def test_the_product_counts_the_whole_batch():
    conv = conv_of("3x3 as a product")
    for batch, is_product in ((MOST_ROWS // 16, True), (MOST_ROWS // 16 + 1, False)):
        with Operations() as there:
            convolution(numbers(batch, 3, 4, 4), conv)
        assert ("convolution" not in there.names) == is_product


def test_the_matrix_of_a_turned_weight_is_no_copy():
    x = LAYOUTS["channels_last"](numbers(2, 3, 4, 5, grad=False))
    for layout, copies in (("channels_last", 1), ("contiguous", 2)):  # one is the output's
        conv = conv_of("3x3 as a product", layout)
        with Operations() as there:
            convolution(x, conv)
        assert there.names.count("clone") == copies


@pytest.mark.parametrize("case", ["3x3 as a product", "just too large for one", "1x1"])
def test_the_output_may_be_written_to(case):
    y = convolution(numbers(*CASES[case][0]), conv_of(case))
    y[:, :1] *= 2
    y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["3x3 as a product", "just too large for one", "stride 2", "1x1"])
def test_short_dtypes(case, dtype):
    conv = conv_of(case, "channels_last")
    exact = numbers(*CASES[case][0])
    short = FrozenConv2d(conv.weight.to(dtype), conv.bias.to(dtype), *conv[2:])
    x = exact.detach().to(dtype).requires_grad_(True)
    y = convolution(x, short)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    plain(exact, conv).square().sum().backward()
    error = (x.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < (1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_in_bf16_are_about_as_exact_as_pytorchs(stride):
    conv = FrozenConv2d(
        numbers(64, 48, 3, 3, seed=1, grad=False).bfloat16(), None, (stride, stride), (1, 1)
    )
    exact = FrozenConv2d(conv.weight.double(), *conv[1:])
    x = numbers(2, 48, 8, 8).detach().bfloat16().requires_grad_(True)
    grad = numbers(*plain(x, conv).shape, seed=3, grad=False).bfloat16()
    wide = x.detach().double().requires_grad_(True)
    (wanted,) = torch.autograd.grad(plain(wide, exact), wide, grad.double())
    errors = [
        (torch.autograd.grad(y, x, grad)[0].double() - wanted).norm() / wanted.norm()
        for y in (convolution(x, conv), plain(x, conv))
    ]
    assert errors[0] < 1.8 * errors[1]


def test_a_second_derivative_is_refused():
    y = convolution(numbers(1, 3, 4, 4), conv_of("stride 2")).square().sum()
    x = numbers(1, 3, 6, 5)
    y = convolution(x, conv_of("stride 2")).square().sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()

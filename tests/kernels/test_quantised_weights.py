"""A weight in few bits is the tensor it stands for, in every product and in every operation."""

import copy
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from scumble.errors import UserError
from scumble.kernels.projection import Frozen, Norm, Thin, projection
from scumble.kernels.weights import Stacked, dense
from scumble.lean.quantised import QuantisedWeight
from scumble.lean.schemes import SCHEMES

BOUNDS = {"int8": 0.01, "fp8": 0.04, "nf4": 0.11}
"""Scheme -> largest relative error over a normally distributed weight."""

# Appendix E of arXiv:2305.14314.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)

SHAPES = [(96, 64), (48, 32, 3, 3), (48, 32, 1, 1), (5, 7)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

schemes = pytest.mark.parametrize("scheme", SCHEMES)


def random_weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(dtype)


def frozen_layer(kind: str) -> Any:
    torch.manual_seed(0)
    layer = nn.Linear(64, 96) if kind == "linear" else nn.Conv2d(32, 48, 3, padding=1, stride=2)
    return layer.requires_grad_(False)


def quantised_pair(kind: str, scheme: str) -> tuple[Any, Any]:
    """A layer with a quantised weight, and one with the numbers that it stands for."""
    layer, plain = frozen_layer(kind), frozen_layer(kind)
    weight = QuantisedWeight.of(layer.weight.detach(), scheme)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    plain.weight = nn.Parameter(weight.dequantized(), requires_grad=False)
    return layer, plain


def some_input(kind: str) -> Tensor:
    shape = (3, 64) if kind == "linear" else (2, 32, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@schemes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_little_is_lost(scheme: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    plain = random_weight(*shape, dtype=dtype)
    found = QuantisedWeight.of(plain, scheme).dequantized()
    assert (found.shape, found.dtype) == (plain.shape, dtype)
    error = (found.float() - plain.float()).norm() / plain.float().norm()
    assert error < BOUNDS[scheme]


@schemes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_stored_bytes_are_what_was_promised(scheme: str, shape: tuple[int, ...]) -> None:
    weight = QuantisedWeight.of(random_weight(*shape, dtype=torch.bfloat16), scheme)
    numbers = weight.numel()
    promised = numbers + 2 * shape[0]
    if scheme == "nf4":
        promised = -(-numbers // 2) + 4 * -(-numbers // 64)
    assert weight.stored_bytes == promised
    on_meta = QuantisedWeight.of(weight.dequantized().to("meta"), scheme)
    assert on_meta.stored_bytes == promised
    assert on_meta.dequantized().device.type == "meta"
    assert on_meta.dequantized().stride() == weight.dequantized().stride() == weight.stride()


@schemes
def test_rows_of_zeros_and_of_any_size_are_kept(scheme: str) -> None:
    plain = random_weight(4, 64) * torch.tensor([[0.0], [1e-4], [1.0], [1e4]])
    found = QuantisedWeight.of(plain, scheme).dequantized()
    assert torch.equal(found[0], torch.zeros(64))
    errors = (found - plain)[1:].norm(dim=1) / plain[1:].norm(dim=1)
    assert errors.max() < 0.12


def test_what_fp8_reads_back_is_the_same_in_every_dtype() -> None:
    plain = random_weight(16, 64, dtype=torch.bfloat16)
    found = [QuantisedWeight.of(plain.to(dtype), "fp8").dequantized().double() for dtype in DTYPES]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf4_is_read_back_as_its_paper_says(shape: tuple[int, ...]) -> None:
    weight = QuantisedWeight.of(random_weight(*shape), "nf4")
    pairs = weight.codes.flatten()
    codes = torch.stack([pairs >> 4, pairs & 15], 1).flatten()[: weight.numel()].long()
    scales = weight.scales.repeat_interleave(64)[: weight.numel()]
    found = weight.dequantized()
    rows = found.permute(0, 2, 3, 1) if found.ndim == 4 else found
    torch.testing.assert_close(rows.flatten(), torch.tensor(NF4)[codes] * scales)


@schemes
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_layers_compute_with_the_numbers_that_are_stored(scheme: str, kind: str) -> None:
    layer, plain = quantised_pair(kind, scheme)
    x, same = some_input(kind).requires_grad_(), some_input(kind).requires_grad_()
    y, expected = layer(x), plain(same)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-6, atol=1e-6)


@schemes
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_layers_keep_nothing_for_the_way_back(scheme: str, kind: str) -> None:
    layer, _ = quantised_pair(kind, scheme)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(some_input(kind).requires_grad_())
    assert kept == []


@schemes
def test_stacked_weights_are_laid_together_late(scheme: str) -> None:
    parts = [QuantisedWeight.of(random_weight(32, 64) * n, scheme) for n in (1, 2, 3)]
    stacked = Stacked(tuple(parts))
    expected = torch.cat([part.dequantized() for part in parts])
    assert torch.equal(dense(stacked), expected)
    kept: list[Tensor] = []
    x = some_input("linear").requires_grad_()
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = projection(x, Norm(), Frozen(stacked, None), Thin())
    assert kept == []
    assert torch.equal(y, x @ expected.T)


@schemes
def test_a_layer_whose_bias_learns_gets_its_gradient(scheme: str) -> None:
    layer, plain = quantised_pair("conv", scheme)
    for one in (layer, plain):
        one.bias.requires_grad_(True)
        one(some_input("conv")).square().sum().backward()
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


@schemes
def test_convolutions_in_groups_or_padded_by_name_are_right_too(scheme: str) -> None:
    weight = QuantisedWeight.of(random_weight(48, 16, 3, 3), scheme)
    x = some_input("conv")
    for options in ({"groups": 2}, {"groups": 2, "padding": "same"}):
        found = nn.functional.conv2d(x, weight, **options)
        expected = nn.functional.conv2d(x, weight.dequantized(), **options)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: w + 1,
        lambda w: w.t(),
        lambda w: w[3:5],
        lambda w: w.norm(dim=1),
        lambda w: torch.cat([w, w]),
        lambda w: torch.zeros(96, 64).copy_(w),
        lambda w: torch.mul(w, 2, out=torch.empty(96, 64)),
    ],
)
def test_any_operation_gets_plain_numbers(operation: Callable[[Tensor], Tensor]) -> None:
    weight = QuantisedWeight.of(random_weight(96, 64), "int8")
    found = operation(weight)
    assert type(found) is Tensor
    assert torch.equal(found, operation(weight.dequantized()))


def saved_and_loaded(weight: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@schemes
@pytest.mark.parametrize(
    "copied", [Tensor.detach, Tensor.clone, copy.deepcopy, Tensor.double, saved_and_loaded]
)
def test_copies_stay_quantised(scheme: str, copied: Callable[[Tensor], Any]) -> None:
    weight = nn.Parameter(QuantisedWeight.of(random_weight(96, 64), scheme), requires_grad=False)
    found = copied(weight)
    assert isinstance(found, QuantisedWeight)
    assert torch.equal(found.codes.view(torch.uint8), weight.codes.view(torch.uint8))
    assert torch.equal(dense(found), dense(weight).to(found.dtype))


@schemes
def test_modules_move_and_change_dtype_with_it(scheme: str) -> None:
    layer, plain = quantised_pair("conv", scheme)
    layer.to(torch.bfloat16)
    assert isinstance(layer.weight, QuantisedWeight)
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight.dequantized(), plain.weight.bfloat16())
    stored = layer.weight.stored_bytes
    layer.to("meta", memory_format=torch.channels_last)
    assert layer.weight.codes.device.type == layer.weight.device.type == "meta"
    assert layer.weight.stored_bytes == stored


@schemes
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_regions_of_autocast_choose_the_dtype(scheme: str, kind: str) -> None:
    layer, plain = quantised_pair(kind, scheme)
    grads = []
    for one in (layer, plain):
        x = some_input(kind).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = one(x)
        y.float().square().sum().backward()
        grads.append(x.grad)
        assert y.dtype == torch.bfloat16
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-2)


def test_another_layout_is_plain() -> None:
    weight = QuantisedWeight.of(random_weight(48, 32, 3, 3), "int8")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    turned = weight.contiguous()
    assert type(turned) is Tensor
    assert turned.is_contiguous()
    assert torch.equal(turned, weight.dequantized())


def set_data(weight: Tensor) -> None:
    weight.data = torch.zeros(96, 64)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.copy_(torch.zeros(96, 64)),
        lambda w: w.mul_(2),
        lambda w: nn.init.zeros_(w),
        lambda w: torch.add(w, 1, out=w),
        set_data,
    ],
)
def test_nothing_can_be_written_into_it(write: Callable[[Tensor], object]) -> None:
    weight = QuantisedWeight.of(random_weight(96, 64), "int8")
    before = weight.dequantized()
    with pytest.raises(UserError, match=r"stored as int8\n.*without --base_precision"):
        write(weight)
    assert torch.equal(weight.dequantized(), before)


def test_nf4_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match=r"scumble\[bitsandbytes\]"):
        QuantisedWeight.of(random_weight(96, 64), "nf4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@schemes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gpu_reads_what_the_processor_wrote(scheme: str, shape: tuple[int, ...]) -> None:
    weight = QuantisedWeight.of(random_weight(*shape, dtype=torch.bfloat16), scheme)
    there = weight.to("cuda")
    torch.testing.assert_close(there.dequantized().cpu(), weight.dequantized())
    graph = torch.cuda.CUDAGraph()
    there.dequantized()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        read = there.dequantized()
    graph.replay()
    torch.testing.assert_close(read.cpu(), weight.dequantized())

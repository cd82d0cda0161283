"""Triton's kernels against PyTorch's own, on the CPU in Triton's interpreter, and compiled."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scumble import kernels
from scumble.kernels import backend, geglu, norms
from scumble.kernels.conv import FrozenConv2d
from scumble.kernels.projection import Frozen, Norm, Thin, projection

triton = pytest.importorskip("triton")

EPS = 1e-5
FORMATS = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11 * 1.01}
"""Largest relative error: of fp32 arithmetic, or of the one rounding to the format.

To bfloat16 the interpreter cuts digits off, where a device rounds to the nearest.
"""

MAPS = {
    "one position": (2, 30, 3, 1, 1),
    "groups of ten": (2, 30, 3, 5, 3),
    "one group": (1, 12, 1, 4, 4),
    "a group for each channel": (1, 40, 40, 2, 3),
    "groups of thirty": (1, 90, 3, 2, 3),
}
"""Name -> (batch, channels, groups, height, width)."""

ENTRIES = {
    "triton_norms": ["layer_norm", "layer_norm_backward", "group_norm", "group_norm_backward"],
    "triton_geglu": ["geglu", "geglu_backward"],
}
"""Module -> what the package calls of it."""


Shape = tuple[int, int, int, int, int]


class Interpreted(NamedTuple):
    norms: Any
    geglu: Any


def fresh(name: str) -> ModuleType:
    """A second copy of a module of `kernels`."""
    path = Path(str(kernels.__file__)).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"interpreted_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Interpreted:
    """Copies of the kernels that run on the CPU; what other tests import stays as it was."""
    tl = triton.language
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # `sum` is a kernel itself, made for a device if Triton was imported before, by whichever test.
    monkeypatch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine))
    return Interpreted(fresh("triton_norms"), fresh("triton_geglu"))


@pytest.fixture(params=["held", "cut"])
def blocks(interpreted: Interpreted, request: pytest.FixtureRequest) -> Any:
    """The norms in one block, and cut into chunks of several as large maps are, at a small size."""
    module = interpreted.norms
    if request.param == "cut":
        module.MOST_HELD, module.BLOCK, module.MOST_CHUNKS, module.SIDE_BY_SIDE = 1, 64, 3, 16
    return module


@pytest.fixture
def called(interpreted: Interpreted, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Let the package compute with the interpreted kernels; the names of those that did."""
    names: set[str] = set()

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            names.add(function.__name__)
            return function(*arguments)

        return call

    for module, entries in ENTRIES.items():
        copy = getattr(interpreted, module.removeprefix("triton_"))
        for entry in entries:
            monkeypatch.setattr(copy, entry, recording(getattr(copy, entry)))
        monkeypatch.setattr(kernels, module, copy, raising=False)
    monkeypatch.setattr(backend, "uses_triton", lambda _: True)
    return names


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows(*shape: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Rows, their gradient, weight and bias."""
    x, grad = (2 * noise(*shape, seed=1) + 1).to(dtype), noise(*shape, seed=2, dtype=dtype)
    return x, grad, *(noise(shape[-1], seed=s, dtype=dtype) for s in (3, 4))


def maps(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Maps, their gradient, weight and bias."""
    batch, channels, _, height, width = shape
    x, grad = (noise(batch, channels, height, width, seed=s, dtype=dtype) for s in (1, 2))
    # Means unlike 0, and unlike in each group; the gradient comes in another layout.
    x = 2 * x + torch.arange(channels).view(-1, 1, 1) / channels
    x = x.to(dtype, memory_format=torch.channels_last)
    return x, grad, *(noise(channels, seed=s, dtype=dtype) for s in (3, 4))


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, noise_level: float = 4e-6) -> None:
    """Whether a result in a format is the exact one, but for noise and for one rounding."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    tolerance = {"rtol": ROUNDING[dtype] + noise_level, "atol": noise_level}
    torch.testing.assert_close(actual.cpu().double(), expected, **tolerance)


def exact(*tensors: Tensor) -> list[Tensor]:
    return [t.cpu().double() for t in tensors]


def check_layer_norm(module: Any, x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Compare with PyTorch's own in double precision, both ways."""
    y, mean, rstd = module.layer_norm(x, weight, bias, EPS)
    found = module.layer_norm_backward(grad, x, mean, rstd, weight)
    dtype = x.dtype
    x, grad, weight, bias = exact(x, grad, weight, bias)
    y64, mean64, rstd64 = norms.layer_norm(x, weight, bias, EPS)
    close(y, y64, dtype)
    close(mean, mean64, torch.float32)
    close(rstd, rstd64, torch.float32)
    # A row of one value has no spread: everything is multiplied by 1 / sqrt(eps).
    expected = norms.layer_norm_backward(grad, x, mean64, rstd64, weight, bias)
    close(found, expected, dtype, 4e-6 * max(1.0, rstd64.max().item()))


def check_group_norm(
    module: Any, x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, groups: int, silu: bool
) -> None:
    """Compare with PyTorch's own in double precision, both ways."""
    y, mean, rstd = module.group_norm(x, weight, bias, groups, EPS, silu)
    found = module.group_norm_backward(grad, x, mean, rstd, weight, bias, groups, silu)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert found.is_contiguous(memory_format=torch.channels_last)
    dtype = x.dtype
    x, grad, weight, bias = exact(x, grad, weight, bias)
    y64, *statistics = norms.group_norm(x, weight, bias, groups, EPS, silu=silu)
    close(y, y64, dtype)
    close(mean, statistics[0], torch.float32)
    close(rstd, statistics[1], torch.float32)
    frozen = (*statistics, weight, bias, groups, EPS)
    close(found, norms.group_norm_backward(grad, x, *frozen, silu=silu), dtype)


def check_geglu(module: Any, p: Tensor, grad: Tensor) -> None:
    """Compare with PyTorch's own in double precision, both ways."""
    close(module.geglu(p), geglu.geglu(*exact(p)), p.dtype)
    close(module.geglu_backward(grad, p), geglu.geglu_backward(*exact(grad, p)), p.dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(7, 320), (2, 3, 77), (3, 1), (1, 2, 1, 1280)])
def test_layer_norm(interpreted: Interpreted, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check_layer_norm(interpreted.norms, *rows(*shape, dtype=dtype))


@pytest.mark.parametrize("silu", [False, True], ids=["norm", "norm and silu"])
@pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS.keys())
def test_group_norm(blocks: Any, shape: Shape, silu: bool) -> None:
    check_group_norm(blocks, *maps(shape, torch.float32), shape[2], silu)


@pytest.mark.parametrize("dtype", FORMATS[1:])
def test_group_norm_in_half_precision(blocks: Any, dtype: torch.dtype) -> None:
    check_group_norm(blocks, *maps((2, 30, 3, 3, 3), dtype), 3, True)


def test_group_norm_of_large_maps(interpreted: Interpreted) -> None:
    assert interpreted.norms._plan(2, 3, 37 * 31, 10).grid == (2, 1, 18)
    check_group_norm(interpreted.norms, *maps((2, 30, 3, 37, 31), torch.float32), 3, True)


def test_a_mean_far_from_zero_costs_no_precision(blocks: Any) -> None:
    x = (1000 + noise(1, 20, 6, 7)).contiguous(memory_format=torch.channels_last)
    y, _, rstd = blocks.group_norm(x, torch.ones(20), torch.zeros(20), 2, EPS, False)
    expected = functional.group_norm(x.double(), 2, eps=EPS)
    # The values themselves are exact to 1000 x 2^-24.
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    spread = x.double().reshape(2, -1).var(1, correction=0)
    torch.testing.assert_close(rstd[0].double(), (spread + EPS).rsqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(5, 512), (2, 3, 600), (9, 2)])
def test_geglu(interpreted: Interpreted, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    p, grad = (3 * noise(*shape, seed=1)).to(dtype), noise(*shape[:-1], shape[-1] // 2, seed=2)
    check_geglu(interpreted.geglu, p, grad.to(dtype))


def gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, inputs, noise(*out.shape, seed=9))]


def every_call() -> list[Tensor]:
    """Results and gradients of everything in the package that has a kernel."""
    x, _, weight, bias = maps(MAPS["groups of ten"], torch.float32)
    x.requires_grad_(True)
    found = []
    for silu in (False, True):
        found += gradients(norms.GroupNorm.apply(x, weight, bias, 3, EPS, silu), x)
    conv = FrozenConv2d(noise(30, 30, 1, 1), None)
    halves = [t.detach().requires_grad_(True) for t in (x[:, :10], x[:, 10:])]
    both = norms.ConcatenatedGroupNorm.apply(*halves, weight, bias, 3, EPS, conv)
    found += gradients(torch.cat(both), *halves)
    h = noise(2, 6, 20).requires_grad_(True)
    norm = Norm(noise(20, seed=1), noise(20, seed=2), EPS)
    inner, outer = Frozen(noise(48, 20), noise(48)), Frozen(noise(20, 24), noise(20))
    thin = Thin(noise(1, 3, 20).requires_grad_(True), noise(1, 48, 3).requires_grad_(True))
    found += gradients(projection(h, norm, inner, thin), h, *thin)
    out = geglu.feed_forward(h, norm, (inner, thin), (outer, Thin()), recompute=True)
    return found + gradients(out, h, *thin)


def test_the_package_calls_the_kernels_rightly(request: pytest.FixtureRequest) -> None:
    expected = every_call()
    called = request.getfixturevalue("called")
    for actual, eager in zip(every_call(), expected, strict=True):
        torch.testing.assert_close(actual, eager, rtol=1e-4, atol=1e-4)
    assert called == {entry for entries in ENTRIES.values() for entry in entries}


@pytest.mark.parametrize("edge", [4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("channels", [320, 640, 960, 1280, 1920, 2560])
def test_the_work_is_divided_without_gaps_and_widely(channels: int, edge: int) -> None:
    module = fresh("triton_norms")
    for batch in (1, 3, 16):
        plan = module._plan(batch, 32, edge * edge, channels // 32)
        numbers, programs = plan.numbers, math.prod(plan.grid)
        chunk = numbers["P"] * numbers["steps"]
        assert (plan.grid[2] - 1) * chunk < edge * edge <= plan.grid[2] * chunk
        assert plan.grid[1] * numbers["U"] == 32
        block = numbers["P"] * numbers["U"] * numbers["S"]
        assert block <= min(module.MOST_HELD, 32 * 32 * numbers["num_warps"])
        assert programs <= max(module.PROGRAMS, 32 * batch)
        assert programs >= (128 if plan.joined else 32 * batch)


STATISTICS = ["mean_ptr", "rstd_ptr", "means_ptr", "spreads_ptr", "levels_ptr", "slopes_ptr"]
BLOCK = {"SIZE": 10, "U": 8, "S": 16, "P": 32}
KERNELS = {
    "_chunk_forward": BLOCK,
    "_chunk_backward": {**BLOCK, "SILU": True},
    "_norm_forward": {**BLOCK, "K": 4, "SILU": True},
    "_norm_backward": {**BLOCK, "K": 4, "SILU": True},
    "_norm_forward, held": {**BLOCK, "U": 1, "K": 0, "SILU": False},
    "_norm_backward, held": {**BLOCK, "U": 1, "K": 0, "SILU": False},
    "_forward": {"ROWS": 4, "WIDTH": 256},
    "_backward": {"ROWS": 4, "WIDTH": 256},
}
"""Kernel -> the constants to compile it with."""


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_compiler_takes_what_the_interpreter_takes(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = fresh("triton_norms" if "norm" in name or "chunk" in name else "triton_geglu")
    kernel, constants = getattr(module, name.split(",")[0]), KERNELS[name]
    kinds = dict.fromkeys(kernel.arg_names, "i32") | {"eps": "fp32"}
    kinds |= {n: f"*{dtype}" for n in kinds if n.endswith("_ptr")}
    kinds |= dict.fromkeys(STATISTICS, "*fp32") | dict.fromkeys(constants, "constexpr")
    signature = {n: kinds[n] for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert compiled.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", FORMATS)
def test_on_a_device(dtype: torch.dtype) -> None:
    from scumble.kernels import triton_geglu, triton_norms

    def there(*tensors: Tensor) -> list[Tensor]:
        return [t.to("cuda") for t in tensors]

    assert backend.uses_triton(torch.ones(1, device="cuda", dtype=dtype))
    for width in (320, 1280, 77):
        check_layer_norm(triton_norms, *there(*rows(2, 100, width, dtype=dtype)))
        p, grad = noise(3, 100, 2 * width, dtype=dtype), noise(3, 100, width, dtype=dtype)
        check_geglu(triton_geglu, *there(p, grad))
    for channels, edge in ((320, 64), (320, 128), (640, 32), (1280, 8), (1920, 16), (2560, 16)):
        for silu in (False, True):
            tensors = there(*maps((2, channels, 32, edge, edge), dtype))
            check_group_norm(triton_norms, *tensors, 32, silu)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_repeats_them_bit_by_bit() -> None:
    tensors = [t.to("cuda") for t in maps((2, 320, 32, 64, 64), torch.float16)]
    x, _, weight, bias = tensors

    def norm() -> Tensor:
        return norms.group_norm(x, weight, bias, 32, EPS, silu=True)[0]

    expected = norm()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = norm()
    graph.replay()
    assert torch.equal(found, expected)

"""When Triton's kernels are used, and what is said where they cannot be."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from scumble import kernels
from scumble.kernels import backend


@pytest.fixture(autouse=True)
def not_yet_tried() -> Iterator[None]:
    """Forget what was tried, before and after."""
    for known in (backend._obstacle, backend._say_once):
        known.cache_clear()
    yield
    for known in (backend._obstacle, backend._say_once):
        known.cache_clear()


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where it is not installed."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "scumble.kernels.triton_geglu", raising=False)
    monkeypatch.delattr(kernels, "triton_geglu", raising=False)


def on_a_device(dtype: torch.dtype = torch.float16) -> Tensor:
    """A tensor that PyTorch takes for one on a CUDA device, on any machine."""
    with FakeTensorMode():
        return torch.empty(4, dtype=dtype, device="cuda")


@pytest.mark.usefixtures("no_triton")
def test_without_triton_pytorch_takes_over_and_says_so_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        for dtype in backend.DTYPES:
            assert not backend.uses_triton(on_a_device(dtype))
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("Triton does not work here (")
    assert "triton" in said.partition("(")[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_kernel_that_cannot_run_is_reason_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert not backend.uses_triton(on_a_device())
    assert "CUDA" in capsys.readouterr().out


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, device="meta"),
        on_a_device(torch.float64),
        on_a_device(torch.int32),
    ],
    ids=lambda x: f"{x.device.type} {x.dtype}",
)
def test_elsewhere_nothing_is_tried_or_said(x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    assert not backend.uses_triton(x)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_triton")
def test_it_can_be_turned_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCUMBLE_TRITON", "0")
    assert not backend.uses_triton(on_a_device())
    assert capsys.readouterr().out == ""


def test_the_package_loads_without_it() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from scumble.kernels import attention, backend, conv, geglu, norms, projection
geglu.geglu(torch.ones(1, 2))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", backend.DTYPES)
def test_a_device_uses_it(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    assert backend.uses_triton(torch.ones(1, dtype=dtype, device="cuda"))

"""What the hardware can do at best, measured on the spot in half a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SECONDS = 0.15
"""Each of the measurements takes about so long."""
EDGES = {"cuda": 4096, "cpu": 1024}
COPIED_BYTES = {"cuda": 1 << 28, "cpu": 1 << 26}
OTHER_EDGE, OTHER_BYTES = 2048, 1 << 27
"""On Apple's GPUs, and on what else accelerate finds."""
SMALL = 100


@dataclass(frozen=True)
class Ceiling:
    """The most that a device reaches.

    Args:
        flops_per_s: in a large product of matrices, of the run's number format.
        bytes_per_s: read and written in a large copy.
        launch_s: what a tiny operation takes at least.
    """

    flops_per_s: float
    bytes_per_s: float
    launch_s: float


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Measure products, copies and tiny operations on a device."""
    edge = EDGES.get(device.type, OTHER_EDGE)
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    product = torch.empty(edge, edge, device=device, dtype=dtype)
    source = torch.ones(COPIED_BYTES.get(device.type, OTHER_BYTES) // 4, device=device)
    target = torch.empty_like(source)
    tiny = torch.ones(8, device=device)

    def many() -> None:
        for _ in range(SMALL):
            tiny.add_(1.0)

    with torch.no_grad():
        product_s = fastest_s(lambda: torch.mm(left, right, out=product), device, SECONDS)
        copy_s = fastest_s(lambda: target.copy_(source), device, SECONDS)
        launches_s = fastest_s(many, device, SECONDS)
    return Ceiling(2 * edge**3 / product_s, 2 * source.nbytes / copy_s, launches_s / SMALL)


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def fastest_s(work: Callable[[], object], device: torch.device, within_s: float = 0.0) -> float:
    """Seconds of the fastest of several times; the first one warms up and does not count.

    Args:
        work: to time.
        device: that does it.
        within_s: begin anew until so long has passed; once is enough for 0.
    """
    work()
    synchronise(device)
    best, end = float("inf"), time.perf_counter() + within_s
    while True:
        start = time.perf_counter()
        work()
        synchronise(device)
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return max(best, 1e-9)

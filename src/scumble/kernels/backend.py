"""Which of the kernels computes: Triton's on a CUDA device, PyTorch's own everywhere else.

`SCUMBLE_TRITON=0` in the environment turns Triton's off, to compare the two.
"""

import os
from functools import cache

import torch
from torch import Tensor

from scumble import console
from scumble.errors import first_line

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What Triton's kernels read and write; they compute in float32."""


def uses_triton(x: Tensor) -> bool:
    """Whether Triton's kernels compute on `x`.

    The first call for a dtype tries a small kernel: make it before a CUDA graph is recorded.
    """
    if not x.is_cuda or x.dtype not in DTYPES or os.environ.get("SCUMBLE_TRITON") == "0":
        return False
    reason = _obstacle(x.dtype)
    if reason is not None:
        _say_once(reason)
    return reason is None


@cache
def _obstacle(dtype: torch.dtype) -> str | None:
    """Why Triton does not work here, or None: each format is tried, as old devices lack some."""
    try:
        from scumble.kernels import triton_geglu

        triton_geglu.geglu(torch.ones(1, 2, dtype=dtype, device="cuda"))
    except Exception as error:  # Triton fails in many ways: no compiler, no such device, ...
        return first_line(error)
    return None


@cache
def _say_once(reason: str) -> None:
    console.say(f"Triton does not work here ({reason}); slower kernels of PyTorch take its place.")

"""The same bits each time: kernels that do not depend on the order in which threads finish."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scumble import console
from scumble.config import TrainConfig
from scumble.errors import UserError

WORKSPACE, SETTINGS = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""What tells cuBLAS to give each stream memory of its own, and the values that do so."""

NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic(config: TrainConfig) -> Iterator[None]:
    """Have PyTorch compute with deterministic kernels alone, where the configuration asks for it.

    It must begin before anything computes on a GPU.

    Raises:
        UserError: the environment asks cuBLAS for the contrary, or an operation has no such kernel.
    """
    if not config.deterministic:
        yield
        return
    _check_workspace()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    # cuDNN would use TF32 without being asked.
    cudnn.deterministic, cudnn.benchmark = True, False
    cudnn.allow_tf32 = matmul.allow_tf32 = config.allow_tf32
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    _say_price()
    try:
        with _missing_kernels_named():
            yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def _check_workspace() -> None:
    chosen = os.environ.setdefault(WORKSPACE, SETTINGS[0])
    if chosen not in SETTINGS:
        raise UserError(
            f"{WORKSPACE}={chosen} does not go with --deterministic",
            f"Unset it, or set it to {SETTINGS[0]}.",
        )


def _say_price() -> None:
    if torch.cuda.is_available():
        console.say(
            "deterministic: the same bits each time on this GPU and these versions; attention and "
            "convolutions take slower kernels where the faster ones do not give that"
        )
    else:
        console.say(
            f"deterministic: the same bits each time with {torch.get_num_threads()} threads; on a "
            "processor it costs nothing"
        )


@contextmanager
def _missing_kernels_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        found = NO_KERNEL.search(str(error))
        if found is None:
            raise
        raise UserError(
            f"--deterministic: PyTorch has no deterministic kernel for {found[1]} on this device",
            "Train on another device, or leave --deterministic away: the result is then the same "
            "but for rounding.",
        ) from error

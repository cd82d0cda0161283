"""How the numbers of a frozen weight are stored: in 8 or 4 bits, with scales.

int8 and fp8 are a few lines of PyTorch. nf4 is computed by bitsandbytes, which is imported only
here and only then. Every scale is chosen in the format that it is stored in, so that the numbers
are rounded against the very scale that brings them back.

Shape suffixes: O outputs, N numbers of one output.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scumble.errors import UserError

BLOCK = 64
"""Numbers that share a scale in nf4."""

SMALLEST_EXPONENT = -24
"""Of the scales of fp8: the smallest power of two that fp16 has."""


@dataclass(frozen=True)
class Scheme:
    """One way to store a weight.

    Args:
        name: as --base_precision says it.
        encode: weight of shape (O, N) -> (codes, scales).
        decode: (codes, scales, shape, dtype) -> the weight again. No step of it waits for the
            device, so that it can be part of a CUDA graph.
    """

    name: str
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor, Tensor, tuple[int, ...], torch.dtype], Tensor]


def encode_int8(weight_ON: Tensor) -> tuple[Tensor, Tensor]:
    """Integers from -127 to 127, one scale per output."""
    largest_O1 = weight_ON.abs().amax(1, keepdim=True).float()
    scales_O1 = (largest_O1 / 127).to(weight_ON.dtype)
    # Rows of zeros have no scale of their own.
    scales_O1 = torch.where(scales_O1 == 0, 1, scales_O1)
    codes_ON = (weight_ON / scales_O1.float()).round_().clamp_(-127, 127)
    return codes_ON.to(torch.int8), scales_O1


def decode_int8(
    codes: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """One kernel: the integers are widened on the way into the product."""
    del shape, dtype
    return codes * scales


def encode_fp8(weight_ON: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3, one power of two per output: what is read back is then exact in every format."""
    largest_O1 = weight_ON.abs().amax(1, keepdim=True).float()
    most = torch.finfo(torch.float8_e4m3fn).max
    exponent_O1 = torch.frexp(largest_O1 / most).exponent.clamp(min=SMALLEST_EXPONENT)
    scales_O1 = torch.ldexp(torch.ones_like(largest_O1), exponent_O1)
    codes_ON = (weight_ON / scales_O1).to(torch.float8_e4m3fn)
    return codes_ON, scales_O1.to(weight_ON.dtype)


def decode_fp8(codes: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Widen, then scale in place."""
    del shape
    return codes.to(dtype).mul_(scales)


def encode_nf4(weight_ON: Tensor) -> tuple[Tensor, Tensor]:
    """16 quantiles of the normal distribution (arXiv:2305.14314), one scale per 64 numbers."""
    codes, state = _bitsandbytes().quantize_4bit(weight_ON, blocksize=BLOCK, quant_type="nf4")
    return codes, state.absmax


def decode_nf4(codes: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """One kernel of bitsandbytes."""
    functional = _bitsandbytes()
    # As one row: its kernel for processors begins a new block with every row, and blocks do not.
    row = torch.Size([math.prod(shape)])
    state = functional.QuantState(
        absmax=scales, shape=row, dtype=dtype, blocksize=BLOCK, quant_type="nf4"
    )
    weight: Tensor = functional.dequantize_4bit(codes, state)
    return weight.view(shape)


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8", encode_int8, decode_int8),
    "fp8": Scheme("fp8", encode_fp8, decode_fp8),
    "nf4": Scheme("nf4", encode_nf4, decode_nf4),
}
"""Value of --base_precision -> scheme."""


def _bitsandbytes() -> Any:
    # While it is imported it warns that a product it offers, which is not used here, is missing.
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise UserError(
            "--base_precision nf4 needs bitsandbytes, which is not installed",
            "Run: pip install 'scumble[bitsandbytes]', or take int8 or fp8, which need nothing.",
        ) from error
    finally:
        log.setLevel(level)
    return functional

"""Load a model's weights, each cast as it is read: no more memory than the result takes.

The libraries map the whole file into memory, where a model of 3.4 GB in fp32 that is wanted in bf16
takes 5.2 GB until it is built. And importing the model's class takes as long as reading its
weights, and laying those of convolutions out as they will be used: all are done at once.
"""

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scumble.families.weight_file import WeightFile
from scumble.imports import uncollected

WEIGHTS_NAME = "diffusion_pytorch_model"

UNFIT = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, struct.error),
    *(ArithmeticError, AssertionError),
)
"""What damaged files end in; RuntimeError where shapes do not fit their bytes."""


def load_streamed(
    find_class: Callable[[], Any],
    files: Sequence[Path],
    variant: str | None,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> nn.Module | None:
    """Build a diffusers model and fill it from its files.

    Args:
        find_class: imports the model's class.
        files: that the component is made of.
        variant: of the weights, such as "fp16".
        dtype: wanted.
        memory_format: how weights of four dimensions are to lie in memory.

    Returns:
        The model; None where the files are not plain safetensors that fit it exactly: then the
        library's own loader knows better what to do or to say.
    """
    middle = f".{variant}" if variant is not None else ""
    weights = [p for p in files if p.name == f"{WEIGHTS_NAME}{middle}.safetensors"]
    weights = weights or [p for p in files if p.match(f"{WEIGHTS_NAME}{middle}-*-of-*.safetensors")]
    if not weights:
        return None
    tensors: dict[str, Tensor] = {}
    try:
        opened = [WeightFile(path, dtype, memory_format) for path in weights]
        with ThreadPoolExecutor(1) as pool:
            reading = [pool.submit(file.read) for file in opened]
            with uncollected():
                cls = find_class()
            module = _empty(cls, weights[0].parent)
            for file, done in zip(opened, reading, strict=True):
                done.result()
                tensors |= file.tensors
                file.tensors.clear()
        return _filled(module, tensors)
    except UNFIT:
        return None
    finally:
        # An error that some import catches and keeps holds this frame, and with it what is named
        # here: weights that are laid out anew would stay in memory as they were, too.
        tensors.clear()


def _filled(module: nn.Module | None, tensors: dict[str, Tensor]) -> nn.Module | None:
    """The model with these weights, where they are exactly its own."""
    if module is None:
        return None
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        return None
    module.load_state_dict(tensors, assign=True)
    return module


def _empty(cls: Any, folder: Path) -> nn.Module | None:
    """The model without values, where its class can build one from a configuration alone."""
    from accelerate import init_empty_weights

    if not hasattr(cls, "load_config"):
        return None
    with init_empty_weights():
        module: nn.Module = cls.from_config(cls.load_config(folder))
    return module

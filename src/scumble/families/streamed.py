"""Load a model tensor by tensor, each cast as it is read: no more memory than the result takes.

The libraries map the whole file into memory, where a model of 3.4 GB in fp32 that is wanted in bf16
takes 5.2 GB until it is built. And importing the model's class takes as long as reading its
weights: both are done at once.
"""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scumble.formats.streaming import DTYPES
from scumble.imports import uncollected

FLOATS = {name: DTYPES[name] for name in ("F32", "F16", "BF16", "F64")}
"""Number formats that are cast here."""
WEIGHTS_NAME = "diffusion_pytorch_model"

UNFIT = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, struct.error),
    *(ArithmeticError, AssertionError),
)
"""What damaged files end in; RuntimeError where shapes do not fit their bytes."""


def load_streamed(
    find_class: Callable[[], Any], files: Sequence[Path], variant: str | None, dtype: torch.dtype
) -> nn.Module | None:
    """Build a diffusers model and fill it from its files.

    Args:
        find_class: imports the model's class.
        files: that the component is made of.
        variant: of the weights, such as "fp16".
        dtype: wanted.

    Returns:
        The model; None where the files are not plain safetensors that fit it exactly: then the
        library's own loader knows better what to do or to say.
    """
    middle = f".{variant}" if variant is not None else ""
    weights = [p for p in files if p.name == f"{WEIGHTS_NAME}{middle}.safetensors"]
    weights = weights or [p for p in files if p.match(f"{WEIGHTS_NAME}{middle}-*-of-*.safetensors")]
    if not weights:
        return None
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read, weights, dtype)
        with uncollected():
            cls = find_class()
        try:
            module = _empty(cls, weights[0].parent)
            tensors = reading.result()
        except UNFIT:
            return None
    try:
        return _filled(module, tensors)
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


def _read(paths: Sequence[Path], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor for path in paths for name, tensor in _tensors(path, dtype)}


def _tensors(path: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Read a safetensors file in the order of its bytes.

    Raises:
        ValueError: it is damaged, or holds numbers of another kind.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise ValueError("the header is cut short")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        # One for all: new memory costs more than what is done with it.
        buffer = torch.empty(max(_length(about) for _, about in ordered), dtype=torch.uint8)
        for name, about in ordered:
            stored, count = FLOATS[about["dtype"]], _length(about)
            result = torch.empty(about["shape"], dtype=dtype)
            target = result.view(-1).view(torch.uint8) if stored == dtype else buffer[:count]
            file.seek(8 + length + about["data_offsets"][0])
            if file.readinto(target.numpy().data) != count:
                raise ValueError("the file is cut short")
            if stored != dtype:
                result.copy_(target.view(stored).view(about["shape"]))
            yield name, result


def _length(about: dict[str, Any]) -> int:
    start, end = about["data_offsets"]
    return int(end - start)

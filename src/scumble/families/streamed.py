"""Load a model tensor by tensor, each cast as it is read: no more memory than the result takes.

The libraries map the whole file into memory, where a model of 3.4 GB in fp32 that is wanted in bf16
takes 5.2 GB until it is built.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
"""Number formats as safetensors files call them."""
WEIGHTS_NAME = "diffusion_pytorch_model"


def load_streamed(
    cls: Any, files: Sequence[Path], variant: str | None, dtype: torch.dtype
) -> nn.Module | None:
    """Build a diffusers model and fill it from its files.

    Args:
        cls: the model's class.
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
    if not weights or not hasattr(cls, "load_config"):
        return None
    from accelerate import init_empty_weights

    try:
        config = cls.load_config(weights[0].parent)
        with init_empty_weights():
            module: nn.Module = cls.from_config(config)
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        tensors = {}
        for path in weights:
            for name, tensor in _tensors(path, dtype):
                if shapes.get(name) != tensor.shape:
                    return None
                tensors[name] = tensor
        if tensors.keys() != shapes.keys():
            return None
        module.load_state_dict(tensors, assign=True)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    return module


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
            stored, count = DTYPES[about["dtype"]], _length(about)
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

"""scumble: LoRA fine-tuning and inference for Stable Diffusion.

A large model stays frozen; a thin trainable layer goes on top. Everything here is loaded when it is
first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scumble.config import TrainConfig
    from scumble.errors import UserError
    from scumble.inference.generator import generate
    from scumble.inference.loading import (
        load_adapter,
        merge_adapters,
        read_adapter,
        set_strengths,
        unload_adapters,
        unmerge_adapters,
        write_adapter,
    )
    from scumble.tools.convert import convert_adapter
    from scumble.tools.diff import diff_adapters
    from scumble.tools.extract import extract_adapter
    from scumble.tools.inspect import inspect_adapter
    from scumble.tools.merge import merge_files
    from scumble.tools.resize import resize_adapter
    from scumble.training.run import train

__version__ = "0.1.0"

_HOMES = {
    "TrainConfig": "scumble.config",
    "UserError": "scumble.errors",
    "convert_adapter": "scumble.tools.convert",
    "diff_adapters": "scumble.tools.diff",
    "extract_adapter": "scumble.tools.extract",
    "generate": "scumble.inference.generator",
    "inspect_adapter": "scumble.tools.inspect",
    "load_adapter": "scumble.inference.loading",
    "merge_adapters": "scumble.inference.loading",
    "merge_files": "scumble.tools.merge",
    "read_adapter": "scumble.inference.loading",
    "resize_adapter": "scumble.tools.resize",
    "set_strengths": "scumble.inference.loading",
    "train": "scumble.training.run",
    "unload_adapters": "scumble.inference.loading",
    "unmerge_adapters": "scumble.inference.loading",
    "write_adapter": "scumble.inference.loading",
}

__all__ = [
    "TrainConfig",
    "UserError",
    "convert_adapter",
    "diff_adapters",
    "extract_adapter",
    "generate",
    "inspect_adapter",
    "load_adapter",
    "merge_adapters",
    "merge_files",
    "read_adapter",
    "resize_adapter",
    "set_strengths",
    "train",
    "unload_adapters",
    "unmerge_adapters",
    "write_adapter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scumble' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

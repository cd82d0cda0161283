"""Adapter files: every format reads into and writes from `AdapterWeights`, and knows no other."""

from scumble.formats.files import FORMATS, read_adapter, write_adapter
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import AdapterWeights, ModuleWeights

__all__ = [
    "FORMATS",
    "AdapterWeights",
    "KeyNames",
    "ModuleWeights",
    "read_adapter",
    "write_adapter",
]

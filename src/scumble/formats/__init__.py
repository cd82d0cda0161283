"""Adapter files: every format reads into and writes from `AdapterWeights`, and knows no other."""

from scumble.formats.files import FORMATS, read_adapter, write_adapter
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import AdapterWeights, LearnedToken, ModuleWeights

__all__ = [
    "FORMATS",
    "AdapterWeights",
    "KeyNames",
    "LearnedToken",
    "ModuleWeights",
    "read_adapter",
    "write_adapter",
]

"""What can be attached to a frozen model: one parametrisation per file, one generic wrapper."""

from scumble.adapters.base import Adapter, LayerSpec
from scumble.adapters.lora import LoRA

ADAPTERS: dict[str, type[Adapter]] = {"lora": LoRA}
"""Adapter type -> class. To add a type, write its file and add its line here."""

__all__ = ["ADAPTERS", "Adapter", "LayerSpec", "LoRA"]
